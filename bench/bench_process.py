"""One running gateway beside a bare uvicorn: memory, start-up time, and what idling costs.

In: options; Linux, for it reads /proc. Out: a table of openbr, the bare uvicorn and their ratio.
Both run at the same time, under the same Python, and get the same requests; the gateway sends
them on to an upstream in a process of its own. The rules that live only here: starts are
interleaved, the first of each apart (it fills caches of the disk); every answer is checked.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from table import Options, Ratio, Row, Table, divide

ROOT = Path(__file__).resolve().parent.parent
ANSWER = "Brasilia is the capital of Brazil."
DEADLINE_S = 60.0
CONNECTIONS = 4
TITLE = "The gateway as a process, beside a bare uvicorn"

# The smallest server on the gateway's own stack. Source, not a function: a function would bring
# this module's imports into the process that is measured.
BARE = f"""
import sys, uvicorn
BODY = {json.dumps({"choices": [{"message": {"role": "assistant", "content": ANSWER}}]})!r}.encode()
HEADERS = [(b"content-type", b"application/json"), (b"content-length", str(len(BODY)).encode())]
async def app(scope, receive, send):
    while scope["type"] == "http" and (await receive()).get("more_body"):
        pass
    await send({{"type": "http.response.start", "status": 200, "headers": HEADERS}})
    await send({{"type": "http.response.body", "body": BODY}})
uvicorn.run(app, port=int(sys.argv[1]), loop="uvloop", http="httptools", lifespan="off",
            log_level="warning", access_log=False)
"""

# An OpenAI-compatible server that answers at once, whole or streamed.
UPSTREAM = f"""
import asyncio, json, sys
ANSWER = {ANSWER!r}
def whole(kind, value):
    return json.dumps({{"id": "c1", "object": "chat.completion" + kind, "created": 1, "model": "m",
                       "choices": [value]}})
FULL = whole("", {{"index": 0, "finish_reason": "stop",
                  "message": {{"role": "assistant", "content": ANSWER}}}})
DELTAS = [whole(".chunk", {{"index": 0, "finish_reason": None, "delta": {{"content": word + " "}}}})
          for word in ANSWER.split(" ")]
DELTAS.append(whole(".chunk", {{"index": 0, "finish_reason": "stop", "delta": {{}}}}))
STREAM = "".join("data: " + one + "\\n\\n" for one in [*DELTAS, "[DONE]"])
MODELS = json.dumps({{"object": "list", "data": [{{"id": "m", "object": "model", "created": 1,
                                                 "owned_by": "bench"}}]}})
def answer(kind, body):
    return ("HTTP/1.1 200 OK\\r\\ncontent-type: " + kind + "\\r\\ncontent-length: "
            + str(len(body)) + "\\r\\n\\r\\n" + body).encode()
