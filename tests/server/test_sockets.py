"""Who can reach the gateway, and what is said when that cannot be had."""

from __future__ import annotations

import errno
import ipaddress
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from openbr.errors import ConfigError
from openbr.server import sockets


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
        return True
    except OSError:
        return False


@pytest.fixture
def opened() -> Iterator[list[socket.socket]]:
    found: list[socket.socket] = []
    yield found
    for one in found:
        one.close()


def test_loopback_is_both_addresses_on_one_port(opened: list[socket.socket]) -> None:
    opened += sockets.open_sockets("loopback", 0)
    names = [one.getsockname() for one in opened]
    assert [name[0] for name in names] == (["127.0.0.1", "::1"] if has_ipv6() else ["127.0.0.1"])
    assert len({name[1] for name in names}) == 1
    assert names[0][1] > 0
    for name in names:
        socket.create_connection(name[:2], 5).close()


def test_lan_is_every_address(opened: list[socket.socket]) -> None:
    opened += sockets.open_sockets("lan", 0)
    assert [one.getsockname()[0] for one in opened] == (
        ["0.0.0.0", "::"] if has_ipv6() else ["0.0.0.0"]
    )
    port = opened[0].getsockname()[1]
    for address in ["127.0.0.1", *sockets.lan_addresses()]:
        socket.create_connection((address, port), 5).close()


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.7", "::1"])
def test_one_address(opened: list[socket.socket], address: str) -> None:
    if ":" in address and not has_ipv6():
        pytest.skip("no IPv6 here")
    opened += sockets.open_sockets(address, 0)
    assert [one.getsockname()[0] for one in opened] == [address]


@pytest.mark.parametrize(
    "bind, answer",
    [
        ("loopback", True),
        ("127.0.0.1", True),
        ("127.0.0.7", True),
        ("::1", True),
        ("lan", False),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.5", False),
    ],
)
def test_is_loopback(bind: str, answer: bool) -> None:
    assert sockets.is_loopback(bind) is answer


LISTEN = """
import socket, sys
one = socket.socket({family})
one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
one.bind(({address!r}, 0))
one.listen()
print(one.getsockname()[1], flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize(
    "address, bind",
    [("127.0.0.1", "loopback"), ("::1", "loopback"), ("127.0.0.1", "127.0.0.1"), ("", "lan")],
)
def test_a_port_in_use_names_its_owner_and_the_flag(address: str, bind: str) -> None:
    if ":" in address and not has_ipv6():
        pytest.skip("no IPv6 here")
    family = "socket.AF_INET6" if ":" in address else "socket.AF_INET"
    source = LISTEN.format(family=family, address=address)
    with subprocess.Popen(
        [sys.executable, "-c", source], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdin and owner.stdout
        port = int(owner.stdout.readline())
        with pytest.raises(ConfigError) as caught:
            sockets.open_sockets(bind, port)
        owner.stdin.close()
        owner.wait(10)
    message = str(caught.value)
    assert f":{port} is in use by python" in message
    assert f"(process {owner.pid})" in message
    assert "--port" in message and "\n" not in message
    # Nothing stays behind: the free half was given back.
    for one in sockets.open_sockets(bind, port):
        one.close()


def test_another_openbr_is_called_so(opened: list[socket.socket]) -> None:
    source = LISTEN.format(family="socket.AF_INET", address="127.0.0.1")
    with subprocess.Popen(
        [sys.executable, "-c", source, "openbr"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as owner:
        assert owner.stdin and owner.stdout
        port = int(owner.stdout.readline())
        with pytest.raises(ConfigError, match=rf"in use by openbr \(process {owner.pid}\)"):
            sockets.open_sockets("loopback", port)
        owner.stdin.close()


def test_an_address_of_another_machine() -> None:
    with pytest.raises(ConfigError) as caught:
        sockets.open_sockets("192.0.2.1", 0)
    message = str(caught.value)
    assert "192.0.2.1 is not an address of this machine" in message
    for address in sockets.lan_addresses():
        assert address in message


def test_a_port_that_this_user_may_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: socket.socket, place: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    class Socket(socket.socket):
        bind = refuse

    monkeypatch.setattr(socket, "socket", Socket)
    with pytest.raises(ConfigError, match=r"127\.0\.0\.1:80: this user may not listen there.*--p"):
        sockets.open_sockets("loopback", 80)


def test_a_machine_without_ipv6(
    monkeypatch: pytest.MonkeyPatch, opened: list[socket.socket]
) -> None:
    real = socket.socket.bind

    def bind(self: socket.socket, place: tuple[str, int]) -> None:
        if ":" in place[0]:
            raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
        real(self, place)

    class Socket(socket.socket):
        pass

    Socket.bind = bind  # type: ignore[assignment]
    monkeypatch.setattr(socket, "socket", Socket)
    opened += sockets.open_sockets("loopback", 0)
    assert [one.getsockname()[0] for one in opened] == ["127.0.0.1"]


def test_lan_addresses_can_be_reached_from_elsewhere() -> None:
    for address in map(ipaddress.ip_address, sockets.lan_addresses()):
        assert not address.is_loopback and not address.is_link_local


def test_the_limit_of_descriptors_is_raised_as_far_as_it_may() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        low = 256
        resource.setrlimit(resource.RLIMIT_NOFILE, (low, before[1]))
        wished = low + 100
        assert sockets.allow_descriptors(wished) == min(wished, before[1])
        assert sockets.allow_descriptors(1) >= 1, "it never lowers the limit"
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == min(wished, before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
