"""Rows -> aligned text for a terminal or a pipe. Used by every list command.

In: headings and rows of text. Out: lines. The rule that lives only here: what a row holds cannot
move the cursor or colour the screen: control characters are shown, not obeyed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from unicodedata import combining, east_asian_width


def format_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns two spaces apart, the last one ragged; no line ends in spaces."""
    lines = [[visible(cell) for cell in row] for row in (headings, *rows)]
    widths = [max(map(_width, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell + " " * (width - _width(cell)) for cell, width in zip(line, widths, strict=True)
        ).rstrip()
        for line in lines
    )


def visible(text: str) -> str:
    """The text with every control character written out."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _width(text: str) -> int:
    return sum(0 if combining(c) else 2 if east_asian_width(c) in "WF" else 1 for c in text)
