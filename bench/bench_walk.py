"""The walk of one request through the rooms, without a socket: where the microseconds go.

In: options. Out: microseconds of a chat of 1 KB from the app's edge to its last message, the
upstream answering at once: not cached, a miss, a hit; beside what reading and writing the two
bodies costs with json. The rule that lives only here: server, sockets and the upstream's connection
are left out, so that a change of a microsecond shows on a busy machine too.
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from table import Options, Ratio, Row, Table, divide
from timing import Case, measure

CALLS = 200
BODY = b'{"model":"bench/fast","messages":[{"role":"user","content":"%b"}],"temperature":%b}'
CONFIG = """
[local]
enabled = false
[[providers]]
name = "bench"
models = ["fast"]
base_url = "http://127.0.0.1:9/v1"
"""
ANSWER = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_790_000_000,
        "model": "fast",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Brasilia. " * 12},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 24, "completion_tokens": 12, "total_tokens": 36},
    }
).encode()
HEADERS = [
    (b"host", b"127.0.0.1:18789"),
    (b"content-type", b"application/json"),
    (b"authorization", b"Bearer unused"),
    (b"user-agent", b"OpenAI/Python 3.54.0"),
    (b"accept", b"application/json"),
]


class Upstream:
    """Answers at once."""

    status = 200
    headers: tuple[()] = ()

    async def request(self, *_: object) -> Upstream:
        return self

    def take_whole(self, _: int) -> bytes:
        return ANSWER


class Walks:
    """Requests to one app, each driven to its end by hand: nothing in it waits."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.numbers = iter(range(10**9))
        self.sent: dict[str, Any] = {}

    async def _send(self, message: dict[str, Any]) -> None:
        self.sent = message

    def ask(self, temperature: str, *, is_new: bool) -> bytes:
        number = next(self.numbers) if is_new else 0
        text = b"%09d%b" % (number, b"x" * 900)
        body = BODY % (text, temperature.encode())

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": "POST",
            "path": "/v1/chat/completions",
            "headers": HEADERS,
            "server": ("127.0.0.1", 18789),
            "client": ("127.0.0.1", 50000),
        }
        work = self.app(scope, receive, self._send)
        try:
            work.send(None)
        except StopIteration:
            answer: bytes = self.sent["body"]
            return answer
        raise AssertionError("the walk waited for something")

    def many(self, temperature: str, *, is_new: bool) -> None:
        for _ in range(CALLS):
            self.ask(temperature, is_new=is_new)


def by_json() -> None:
    """What a gateway does at least that reads both bodies whole, and changes a name in each."""
    for number in range(CALLS):
        body = json.dumps({"model": "bench/fast", "n": number, "content": "x" * 900}).encode()
        request = json.loads(body)
        request["model"] = "fast"
        json.dumps(request).encode()
        answer = json.loads(ANSWER)
        answer["model"] = "bench/fast"
        json.dumps(answer).encode()


def run(options: Options) -> list[Table]:
    return [asyncio.run(walks(options))]


async def walks(options: Options) -> Table:
    from openbr.app import create_app
    from openbr.config import Config

    options.say("walk")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "config.toml")
        path.write_text(CONFIG)
        environ = {**os.environ, "OPENBR_STATE": str(Path(folder, "state"))}
        app = create_app(Config.load(path, environ))
        app.upstream.request = Upstream().request  # type: ignore[method-assign,assignment]
        one = Walks(app)
        expected = {**json.loads(ANSWER), "model": "bench/fast"}
        for temperature, is_new in (("0.7", False), ("0", True), ("0", False), ("0", False)):
            assert json.loads(one.ask(temperature, is_new=is_new)) == expected
        cases = {
            "not cached": Case(run=lambda: one.many("0.7", is_new=False), calls=CALLS),
            "miss": Case(run=lambda: one.many("0", is_new=True), calls=CALLS),
            "hit": Case(run=lambda: one.many("0", is_new=False), calls=CALLS),
            "both bodies by json": Case(run=by_json, calls=CALLS),
        }
        times = measure(cases, options.rounds(60), options.least_s)
        await app.close()
    plain = times["both bodies by json"]
    table = Table(
        title="The walk of a chat of 1 KB, without sockets",
        unit="µs",
        columns=("a request",),
        rows=[Row(name=name, cells=(time / 1000,)) for name, time in times.items()],
    )
    for name in ("not cached", "miss", "hit"):
        table.ratios.append(
            Ratio(name=f"both bodies by json / walk, {name}", value=divide(plain, times[name]))
        )
    return table
