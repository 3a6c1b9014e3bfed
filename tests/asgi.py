"""Calls an ASGI application in the loop of the test: no socket, no timing, no streaming.

For what an answer says. When it says it, and what happens if somebody leaves, is tested over
real sockets.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass
class Response:
    status: int
    headers: dict[str, str]
    body: bytes
    complete: bool

    def json(self) -> Any:
        return json.loads(self.body)


async def call(
    app: Any,
    method: str,
    path: str,
    *,
    body: bytes | str | Mapping[str, Any] | Sequence[bytes] = b"",
    headers: Mapping[str, str] | None = None,
    raw_headers: Sequence[tuple[bytes, bytes]] = (),
    server: str = "127.0.0.1",
    client: str = "127.0.0.1",
) -> Response:
    """One request. A mapping is sent as JSON, a sequence of bytes in as many pieces."""
    if isinstance(body, Mapping):
        body = json.dumps(body)
    if isinstance(body, str):
        body = body.encode()
    pieces = [body] if isinstance(body, bytes) else list(body)
    path, _, query = path.partition("?")
    sent = {"host": "127.0.0.1:18789", **{k.lower(): v for k, v in (headers or {}).items()}}
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(k.encode("latin-1"), v.encode("latin-1")) for k, v in sent.items()]
        + list(raw_headers),
        "server": (server, 18789),
        "client": (client, 50000),
        "state": {},
    }
    messages: list[Any] = []

    async def receive() -> Any:
        if pieces:
            piece = pieces.pop(0)
            return {"type": "http.request", "body": piece, "more_body": bool(pieces)}
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start" and messages:
            raise RuntimeError("the answer had begun")
        messages.append(message)

    await app(scope, receive, send)
    start = messages[0]
    return Response(
        status=start["status"],
        headers={k.decode(): v.decode("latin-1") for k, v in start["headers"]},
        body=b"".join(m.get("body", b"") for m in messages[1:]),
        complete=len(messages) > 1 and not messages[-1].get("more_body"),
    )
