"""Where a request may go: base_url -> Target, and the addresses that openbr never calls.

In: an administrator's base_url, an address from DNS. Out: a Target, or ConfigError. The rule that
lives only here: link-local and cloud metadata addresses are refused, as a literal in any spelling,
as a name, and again as what a name resolves to: a gateway must not hand out its machine's
own credentials.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

from openbr.errors import ConfigError

DEFAULT_PORTS = {"http": 80, "https": 443}
IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

# Where clouds serve machine credentials outside link-local: AWS and GCP on IPv6, Alibaba,
# Oracle, Azure. Source: each provider's instance metadata documentation, read 2026-11.
_METADATA_ADDRESSES = frozenset(
    ipaddress.ip_address(text)
    for text in (
        "fd00:ec2::254",
        "fd20:ce::254",
        "100.100.100.200",
        "192.0.0.192",
        "168.63.129.16",
    )
)
_METADATA_NAMES = frozenset(
    (
        "metadata",
        "metadata.google.internal",
        "metadata.goog",
        "instance-data",
        "instance-data.ec2.internal",
    )
)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_HOST = re.compile(r"[a-z0-9_]([a-z0-9_.-]{0,251}[a-z0-9_])?", re.ASCII)
# What a path may hold unescaped (RFC 3986 section 3.3), and % for what is escaped already.
_PATH_SAFE = "/%:@!$&'()*+,;=~-._"


@dataclass(frozen=True, slots=True)
class Target:
    """A parsed base_url. `host` is ASCII and lower case, without brackets or a last dot;
    `prefix` is the path before an API's own paths, without a slash at its end."""

    scheme: str
    host: str
    port: int
    prefix: str = ""

    @staticmethod
    def parse(base_url: str) -> Target:
        """Raises: ConfigError, also for an address that is never called."""
        try:
            if not base_url.isprintable():
                raise ValueError("it holds control characters")  # urlsplit would drop them
            parts = urlsplit(base_url.strip())
            port = parts.port
            host = parse_host(parts.hostname or "")
        except ValueError as exc:
            raise ConfigError(f"{base_url!r} cannot be called: {exc}") from exc
        if parts.scheme not in DEFAULT_PORTS or port == 0:
            raise ConfigError(f"{base_url!r} must begin with http:// or https:// and name a host")
        if parts.username is not None or parts.query or parts.fragment:
            raise ConfigError(
                f"{parts.scheme}://{host}: must hold no password, query or fragment: "
                "a key goes into api_key"
            )
        address = parse_address(host)
        if host in _METADATA_NAMES or (address is not None and is_refused(address)):
            raise ConfigError(
                f"{base_url}: link-local and metadata addresses are never called, "
                "since they give out this machine's own credentials"
            )
        prefix = quote(parts.path.rstrip("/"), safe=_PATH_SAFE)
        return Target(parts.scheme, host, port or DEFAULT_PORTS[parts.scheme], prefix)

    @property
    def authority(self) -> str:
        """Host and port as the Host header says them: without the scheme's own port."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def host_and_port(self) -> str:
        """The same with the port always: for CONNECT, and for people."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_host(text: str) -> str:
    """One spelling for a host: lower-case ASCII, dotted quad for every spelling of an IPv4.

    Raises: ValueError.
    """
    host = text.lower().removesuffix(".")
    if ":" in host:
        if "%" in host:
            raise ValueError("a zone is for link-local addresses, which are never called")
        return str(ipaddress.IPv6Address(host))
    if not host.isascii():
        try:
            host = host.encode("idna").decode("ascii")
        except UnicodeError as exc:
            raise ValueError("the host is not a name") from exc
    if not _HOST.fullmatch(host):
        raise ValueError("the host is missing or not a name")
    if host[0].isdigit():
        try:
            # 2852039166, 0xa9fea9fe and 169.254.43518 are addresses to every resolver.
            return socket.inet_ntoa(socket.inet_aton(host))
        except OSError:
            pass
    return host


def parse_address(host: str) -> IPAddress | None:
    """The address that a parsed host is, None for a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def is_refused(address: IPAddress) -> bool:
    """Whether it is link-local or a metadata service, also inside an IPv6 disguise."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None and is_refused(inner):
            return True
    return address.is_link_local or address in _METADATA_ADDRESSES


def is_loopback(host: str) -> bool:
    """Whether a parsed host is this machine: never through a proxy, never asked of DNS."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    address = parse_address(host)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    return address is not None and (address.is_loopback or address.is_unspecified)
