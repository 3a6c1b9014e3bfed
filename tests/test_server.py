"""The whole gateway as a process: what it says, what it costs when idle, how it ends."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from gateway_process import GatewayProcess, free_port

TOML = "[local]\nenabled = false\n"
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def refused(folder: Path, *flags: str, toml: str = TOML) -> str:
    """What `openbr run` says when it cannot start: one line, exit code 2."""
    config = folder / "config.toml"
    config.write_text(toml)
    env = {**os.environ, "OPENBR_STATE": str(folder / "state"), "HOME": str(folder)}
    done = subprocess.run(
        [sys.executable, "-m", "openbr", "run", "--config", str(config), *flags],
        env=env,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("openbr: ") and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def add_key(folder: Path, *flags: str) -> str:
    env = {**os.environ, "OPENBR_STATE": str(folder / "state"), "HOME": str(folder)}
    command = [sys.executable, "-m", "openbr", "keys", "add", "test", *flags]
    return subprocess.run(
        command, env=env, check=True, capture_output=True, text=True
    ).stdout.strip()


def until(is_so: Callable[[], object], deadline_s: float = 15.0) -> None:
    deadline = time.monotonic() + deadline_s
    while not is_so():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


# refusals


def test_a_port_in_use(tmp_path: Path) -> None:
    with socket.socket() as owner:
        owner.bind(("127.0.0.1", 0))
        owner.listen()
        port = owner.getsockname()[1]
        said = refused(tmp_path, "--port", str(port))
    assert f"127.0.0.1:{port} is in use by " in said
    assert f"(process {os.getpid()})" in said and "--port" in said


def test_two_gateways_on_one_port(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    with GatewayProcess(tmp_path, TOML) as gateway:
        assert gateway.process is not None
        said = refused(tmp_path / "b", "--port", str(gateway.port))
    assert f"in use by openbr (process {gateway.process.pid})" in said


@pytest.mark.parametrize(
    "flags, said",
    [
        (("--port", "http"), "--port = 'http': must be a whole number from 0 to 65535"),
        (("--bind", "everywhere"), '--bind = \'everywhere\': must be "loopback", "lan" or'),
        (("--bind", "192.0.2.1"), "openbr keys add NAME"),
        (("--bind", "lan"), "openbr keys add NAME"),
        (("--bind", "0.0.0.0"), "openbr keys add NAME"),
        (("--tls-cert", "a.pem"), "--tls-cert needs --tls-key"),
        (("--tls-cert", "a.pem", "--tls-key", "b.pem"), "a.pem: the TLS certificate cannot be"),
        (("--log-level", "loud"), "no such --log-level: loud"),
        (("--prot", "1"), "did you mean --port?"),
    ],
)
def test_flags_that_cannot_be(tmp_path: Path, flags: tuple[str, ...], said: str) -> None:
    assert said in refused(tmp_path, *flags)


def test_an_address_of_another_machine(tmp_path: Path) -> None:
    add_key(tmp_path)
    assert "not an address of this machine" in refused(tmp_path, "--bind", "192.0.2.1")


def test_a_store_that_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    store = tmp_path / "state" / "openbr.sqlite3"
    store.write_text("this is no database, whatever its name says " * 50)
    said = refused(tmp_path, "--port", "0")
    assert str(store) in said and "damaged" in said


def test_a_bad_config_names_its_line(tmp_path: Path) -> None:
    said = refused(tmp_path, toml="[server]\nprot = 1\n")
    assert "config.toml:2: server.prot: no such key" in said


# what it says


def test_the_start_is_one_line_in_a_log(tmp_path: Path) -> None:
    toml = TOML + '[[providers]]\nname = "box"\nbase_url = "http://127.0.0.1:9/v1"\n'
    with GatewayProcess(tmp_path, toml) as gateway:
        for path in ("/healthz", "/readyz"):
            ask(gateway.port, path)
        assert gateway.stop() == 0
        said = gateway.log()
    (line,) = [one for one in said.splitlines() if " on http" in one]
    assert gateway.url in line and "providers: 1: box" in line
    assert "keys: not needed" in line and str(gateway.state) in line
    assert "native: cache " in line
    assert "/healthz" not in said, "requests are not logged unless asked for"
    assert "Traceback" not in said


def test_requests_are_logged_at_debug(tmp_path: Path) -> None:
    with GatewayProcess(tmp_path, TOML, "--log-level", "debug") as gateway:
        ask(gateway.port, "/healthz")
        until(lambda: "GET /healthz" in gateway.log())


def test_a_banner_on_a_terminal(tmp_path: Path) -> None:
    pty = pytest.importorskip("pty")
    config = tmp_path / "config.toml"
    config.write_text(TOML)
    port = free_port()
    env = {**os.environ, "OPENBR_STATE": str(tmp_path / "state"), "HOME": str(tmp_path)}
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "openbr", "run", "--config", str(config), "--port", str(port)]
    process = subprocess.Popen(command, env=env, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    said = b""
    while b"Ctrl-C" not in said:
        said += os.read(ours, 4096)
    process.send_signal(signal.SIGINT)
    assert process.wait(15) == 0
    os.close(ours)
    text = said.decode()
    assert re.search(rf"open +http://127\.0\.0\.1:{port}/ui\b", text)
    assert re.search(r"cache +(native|pure)", text)
    assert str(tmp_path / "state") in text and str(config) in text


# https, and other machines


def ask(
    port: int, path: str, context: ssl.SSLContext | None = None, **headers: str
) -> tuple[int, bytes]:
    if context is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    else:
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=10, context=context)
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


class HttpsGateway(GatewayProcess):
    """Ready is what /readyz says over TLS; trust is the certificate it made."""

    @property
    def context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.state / "tls" / "cert.pem"))

    def _wait_ready(self) -> None:
        def is_ready() -> bool:
            assert self.process is not None and self.process.poll() is None, self.log()
            try:
                return ask(self.port, "/readyz", self.context)[0] == 200
            except OSError:
                return False

        until(is_ready)


def test_https_with_a_certificate_of_its_own(tmp_path: Path) -> None:
    with HttpsGateway(tmp_path, TOML, "--tls") as gateway:
        assert ask(gateway.port, "/v1/models", gateway.context)[0] == 200
        assert (gateway.state / "tls" / "key.pem").stat().st_mode & 0o777 == 0o600
        cert = (gateway.state / "tls" / "cert.pem").read_text()
        with pytest.raises((ConnectionError, http.client.HTTPException)):
            ask(gateway.port, "/healthz")
        assert ask(gateway.port, "/healthz", gateway.context)[0] == 200
        assert gateway.stop() == 0
        fingerprint = re.search(r"certificate sha256: ([0-9A-F:]{95})", gateway.log())
        assert fingerprint
        gateway.start()
        assert (gateway.state / "tls" / "cert.pem").read_text() == cert
        assert gateway.log().count(fingerprint[1]) == 2
        assert "Traceback" not in gateway.log()


def test_other_machines_need_the_key(tmp_path: Path) -> None:
    key = add_key(tmp_path)
    assert key.startswith("sk-openbr-")
    with GatewayProcess(tmp_path, TOML, "--bind", "lan") as gateway:
        assert ask(gateway.port, "/v1/models")[0] == 401
        assert ask(gateway.port, "/v1/models", Authorization=f"Bearer {key}")[0] == 200
        from openbr.server.sockets import lan_addresses

        for address in lan_addresses():
            assert f"{address}]" in gateway.log() or f"{address}:" in gateway.log()
        assert "keys: required" in gateway.log()
        assert key not in gateway.log()


# the end


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_0(tmp_path: Path, number: int) -> None:
    with GatewayProcess(tmp_path, TOML) as gateway:
        assert gateway.stop(number) == 0
        assert "openbr has ended" in gateway.log()
        assert "Traceback" not in gateway.log()
        # The port is free at once.
        gateway.start()
        assert gateway.stop(number) == 0


HANG = """
import asyncio, sys
from openbr.server.lifecycle import Server
from openbr.server.sockets import open_sockets

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        for what in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{what}.complete"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"on", "more_body": True})
    await asyncio.Event().wait()

