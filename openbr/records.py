"""The nouns that travel between rooms. Frozen records, no behaviour beyond naming themselves.

In: nothing. Out: records. A dict crosses no room boundary; these do. Those that are made at every
request are msgspec's structs: made in a quarter of a dataclass's time, and imported in less. Where
each request makes one, it is made by position: 18 names take 1.5 µs where 18 places take 0.14.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """Who asks. `key_id` is None for the person at this machine when no key is required."""

    key_id: int | None
    name: str
    scopes: frozenset[str]


class Deployment(msgspec.Struct, frozen=True):
    """A provider and its own name for a model: able to answer."""

    provider: str
    upstream_model: str
    is_local: bool
    model: str = ""
    """The full id, `provider/model`; it makes itself."""

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "model", f"{self.provider}/{self.upstream_model}")


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


class Plan(msgspec.Struct, frozen=True):
    """Who is to be asked, best first, never empty; and why the first one is not the preferred."""

    deployments: tuple[Deployment, ...]
    fallback: str | None = None


class Usage(msgspec.Struct, frozen=True):
    """Tokens of one completion, as the provider counted them."""

    input_tokens: int
    output_tokens: int
    cached_tokens: int = 0


class ChatRequest(msgspec.Struct, frozen=True):
    """A chat completion as the caller sent it: the few fields that route it, the rest raw.

    `fields` holds every top-level field's own bytes, in the caller's order (the last one of
    equal names); they are forwarded untouched, except `model`. `is_deterministic`: temperature 0
    or a seed, so that the same answer is expected again. `include_usage`: a streamed answer is to
    end with its usage. `cache_control`: the header of that name. `received_at`: monotonic seconds,
    0 for now.
    """

    model: str
    stream: bool
    fields: Mapping[str, msgspec.Raw]
    request_id: str = ""
    is_deterministic: bool = False
    include_usage: bool = False
    cache_control: str | None = None
    received_at: float = 0.0


class Answer(msgspec.Struct):
    """Facts that a completion gathers while it passes: who answers, how it ends, what it used.

    Mutable by design: one is made for each attempt and filled in by the provider's stream.
    `upstream_model` is the name the upstream itself reported, which may be a dated variant.
    `cache` is the value of x-openbr-cache: hit, miss, join or bypass. `is_sound`: whether every
    choice came to an end of its own, not to a limit; None until a whole body has told it.
    """

    deployment: Deployment
    upstream_model: str | None = None
    finish_reason: str | None = None
    usage: Usage | None = None
    fallback: str | None = None
    ttft_s: float | None = None
    cache: str = "bypass"
    is_sound: bool | None = None
