"""HTTP around the dialects: bodies within their limits, JSON answers, the error envelope.

In: an ASGI scope, `receive` and `send`. Out: a whole body, or an answer with its length. The
rules that live only here: sizes are counted as they arrive, an encoding is refused rather than
unpacked, every error has OpenAI's envelope with all four keys and an x-request-id, and a client
is told not to retry what our own chain has already retried.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any

import msgspec

from openbr.auth import Head
from openbr.errors import (
    MethodNotAllowedError,
    OpenbrError,
    RequestError,
    TooLargeError,
    UnsupportedEncodingError,
    UpstreamError,
)
from openbr.records import Caller
from openbr.stream import CLIENT_GONE, Send

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
encode_json = msgspec.json.Encoder().encode

JSON = (b"content-type", b"application/json")
_ids = itertools.count(1)
_run = secrets.token_hex(5)


@dataclass(slots=True)
class Exchange:
    """One request and the way to answer it."""

    scope: Scope
    receive: Receive
    send: Send
    head: Head
    caller: Caller
    request_id: str


Endpoint = Callable[[Exchange], Awaitable[None]]


def new_request_id() -> str:
    """Unique over processes by a random part, within one by a counter."""
    return f"req_{_run}{next(_ids):08x}"


async def read_body(exchange: Exchange, max_bytes: int) -> bytes:
    """The whole request body. That it keeps coming is the server's to watch.

    Raises: TooLargeError (413), UnsupportedEncodingError (415); CancelledError(CLIENT_GONE)
    when the caller left.
    """
    head = exchange.head
    if head.content_encoding not in (None, "", "identity"):
        raise UnsupportedEncodingError("send the body without content-encoding")
    length = head.content_length
    if length is not None and length.isdigit() and int(length) > max_bytes:
        raise _too_large(max_bytes)
    message = await exchange.receive()
    body: bytes = message.get("body", b"")
    if message.get("more_body") is False and len(body) <= max_bytes:
        return body  # as it comes most of the time: with its head
    parts, size = [], 0
    while True:
        if message["type"] == "http.disconnect":
            raise asyncio.CancelledError(CLIENT_GONE)
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > max_bytes:
            raise _too_large(max_bytes)
        if not message.get("more_body"):
            return b"".join(parts)
        message = await exchange.receive()


def _too_large(max_bytes: int) -> TooLargeError:
    return TooLargeError(f"the body is larger than {max_bytes} bytes (limits.max_body)")


async def send_json(
    exchange: Exchange,
    body: bytes,
    *,
    status: int = 200,
    headers: Iterable[tuple[bytes, bytes]] = (),
) -> None:
    said = [
        JSON,
        (b"x-request-id", exchange.request_id.encode()),
        *headers,
        (b"content-length", b"%d" % len(body)),
    ]
    if exchange.scope["method"] == "HEAD":
        body = b""
    await exchange.send({"type": "http.response.start", "status": status, "headers": said})
    await exchange.send({"type": "http.response.body", "body": body})


async def send_body(
    send: Send,
    body: bytes,
    status: int,
    headers: list[tuple[bytes, bytes]],
    *,
    is_head: bool = False,
) -> None:
    headers.append((b"content-length", b"%d" % len(body)))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if is_head else body})


def encode_error(error: OpenbrError) -> bytes:
    """The envelope of WIRE: all four keys, always."""
    return encode_json(
        {
            "error": {
                "message": error.message,
                "type": error.type,
                "param": error.param,
                "code": error.code,
            }
        }
    )


async def send_error(
    send: Send, error: OpenbrError, request_id: str, *, is_head: bool = False
) -> None:
    headers = [JSON, (b"x-request-id", request_id.encode())]
    if error.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % max(1, round(error.retry_after_s))))
    elif error.status == 503:
        headers.append((b"retry-after", b"1"))
    if isinstance(error, UpstreamError) or (
        isinstance(error, RequestError) and error.type == "insufficient_quota"
    ):
        headers.append((b"x-should-retry", b"false"))
    if isinstance(error, MethodNotAllowedError):
        headers.append((b"allow", error.allow.encode()))
    if error.status == 401:
        headers.append((b"www-authenticate", b'Bearer realm="openbr"'))
    if error.status == 413:
        headers.append((b"connection", b"close"))  # the rest of the body was not read
    await send_body(send, encode_error(error), error.status, headers, is_head=is_head)
