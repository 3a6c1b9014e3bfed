"""Events of a text/event-stream, however their bytes are cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openbr.errors import UpstreamProtocolError
from openbr.providers.framing import EventFramer


def feed(*pieces: bytes) -> list[bytes]:
    framer = EventFramer(1 << 20)
    found = [payload for piece in pieces for payload in framer.feed(piece)]
    rest = framer.finish()
    return [*found, rest] if rest else found


@pytest.mark.parametrize(
    ("body", "payloads"),
    [
        (b"data: a\n\ndata: b\n\n", [b"a", b"b"]),
        (b"data:a\n\n", [b"a"]),
        (b"data:  a\n\n", [b" a"]),
        (b"data: a\r\n\r\ndata: b\r\n\r\n", [b"a", b"b"]),
        (b"data: a\r\rdata: b\r\r", [b"a", b"b"]),
        (b"\xef\xbb\xbfdata: a\n\n", [b"a"]),
        (b": comment\n\ndata: a\n\n", [b"a"]),
        (b": comment\ndata: a\n\n", [b"a"]),
        (b"id: 7\nevent: x\nretry: 10\ndata: a\n\n", [b"a"]),
        (b"data: a\ndata: b\n\n", [b"a\nb"]),
        (b"data: a\n\n\n\n\ndata: b\n\n", [b"a", b"b"]),
        (b"data: a\r\n\n\ndata: b\n\n", [b"a", b"b"]),
        (b"data\n\n", []),
        (b"data:\n\n", []),
        (b"data: a\n\ndata: [DONE]", [b"a", b"[DONE]"]),
        (b"", []),
    ],
)
def test_payloads(body: bytes, payloads: list[bytes]) -> None:
    assert feed(body) == payloads
    assert feed(*(body[i : i + 1] for i in range(len(body)))) == payloads


LINES = st.sampled_from(
    [b"data: {}", b"data: \xc3\xa9\xe2\x82\xac", b"data:x", b"data: a", b": c", b"id: 1", b""]
)
ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])


@given(st.lists(st.tuples(LINES, ENDS), max_size=30), st.lists(st.integers(0, 300), max_size=20))
def test_cuts_change_nothing(lines: list[tuple[bytes, bytes]], cuts: list[int]) -> None:
    body = b"".join(line + end for line, end in lines)
    places = sorted({min(cut, len(body)) for cut in cuts})
    pieces = [body[a:b] for a, b in zip([0, *places], [*places, len(body)], strict=True)]
    assert feed(*pieces) == feed(body)


def test_an_event_has_a_bound() -> None:
    framer = EventFramer(1000)
    with pytest.raises(UpstreamProtocolError, match="1000 bytes"):
        for _ in range(100):
            framer.feed(b"data: " + b"x" * 100)


def test_a_large_event_in_small_pieces_is_delivered() -> None:
    text = b"y" * (5 << 20)
    framer = EventFramer(16 << 20)
    body = b"data: " + text + b"\n\n"
    found = []
    for at in range(0, len(body), 16384):
        found += framer.feed(body[at : at + 16384])
    assert found == [text]
