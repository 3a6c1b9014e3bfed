"""Which proxy a target is reached through, if any.

In: the mapping of the environment's proxies (http, https, all, no). Out: a Proxy or None. The
rules that live only here: how NO_PROXY is read (host suffix, IP, CIDR, port, "*"), and that this
machine itself is never asked for through a proxy.
"""

from __future__ import annotations

import base64
import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from openbr.errors import UpstreamUnavailableError
from openbr.upstream.target import Target, is_loopback, parse_address, parse_host


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy. `authorization` is the value of Proxy-Authorization, b"" for none."""

    host: str
    port: int
    authorization: bytes = field(default=b"", repr=False)

    @property
    def host_and_port(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def find_proxy(target: Target, proxies: Mapping[str, str]) -> Proxy | None:
    """The proxy for a target; None means directly.

    Raises: UpstreamUnavailableError for a proxy that openbr cannot speak to. Not earlier: a
    desktop's ALL_PROXY=socks5://... must not keep the models of this machine from working.
    """
    text = proxies.get(target.scheme) or proxies.get("all")
    if not text or is_loopback(target.host) or _is_excepted(target, proxies.get("no", "")):
        return None
    return _parse_proxy(text)


def _parse_proxy(text: str) -> Proxy:
    try:
        parts = urlsplit(text if "://" in text else "http://" + text)
        host, port = parse_host(parts.hostname or ""), parts.port or 80
    except ValueError as exc:
        raise UpstreamUnavailableError(
            "the proxy of HTTP_PROXY, HTTPS_PROXY or ALL_PROXY is not an address such as "
            "http://proxy.example:3128",
            reason="refused",
        ) from exc
    if parts.scheme != "http":
        raise UpstreamUnavailableError(
            f"the proxy {host} speaks {parts.scheme}, and only http:// proxies can be used: "
            "set HTTPS_PROXY and HTTP_PROXY to one, or name this host in NO_PROXY",
            reason="refused",
        )
    authorization = b""
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        authorization = b"Basic " + base64.b64encode(pair.encode())
    return Proxy(host, port, authorization)


def _is_excepted(target: Target, no_proxy: str) -> bool:
    return any(_matches(target, entry) for entry in re.split(r"[,\s]+", no_proxy.lower()) if entry)


def _matches(target: Target, entry: str) -> bool:
    """Shapes of an entry: *, example.com, .example.com, *.example.com, 10.0.0.1, 10.0.0.0/8,
    any of them with :port, [::1]:port."""
    if entry == "*":
        return True
    name, colon, port = entry.rpartition(":")
    if colon and port.isdigit() and (name.endswith("]") or ":" not in name):
        if int(port) != target.port:
            return False
        entry = name
    entry = entry.strip("[]")
    address = parse_address(target.host)
    if address is None:
        suffix = entry.removeprefix("*").removeprefix(".").removesuffix(".")
        return bool(suffix) and (target.host == suffix or target.host.endswith("." + suffix))
    try:
        return address in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return False
