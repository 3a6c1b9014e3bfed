"""However an answer is cut into reads, it says the same; however it is broken, it is an error.

The connection is fed by hand here: sockets do not let a test choose where a read ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openbr.errors import UpstreamError
from openbr.upstream.connection import Connection
from openbr.upstream.request import Timeouts
from openbr.upstream.response import UpstreamResponse

LIMITS = Timeouts(connect_s=60, first_byte_s=60, idle_s=60, total_s=60)


class Transport(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.is_aborted = False

    def write(self, data: Any) -> None:
        pass

    def is_closing(self) -> bool:
        return self.is_aborted

    def abort(self) -> None:
        self.is_aborted = True

    def pause_reading(self) -> None:
        pass


class Pool:
    """Notes what becomes of the connection."""

    name = "model.example:443"

    def __init__(self) -> None:
        self.kept = 0

    def opened(self, connection: Connection) -> None:
        pass

    def take_back(self, connection: Connection) -> None:
        self.kept += 1

    def forget(self, connection: Connection) -> None:
        pass


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def feed(
    loop: asyncio.AbstractEventLoop, reads: list[bytes], *, ends: bool = False
) -> tuple[UpstreamResponse, Pool, Transport]:
    """One request, and these reads as its answer."""
    pool, transport = Pool(), Transport()
    connection = Connection(loop, pool)
    connection.connection_made(transport)
    response = connection.send(b"GET / HTTP/1.1\r\n\r\n", LIMITS, loop.time() + 60)
    for data in reads:
        if transport.is_aborted:
            break  # a loop gives no data after abort()
        connection.data_received(data)
    if ends and not transport.is_aborted:
        connection.eof_received()
    connection.connection_lost(None)
    return response, pool, transport


def read_all(loop: asyncio.AbstractEventLoop, response: UpstreamResponse) -> bytes:
    async def read() -> bytes:
        body = b""
        while data := await response.next():
            body += data
        return body

    return loop.run_until_complete(read())


NAMES = st.sampled_from([b"X-A", b"content-type", b"Retry-After", b"x-b", b"Set-Cookie", b"Date"])
VALUES = st.binary(max_size=30).map(
    lambda raw: bytes(c for c in raw if c >= 0x20 and c != 0x7F).strip()
)
INTERIM = st.sampled_from(
    [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early\r\nlink: </a>\r\n\r\n"]
)


@st.composite
def answers(draw: st.DrawFn) -> tuple[int, list[tuple[bytes, bytes]], bytes, bytes, bool]:
    """status, headers, body, the bytes on the wire, whether the end is marked in them."""
    status = draw(st.sampled_from([200, 201, 204, 302, 304, 400, 404, 429, 500, 503, 599]))
    headers = draw(st.lists(st.tuples(NAMES, VALUES), max_size=6))
    pieces = draw(st.lists(st.binary(min_size=1, max_size=80), max_size=6))
    kind = draw(st.sampled_from(["length", "chunked", "until close"]))
    framing: list[tuple[bytes, bytes]] = []
    if status in (204, 304):
        pieces, kind, wire = [], "none", b""
    elif kind == "length":
        wire = b"".join(pieces)
        framing = [(b"Content-Length", b"%d" % len(wire))]
    elif kind == "chunked":
        wire = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n"
        wire += draw(st.sampled_from([b"", b"x-trailer: t\r\n"])) + b"\r\n"
        framing = [(b"Transfer-Encoding", b"Chunked")]
    else:
        wire = b"".join(pieces)
    at = draw(st.integers(0, len(headers)))
    headers = headers[:at] + framing + headers[at:]
    head = b"".join(draw(st.lists(INTERIM, max_size=2)))
    head += b"HTTP/1.1 %d Reason \xc3\xa7\r\n" % status
    head += b"".join(b"%b: %b\r\n" % pair for pair in headers)
    expected = [(name.lower(), value) for name, value in headers]
    return status, expected, b"".join(pieces), head + b"\r\n" + wire, kind != "until close"


def cut(wire: bytes, places: list[float]) -> list[bytes]:
    """The wire in reads that end at these fractions of it."""
    ends = sorted({int(place * len(wire)) for place in places} - {0, len(wire)})
    return [wire[a:b] for a, b in zip([0, *ends], [*ends, len(wire)], strict=True)]


FRACTIONS = st.floats(0, 1, exclude_max=True)


@settings(deadline=None, max_examples=300)
@given(answer=answers(), places=st.lists(FRACTIONS, max_size=30))
def test_reads_do_not_matter(
    loop: asyncio.AbstractEventLoop, answer: Any, places: list[float]
) -> None:
    status, headers, body, wire, is_marked = answer
    for reads in (cut(wire, places), [wire], [wire[i : i + 1] for i in range(len(wire))]):
        response, pool, _ = feed(loop, reads, ends=not is_marked)
        assert response.status == status
        assert response.headers == headers
        assert read_all(loop, response) == body
        assert pool.kept == (1 if is_marked else 0)


@settings(deadline=None, max_examples=300)
@given(answer=answers(), place=FRACTIONS)
def test_what_is_cut_is_never_whole(
    loop: asyncio.AbstractEventLoop, answer: Any, place: float
) -> None:
    _, _, body, wire, is_marked = answer
    if not is_marked:
        return
    short = wire[: int(place * len(wire))]
    response, pool, transport = feed(loop, [short] if short else [], ends=True)
    assert pool.kept == 0 and transport.is_aborted
    if response.status:
        with pytest.raises(UpstreamError):
            while data := loop.run_until_complete(response.next()):
                assert body.startswith(data)
    else:
        assert response.error is not None


@settings(deadline=None, max_examples=300)
@given(
    answer=answers(),
    changes=st.lists(st.tuples(FRACTIONS, st.binary(max_size=4)), min_size=1, max_size=4),
    places=st.lists(FRACTIONS, max_size=5),
)
def test_any_bytes_end_in_an_answer_or_an_error(
    loop: asyncio.AbstractEventLoop,
    answer: Any,
    changes: list[tuple[float, bytes]],
    places: list[float],
) -> None:
    wire = answer[3]
    for place, data in changes:
        at = int(place * len(wire))
        wire = wire[:at] + data + wire[at + len(data) :]
    response, pool, transport = feed(loop, cut(wire, places), ends=True)
    assert response.arrived.done()
    assert transport.is_aborted or pool.kept == 1
    try:
        read_all(loop, response)
    except UpstreamError:
        assert pool.kept == 0
