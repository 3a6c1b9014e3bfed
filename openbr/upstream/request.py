"""What a caller may say of a request: its headers and its limits of time.

In: pairs, seconds. Out: bytes ready for the wire, a record. The rule that lives only here: nothing
in a header can end its line, and the headers that frame a request are not the caller's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*", re.ASCII)
_OWN_HEADERS = frozenset(("host", "content-length", "transfer-encoding", "connection"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Seconds. `first_byte_s`: from the request's last byte until the answer's head is whole;
    `idle_s`: longest silence inside a body, either way; `total_s`: all, connecting included."""

    connect_s: float
    first_byte_s: float
    idle_s: float
    total_s: float


def encode_headers(pairs: Iterable[tuple[str, str]]) -> bytes:
    """Header lines, checked once so that no request has to.

    Raises: ValueError for a name or value that could end a line, or a header that is not the
    caller's to set. The message does not hold the value, which may be a key.
    """
    lines = []
    for name, value in pairs:
        if not _HEADER_NAME.fullmatch(name) or name.lower() in _OWN_HEADERS:
            raise ValueError(f"{name!r} cannot be the name of a header")
        if not _HEADER_VALUE.fullmatch(value):
            raise ValueError(f"the value of the header {name} holds characters that it must not")
        lines.append(f"{name}: {value.strip()}\r\n")
    return "".join(lines).encode("latin-1")
