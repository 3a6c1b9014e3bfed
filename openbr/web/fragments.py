"""Rendered fragments that are shown again as they were.

In: everything that shapes a fragment, and how to draw it. Out: its HTML. The rules that live only
here: a fragment is known by all that shapes it, written out, never by a digest or a guess, so one
that would say something else is never found; it is kept for a minute, and all of them are bounded
by bytes. A fragment with an age or a countdown in it changes with each poll and is not kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from openbr.ultra import TTLCache, create_cache

MAX_BYTES = 1024 * 1024
"""Five lists of 300 models. One that is larger is drawn each time."""
TTL_S = 60.0
_MAX_ENTRIES = 256


class Html:
    """A drawn fragment, for `{{ }}` in a template.

    It is no str, so that what a template prints is not looked through for hidden characters a
    second time: 0.8 ms for a list of 300 models.
    """

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def __html__(self) -> str:
        return self._text


class Fragments:
    """The kept fragments of one gateway. `clock` is monotonic seconds. Threads: event loop only."""

    def __init__(
        self, *, max_bytes: int = MAX_BYTES, clock: Callable[[], float] | None = None
    ) -> None:
        self._kept = create_cache(_MAX_ENTRIES, TTL_S, max_bytes=max_bytes, clock=clock)

    def caches(self) -> dict[str, TTLCache[Any, Any]]:
        """By their names in the app's memory."""
        return {"fragments": self._kept}

    def html(self, facts: tuple[object, ...], draw: Callable[[], str]) -> Html:
        """The fragment that these facts shape, drawn if it is not kept.

        facts: the fragment's name and everything that its HTML depends on: texts, numbers, None,
        and tuples and lists of these, whose `repr` tells any two apart.
        """
        key = repr(facts)
        text: str | None = self._kept.get(key)
        if text is None:
            text = draw()
            self._kept.set(key, text)
        return Html(text)
