"""A credential that does not show itself, and what an openbr key may do.

In: text. Out: the same, on demand. The rule that lives only here: what prints it shows no more than
its last four characters.
"""

from __future__ import annotations

CHAT, ADMIN = "chat", "admin"
SCOPES = frozenset({CHAT, ADMIN})
"""What an openbr key may do: `chat` calls models, `admin` also changes what openbr does."""


class Secret:
    """A credential. Its repr and str show the last four characters; `reveal()` gives it whole."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    @property
    def masked(self) -> str:
        return "…" + self._value[-4:] if len(self._value) >= 12 else "…"

    def __repr__(self) -> str:
        return f"Secret({self.masked})"

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash(self._value)
