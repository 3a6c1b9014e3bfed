"""Bytes of a text/event-stream -> payloads of its events. No I/O.

In: pieces of a body, cut anywhere. Out: the data of each whole event, as bytes. The rules that
live only here: CR, LF and CRLF end lines; comments, ids, retry lines and event names are
dropped; several data lines are one payload; a leading BOM is ignored; an event has a bound.

The common event, `data: {...}` and a blank line, costs one split and one slice.
Source: WHATWG HTML, "Server-sent events", parsing an event stream.
"""

from __future__ import annotations

from openbr.errors import UpstreamProtocolError

_BOM = b"\xef\xbb\xbf"


class EventFramer:
    """`feed(bytes) -> list[bytes]`: the payloads of the events that became whole."""

    __slots__ = ("_after_cr", "_max_event", "_rest", "_started")

    def __init__(self, max_event: int) -> None:
        self._rest = bytearray()
        self._max_event = max_event
        self._after_cr = False
        self._started = False

    def feed(self, data: bytes) -> list[bytes]:
        """Raises: UpstreamProtocolError for an event of more than `max_event` bytes."""
        if not self._started:
            data = self._start(data)
        if not data:
            return []
        if self._after_cr or b"\r" in data:
            data = self._unify(data)
        rest = self._rest
        if rest:
            seam = len(rest) - 1
            rest += data
            if rest.find(b"\n\n", seam) < 0:
                self._bound()
                return []
            data = bytes(rest)
            rest.clear()
        blocks = data.split(b"\n\n")
        rest += blocks.pop()
        self._bound()
        payloads = []
        for block in blocks:
            if block.startswith(b"data: ") and b"\n" not in block:
                payloads.append(block[6:])
            elif payload := _payload(block):
                payloads.append(payload)
        return payloads

    def finish(self) -> bytes:
        """The payload of an event whose blank line never came, b"" if there is none.

        Some servers end the body right after their last line. Whether it is whole is for its
        reader to tell: the last line may be cut.
        """
        block, self._rest = bytes(self._rest), bytearray()
        return _payload(block)

    def _start(self, data: bytes) -> bytes:
        """Drop a byte order mark, which may come in pieces."""
        self._rest += data
        head = bytes(self._rest)
        if len(head) < 3 and _BOM.startswith(head):
            return b""
        self._started = True
        self._rest.clear()
        return head.removeprefix(_BOM)

    def _unify(self, data: bytes) -> bytes:
        """Make every line end a single LF, also where a CRLF was cut in two."""
        if self._after_cr and data.startswith(b"\n"):
            data = data[1:]
        self._after_cr = data.endswith(b"\r")
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _bound(self) -> None:
        if len(self._rest) > self._max_event:
            self._rest = bytearray()
            raise UpstreamProtocolError(f"an event is larger than {self._max_event} bytes")


def _payload(block: bytes) -> bytes:
    lines = []
    for line in block.split(b"\n"):
        if line.startswith(b"data:"):
            lines.append(line[6:] if line.startswith(b"data: ") else line[5:])
        elif line == b"data":
            lines.append(b"")
    return b"\n".join(lines)