async def main():
    sockets = open_sockets("127.0.0.1", 0)
    port = sockets[0].getsockname()[1]
    server = Server(app, drain_s=60, on_started=lambda: print(port, flush=True),
                    on_drain=lambda: print("draining", flush=True))
    await server.serve(sockets)
    print("ended", flush=True)

asyncio.run(main())
"""


def test_the_second_ctrl_c_does_not_wait(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HANG], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        port = int(process.stdout.readline())
        with socket.create_connection(("127.0.0.1", port), 10) as client:
            client.sendall(b"GET /v1/x HTTP/1.1\r\nHost: a\r\n\r\n")
            assert b"200 OK" in client.recv(100)
            process.send_signal(signal.SIGTERM)
            assert process.stdout.readline() == "draining\n"
            assert process.poll() is None
            process.send_signal(signal.SIGINT)
            assert process.stdout.readline() == "ended\n"
            assert process.wait(10) == 0


# at rest


@linux
def test_nothing_happens_while_nobody_asks(tmp_path: Path) -> None:
    """Every thread sleeps: no wake-up in a window that begins after the trim of the heap."""

    def wakeups() -> int:
        assert gateway.process is not None
        total = 0
        for task in Path(f"/proc/{gateway.process.pid}/task").iterdir():
            status = (task / "status").read_text()
            total += int(re.search(r"^voluntary_ctxt_switches:\s+(\d+)", status, re.M)[1])  # type: ignore[index]
        return total

    with GatewayProcess(tmp_path, TOML) as gateway:
        ask(gateway.port, "/v1/models")
        settled = time.monotonic() + 30

        def is_quiet() -> bool:
            before = wakeups()
            time.sleep(4.0)  # the thing measured is that time passes and nothing else
            assert time.monotonic() < settled, "it never came to rest"
            return wakeups() == before

        until(is_quiet, 40.0)
        assert ask(gateway.port, "/healthz")[0] == 200


@linux
def test_one_heap_for_all_threads_and_it_is_given_back(tmp_path: Path) -> None:
    source = """
import threading
from openbr.server import memory
memory.keep_one_arena()

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

def churn():
    kept = [bytes(200_000 + i) for i in range(60)] + [bytes(3_000) for _ in range(3000)]
    del kept[::2]

before = resident()
for _ in range(4):
    threads = [threading.Thread(target=churn) for _ in range(16)]
    for one in threads: one.start()
    for one in threads: one.join()
memory.trim()
print((resident() - before) // 1024)
"""
    done = subprocess.run(
        [sys.executable, "-c", source], check=True, capture_output=True, text=True
    )
    assert int(done.stdout) < 12_000


def test_health_is_json(tmp_path: Path) -> None:
    with GatewayProcess(tmp_path, TOML) as gateway:
        status, body = ask(gateway.port, "/readyz")
        assert (status, json.loads(body)) == (200, {"status": "ok", "reasons": []})
