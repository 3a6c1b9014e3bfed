"""A server in a process of its own: started as a user starts it, pinned, read, stopped.

In: a command that takes a port. Out: its process and port, and what it costs by the system's own
books. The rules that live only here: a start counts until the first 200, asked over raw sockets; a
process that fails shows its log; CPU time is the whole process's, in nanoseconds.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BENCH = Path(__file__).resolve().parent
DEADLINE_S = 60.0
# What would change how a server works, or send its requests around.
NOT_INHERITED = re.compile(r"OPENBR_|USE_|.*_proxy$", re.IGNORECASE)

# The smallest server on the gateway's own stack. Source, not a function: a function would bring
# this module's imports into the process that is measured.
_BARE = """
import sys, uvicorn
BODY = {body!r}
HEADERS = [(b"content-type", b"application/json"), (b"content-length", str(len(BODY)).encode())]
async def app(scope, receive, send):
    while scope["type"] == "http" and (await receive()).get("more_body"):
        pass
    await send({{"type": "http.response.start", "status": 200, "headers": HEADERS}})
    await send({{"type": "http.response.body", "body": BODY}})
uvicorn.run(app, port=int(sys.argv[1]), loop="uvloop", http="httptools", lifespan="off",
            log_level="warning", access_log=False)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """How to start one. Its port takes the place of `{port}` in the command's last word, or is one
    word more. `path` answers 200 when it is ready."""

    command: tuple[str, ...]
    environ: dict[str, str] = field(default_factory=dict)
    path: str = "/healthz"

    def on(self, port: int) -> list[str]:
        *words, last = self.command
        if "{port}" in last:
            return [*words, last.replace("{port}", str(port))]
        return [*words, last, str(port)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    pid: int
    port: int
    start_s: float  # from exec to the first 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    rss_mb: float
    pss_mb: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Activity:
    wakeups: int
    cpu_s: float


def program(source: str) -> Server:
    return Server(command=(sys.executable, "-c", source))


def bare_uvicorn(body: bytes) -> Server:
    """uvicorn with uvloop and httptools that gives one fixed answer."""
    return program(_BARE.format(body=body))


def gateway(folder: Path, upstream_port: int, toml: str = "") -> Server:
    """openbr as a user runs it, with one provider, its state in `folder`."""
    file = folder / "config.toml"
    file.write_text(
        f'{toml}\n[[providers]]\nname = "bench"\nbase_url = "http://127.0.0.1:{upstream_port}/v1"\n'
    )
    run = (sys.executable, "-m", "openbr", "run", "--config", str(file), "--port")
    return Server(command=run, environ={"OPENBR_STATE": str(folder / "state")})


STATS = "/stats"


# The upstream: gateway_upstream.c, or the same in Python where there is no compiler


def python_upstream() -> Server:
    command = (sys.executable, str(BENCH / "gateway_upstream.py"))
    return Server(command=command, path=STATS)


def compiled_upstream(folder: Path) -> Server | None:
    """Compiled into `folder`. None: no compiler, or not a system that has epoll."""
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None or not sys.platform.startswith("linux"):
        return None
    program = folder / "gateway_upstream"
    command = [compiler, "-O2", "-o", str(program), str(BENCH / "gateway_upstream.c")]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{compiler} failed:\n{done.stderr}")
    return Server(command=(str(program),), path=STATS)


def make_upstream(folder: Path) -> Server:
    """The faster one of the two that can be had."""
    return compiled_upstream(folder) or python_upstream()


def count_requests(port: int) -> int:
    """How many chats have arrived at an upstream."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", STATS)
        return int(json.loads(connection.getresponse().read())["requests"])
    finally:
        connection.close()


def pass_through(upstream_port: int, *flags: str) -> Server:
    script = str(BENCH / "pass_through.py")
    return Server(command=(sys.executable, script, *flags, str(upstream_port)), path=STATS)


# Starting


@contextmanager
def running(server: Server, port: int = 0) -> Iterator[Running]:
    """Start it, wait for its first 200, stop it at the end. If it fails, show its log. `port` 0:
    any free one."""
    port = port or free_port()
    inherited = {k: v for k, v in os.environ.items() if not NOT_INHERITED.match(k)}
    with tempfile.TemporaryFile() as log:
        started = time.monotonic()
        process = subprocess.Popen(
            server.on(port),
            cwd=ROOT,
            env={**inherited, **server.environ},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        try:
            wait_for_200(port, server.path, process)
            yield Running(pid=process.pid, port=port, start_s=time.monotonic() - started)
        except BaseException:
            log.seek(0)
            sys.stderr.write(log.read()[-4000:].decode(errors="replace"))
            raise
        finally:
            stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def wait_for_200(port: int, path: str, process: subprocess.Popen[bytes]) -> None:
    """Return at the first 200. Raw sockets: a client library's own start must not count."""
    request = f"GET {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nconnection: close\r\n\r\n"
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"it ended with {process.returncode} before it was ready")
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
                connection.sendall(request.encode())
                if connection.recv(12).endswith(b" 200"):
                    return
        except OSError:
            pass
        time.sleep(0.001)
    raise RuntimeError(f"no 200 on {path} in {DEADLINE_S:g} s")


# What it costs


def read_size(pid: int) -> Size:
    """Resident and proportional memory; MB are 10^6 bytes, as PERF figures are."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    found = {name: int(kb) for name, kb in re.findall(r"^(Rss|Pss): +(\d+) kB", text, re.M)}
    return Size(rss_mb=found["Rss"] * 1024 / 1e6, pss_mb=found["Pss"] * 1024 / 1e6)


def read_cpu_ns(pid: int) -> int:
    """Time on a core, user and system, of all threads that are and were. Linux: the clock of a
    process is named by the complement of its id; getrusage and /proc/PID/stat count in 10 ms."""
    return time.clock_gettime_ns((~pid << 3) | 2)


def read_activity(pid: int) -> Activity:
    """Voluntary context switches and time on a core, of every thread since its start."""
    wakeups = nanoseconds = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        status = (task / "status").read_text()
        wakeups += int(re.findall(r"^voluntary_ctxt_switches:\s+(\d+)", status, re.M)[0])
        nanoseconds += int((task / "schedstat").read_text().split()[0])
    return Activity(wakeups=wakeups, cpu_s=nanoseconds / 1e9)


# Cores


def pin(pid: int, core: int | None) -> None:
    """Keep all threads of a process on one core; those it starts later inherit it."""
    if core is not None:
        for task in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setaffinity(int(task.name), {core})


@contextmanager
def two_cores() -> Iterator[tuple[int | None, int | None]]:
    """(the core of what is measured, the core of upstream and load); (None, None) if there are not
    two. This process, and so what it starts, stays on the second meanwhile and goes before others
    where it may: who is interrupted finds its caches cold, so that its own CPU time grows."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if len(cores) < 2:
        yield None, None
        return
    os.sched_setaffinity(0, {cores[1]})
    try:
        with going_first():
            yield cores[0], cores[1]
    finally:
        os.sched_setaffinity(0, cores)


@contextmanager
def going_first() -> Iterator[None]:
    """Where it is allowed. Linux shares the processor between sessions first (autogroups), then
    inside of them, so both are told."""
    group = Path("/proc/self/autogroup")
    own_before, group_before = os.getpriority(os.PRIO_PROCESS, 0), ""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, -15)
    with suppress(OSError):
        before = group.read_text().split()[-1]
        if before != "-15":  # else another run in this session has done it, and undoes it
            group.write_text("-15")
            group_before = before
    try:
        yield
    finally:
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, own_before)
        if group_before:
            group.write_text(group_before)