class Server(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport, self.buffer = transport, b""
    def data_received(self, data):
        self.buffer += data
        head, end, rest = self.buffer.partition(b"\\r\\n\\r\\n")
        size = 0
        for line in head.lower().split(b"\\r\\n"):
            if line.startswith(b"content-length:"):
                size = int(line[15:])
        if not end or len(rest) < size:
            return
        self.buffer = rest[size:]
        streamed = json.loads(rest[:size]).get("stream") if size else False
        if b"/models" in head.split(b"\\r\\n")[0]:
            self.transport.write(answer("application/json", MODELS))
        elif streamed:
            self.transport.write(answer("text/event-stream", STREAM))
        else:
            self.transport.write(answer("application/json", FULL))
async def main():
    server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", int(sys.argv[1]))
    await server.serve_forever()
asyncio.run(main())
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    rss_mb: float
    pss_mb: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Activity:
    wakeups: int
    cpu_s: float


def read_size(pid: int) -> Size:
    """Resident and proportional memory; MB are 10^6 bytes, as PERF figures are."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    found = {name: int(kb) for name, kb in re.findall(r"^(Rss|Pss): +(\d+) kB", text, re.M)}
    return Size(rss_mb=found["Rss"] * 1024 / 1e6, pss_mb=found["Pss"] * 1024 / 1e6)


def read_activity(pid: int) -> Activity:
    """Voluntary context switches and time on a core, of every thread since its start."""
    wakeups = nanoseconds = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        status = (task / "status").read_text()
        wakeups += int(re.findall(r"^voluntary_ctxt_switches:\s+(\d+)", status, re.M)[0])
        nanoseconds += int((task / "schedstat").read_text().split()[0])
    return Activity(wakeups=wakeups, cpu_s=nanoseconds / 1e9)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """How to start one; the port is appended to the command."""

    command: tuple[str, ...]
    environ: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    pid: int
    port: int
    start_s: float  # from exec to the first 200


def program(source: str) -> Server:
    return Server(command=(sys.executable, "-c", source))


def gateway(folder: Path, upstream_port: int) -> Server:
    """openbr as a user runs it, with one provider, its state in `folder`."""
    file = folder / "config.toml"
    file.write_text(
        f'[[providers]]\nname = "bench"\nbase_url = "http://127.0.0.1:{upstream_port}/v1"\n'
    )
    run = (sys.executable, "-m", "openbr", "run", "--config", str(file), "--port")
    return Server(command=run, environ={"OPENBR_STATE": str(folder / "state")})


@contextmanager
def running(server: Server, path: str = "/healthz") -> Iterator[Running]:
    """Start it, wait for the first 200 on `path`, stop it at the end. If it fails, show its log."""
    port = free_port()
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("OPENBR_", "USE_"))}
    with tempfile.TemporaryFile() as log:
        started = time.monotonic()
        process = subprocess.Popen(
            [*server.command, str(port)],
            cwd=ROOT,
            env={**inherited, **server.environ},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        try:
            wait_for_200(port, path, process)
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


def chat(port: int, count: int, model: str) -> None:
    """`count` chats of 1 KB on one connection, every second one streamed, every answer checked."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    question = "What is the capital of Brazil? " * 30
    for number in range(count):
        body = {
            "model": model,
            "messages": [{"role": "user", "content": f"{number} {question}"}],
            "stream": number % 2 == 1,
        }
        headers = {"content-type": "application/json"}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        response = connection.getresponse()
        text = response.read().decode()
        if response.status != 200 or not all(word in text for word in ANSWER.split(" ")):
            raise RuntimeError(f"chat {number}: {response.status} {text[:300]}")
    connection.close()


def load(port: int, count: int, model: str) -> None:
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        parts = [pool.submit(chat, port, count // CONNECTIONS, model) for _ in range(CONNECTIONS)]
    for part in parts:
        part.result()


def measure_starts(servers: tuple[Server, ...], rounds: int) -> list[list[float]]:
    """Seconds to the first 200 of each server, in turns: the first, then `rounds` more."""
    times: list[list[float]] = [[] for _ in servers]
    for _ in range(rounds + 1):
        for own, server in zip(times, servers, strict=True):
            with running(server) as started:
                own.append(started.start_s)
    return times


def measure_idle(pids: tuple[int, ...], seconds: float) -> list[Activity]:
    """What each did in a stretch of doing nothing. Together: who idles disturbs no other."""
    before = [read_activity(pid) for pid in pids]
    time.sleep(seconds)
    after = [read_activity(pid) for pid in pids]
    return [
        Activity(wakeups=new.wakeups - old.wakeups, cpu_s=new.cpu_s - old.cpu_s)
        for new, old in zip(after, before, strict=True)
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    rounds: int = 7
    chats: int = 200
    settle_s: float = 12.0  # the gateway trims after 10
    idle_s: float = 30.0


QUICK = Plan(rounds=3, chats=40, idle_s=5.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Of openbr and of the bare uvicorn, in this order."""

    starts: list[list[float]]
    ready: list[Size]
    loaded: list[Size]
    trimmed: list[Size]
    idle: list[Activity]


def measure(plan: Plan, say: Callable[[str], None]) -> Measured:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        upstream = stack.enter_context(running(program(UPSTREAM), "/v1/models"))
        servers = (gateway(folder, upstream.port), program(BARE))
        say("process: starting each, in turns")
        starts = measure_starts(servers, plan.rounds)
        pair = [stack.enter_context(running(server)) for server in servers]
        pids = tuple(one.pid for one in pair)
        ready = [read_size(pid) for pid in pids]
        say(f"process: {plan.chats} chats")
        for one in pair:
            load(one.port, plan.chats, "bench/m")
        loaded = [read_size(pid) for pid in pids]
        time.sleep(plan.settle_s)
        say(f"process: idle for {plan.idle_s:g} s")
        idle = measure_idle(pids, plan.idle_s)
        trimmed = [read_size(pid) for pid in pids]
    return Measured(starts=starts, ready=ready, loaded=loaded, trimmed=trimmed, idle=idle)


def row(name: str, values: Iterable[float]) -> Row:
    ours, bare = values
    return Row(name=name, cells=(ours, bare, divide(ours, bare)))


def tabulate(found: Measured, plan: Plan) -> Table:
    sizes = {
        "ready, nothing used yet": found.ready,
        f"after {plan.chats} chats": found.loaded,
        "after them and the idle trim": found.trimmed,
    }
    starts = [median(own[1:]) for own in found.starts]
    wakeups = [one.wakeups / plan.idle_s for one in found.idle]
    cpu = [one.cpu_s / plan.idle_s * 100 for one in found.idle]
    rows = [
        row("exec -> first 200 on /healthz, s", starts),
        row("the same, first start ever, s", (own[0] for own in found.starts)),
        *(row(f"RSS {when}, MB", (one.rss_mb for one in pair)) for when, pair in sizes.items()),
        *(row(f"PSS {when}, MB", (one.pss_mb for one in pair)) for when, pair in sizes.items()),
        row("voluntary wakeups/s, idle", wakeups),
        row("CPU %, idle", cpu),
    ]
    ready, trimmed = found.ready[0].rss_mb, found.trimmed[0].rss_mb
    return Table(
        title=TITLE,
        unit=f"median of {plan.rounds} starts, {plan.idle_s:g} s idle",
        columns=("openbr", "bare uvicorn", "ratio"),
        rows=rows,
        ratios=[
            at_most("start, to bare uvicorn", divide(*starts), 4, "x"),
            at_most("RSS, ready", ready, 41, " MB"),
            at_most("RSS, ready, to bare uvicorn", divide(ready, found.ready[1].rss_mb), None, "x"),
            at_most("RSS, after chats and trim", trimmed, 45, " MB"),
            # What rounds to 0.0 is nothing.
            at_most("wakeups, idle", wakeups[0], 0.04, "/s"),
            at_most("CPU, idle", cpu[0], 0.04, " %"),
        ],
    )


def at_most(name: str, value: float | None, target: float | None, unit: str) -> Ratio:
    """Only what is measured against the bare uvicorn holds on another machine."""
    guarded = unit == "x"
    return Ratio(name=name, value=value, wish="<=", target=target, unit=unit, is_guarded=guarded)


def run(options: Options) -> list[Table]:
    plan = QUICK if options.quick else Plan()
    if not Path("/proc/self/smaps_rollup").exists():
        note = "not measured: it reads /proc, as Linux has it"
        return [Table(title=TITLE, unit="", columns=(), rows=[], notes=[note])]
    return [tabulate(measure(plan, options.say), plan)]
