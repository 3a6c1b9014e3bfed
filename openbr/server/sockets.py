"""Listening sockets: who can reach the gateway, decided before anything else runs.

In: a bind mode and a port. Out: sockets that listen already, so that early callers wait instead of
being refused. The rules that live only here: a bind that fails is an error that says what to do,
and never becomes a wider one; both loopback addresses have the same port or neither has it.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket
import sys
from collections.abc import Sequence

from openbr.errors import ConfigError

BACKLOG = 2048
_ANY_PORT_TRIES = 20
_NO_SUCH_ADDRESS = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT)


def is_loopback(bind: str) -> bool:
    return bind == "loopback" or (bind != "lan" and ipaddress.ip_address(bind).is_loopback)


def open_sockets(bind: str, port: int) -> list[socket.socket]:
    """Listen as `server.bind` says, IPv4 first. Raises: ConfigError."""
    if bind == "loopback":
        addresses: tuple[str, ...] = ("127.0.0.1", "::1")
    elif bind == "lan":
        addresses = ("0.0.0.0", "::")
    else:
        addresses = (bind,)
    for attempt in range(_ANY_PORT_TRIES):
        try:
            return _open_all(addresses, port)
        except OSError as exc:
            # The free port of one address family may be taken in the other.
            if port == 0 and exc.errno == errno.EADDRINUSE and attempt < _ANY_PORT_TRIES - 1:
                continue
            raise _refusal(exc, port) from exc
    raise AssertionError("the last attempt returns or raises")


def _open_all(addresses: Sequence[str], port: int) -> list[socket.socket]:
    with contextlib.ExitStack() as undo:
        opened: list[socket.socket] = []
        for address in addresses:
            try:
                one = _open(address, port)
            except OSError as exc:
                if opened and exc.errno in _NO_SUCH_ADDRESS:
                    continue  # a machine without IPv6
                exc.filename = address
                raise
            undo.callback(one.close)
            opened.append(one)
            port = one.getsockname()[1]
        undo.pop_all()
        return opened


def _open(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    # The resolver knows the number of a zone (fe80::1%eth0), which bind() needs.
    place = socket.getaddrinfo(address, port, family, socket.SOCK_STREAM)[0][4]
    one = socket.socket(family, socket.SOCK_STREAM)
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # Else "::" would take the IPv4 port as well, with callers' addresses in IPv6 form.
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.bind(place)
        one.listen(BACKLOG)
        one.setblocking(False)
    except BaseException:
        one.close()
        raise
    return one


def _refusal(exc: OSError, port: int) -> ConfigError:
    address = str(exc.filename)
    place = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    if exc.errno == errno.EADDRINUSE:
        return ConfigError(
            f"{place} is in use by {_owner(port)}; end it, or take another port with --port"
        )
    if exc.errno in (errno.EACCES, errno.EPERM):
        return ConfigError(
            f"{place}: this user may not listen there; take a port from 1024 up with --port"
        )
    if exc.errno in _NO_SUCH_ADDRESS:
        mine = ", ".join(lan_addresses()) or "none"
        return ConfigError(
            f"{address} is not an address of this machine (it has: {mine}); "
            'change --bind, or use "loopback" or "lan"'
        )
    return ConfigError(f"{place}: cannot listen there: {exc.strerror or exc}; see --bind, --port")


def _owner(port: int) -> str:
    """The process that listens on a port, as far as this user may know."""
    import psutil

    unknown = "another program"
    with contextlib.suppress(psutil.Error, OSError):
        for one in psutil.net_connections(kind="tcp"):
            if one.status == psutil.CONN_LISTEN and one.laddr and one.laddr.port == port:
                if one.pid is None:
                    unknown = "a program of another user"
                    continue
                process = psutil.Process(one.pid)
                words = process.cmdline()[:4]  # no further: arguments may hold secrets
                name = "openbr" if any("openbr" in word for word in words) else process.name()
                return f"{name} (process {one.pid})"
    return unknown


def lan_addresses() -> list[str]:
    """The addresses by which other machines may reach this one, IPv4 first."""
    import psutil

    found = []
    for addresses in psutil.net_if_addrs().values():
        for one in addresses:
            if one.family in (socket.AF_INET, socket.AF_INET6):
                address = ipaddress.ip_address(one.address.partition("%")[0])
                if not address.is_loopback and not address.is_link_local:
                    found.append(address)
    return [str(address) for address in sorted(found, key=lambda a: (a.version, int(a)))]


def allow_descriptors(wished: int = 65536) -> int:
    """Raise this process's limit of open files as far as it may; the limit there is now."""
    if sys.platform == "win32":
        return 512
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    best = wished if hard == resource.RLIM_INFINITY else min(wished, hard)
    if soft != resource.RLIM_INFINITY and soft < best:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (best, hard))
            soft = best
    return wished if soft == resource.RLIM_INFINITY else soft
