"""The nouns that travel between rooms. Frozen records, no behaviour beyond naming themselves.

In: nothing. Out: records. A dict crosses no room boundary; these do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import msgspec

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who asks. `key_id` is None for the person at this machine when no key is required."""

    key_id: int | None
    name: str
    scopes: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """A provider and its own name for a model: able to answer."""

    provider: str
    upstream_model: str
    is_local: bool

    @property
    def model(self) -> str:
        """The full id, `provider/model`."""
        return f"{self.provider}/{self.upstream_model}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One line of the catalogue. None means that the provider does not say."""

    provider: str
    upstream_model: str
    created_at: int = 0
    context_tokens: int | None = None
    size_bytes: int | None = None
    features: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        return f"{self.provider}/{self.upstream_model}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderState:
    """What the catalogue knows of one provider, and since when.

    `state`: loading (never fetched), ready, stale (the last fetch failed, models are older),
    down (failed and nothing is known), disabled. `reason` is None or one of the reasons of
    errors.UpstreamError; `detail` is the sentence for people. Times are unix seconds; `age_s`
    comes from a monotonic clock.
    """

    name: str
    kind: str
    is_local: bool
    state: str
    models: tuple[Model, ...] = ()
    reason: str | None = None
    detail: str | None = None
    fetched_at: float | None = None
    age_s: float | None = None
    retry_in_s: float | None = None
    refreshing: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The saved choice of a model for a route."""

    model: str
    chosen_at: float
    chosen_by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class InUse:
    """Three separate facts: what was chosen, what the next message gets, why they differ.

    `reason` is None when in_use is the chosen one; else `not_chosen` (nobody chose, the local
    model answers), `none_available`, or the reason why the chosen one is stepped around.
    """

    route: str
    chosen: Selection | None
    in_use: Deployment | None
    reason: str | None = None
    detail: str | None = None
    retry_in_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Who is to be asked, best first, never empty; and why the first one is not the preferred."""

    deployments: tuple[Deployment, ...]
    fallback: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens of one completion, as the provider counted them."""

    input_tokens: int
    output_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """A chat completion as the caller sent it: the few fields that route it, the rest raw.

    `fields` holds every top-level field's own bytes, in the caller's order (the last one of
    equal names); they are forwarded untouched, except `model`.
    """

    model: str
    stream: bool
    fields: Mapping[str, msgspec.Raw]
    request_id: str = ""


@dataclass(slots=True, kw_only=True)
class Answer:
    """Facts that a completion gathers while it passes: who answers, how it ends, what it used.

    Mutable by design: one is made for each attempt and filled in by the provider's stream.
    `upstream_model` is the name the upstream itself reported, which may be a dated variant.
    """

    deployment: Deployment
    upstream_model: str | None = None
    finish_reason: str | None = None
    usage: Usage | None = None
    fallback: str | None = None
    ttft_s: float | None = None
