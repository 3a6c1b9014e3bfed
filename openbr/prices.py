"""What tokens cost: the provider's own `prices` of the config, else the public list of its API.

In: a provider, its name for a model, token counts. Out: money, or None. The rules that live only
here: an unknown price or an unknown count is None, never 0; the built-in local models cost 0;
cached input is part of the input and costs as input where nothing else is known.

prices.json is the public list, by the host of the API: US$ per million tokens of text at the
standard tier, as of `date`. The figures were collected at second hand; `source` is the provider's
own page, where to check one. It is read when the first cost is asked for, and only the hosts that
are configured are kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from openbr.config import ModelPrice, ProviderConfig
from openbr.records import Usage

LOCAL = "local"
"""The provider of the models on this machine, which nobody bills."""

LIST = Path(__file__).with_name("prices.json")

_NANO_A_TOKEN = 1000
"""1 US$ per million tokens is 1000 nano-dollars (10^-9 US$) a token."""
_SNAPSHOT = re.compile(r"-(?:\d{4}-\d{2}-\d{2}|\d{8})$")
"""A date that only fixes which gpt-4o it is. Other numbers name another model: left alone."""
_MAX_KNOWN = 1000


class Rates(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False):
    """US$ per million tokens. `cached` None: as `input`."""

    input: float
    output: float
    cached: float | None = None

    def cost_nano_usd(self, input_tokens: int, output_tokens: int, cached_tokens: int) -> int:
        cached = min(cached_tokens, input_tokens)
        dollars_a_million = (
            (input_tokens - cached) * self.input
            + cached * (self.input if self.cached is None else self.cached)
            + output_tokens * self.output
        )
        return round(dollars_a_million * _NANO_A_TOKEN)


class LongRates(Rates, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False):
    """What the whole request costs when its input is longer than `above_tokens`."""

    above_tokens: int


class ListedModel(Rates, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False):
    id: str
    long: LongRates | None = None


class PriceList(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The public prices of one API. `date`: the month they were collected, YYYY-MM."""

    hosts: tuple[str, ...]
    date: str
    source: str
    models: tuple[ListedModel, ...]


def load_list() -> list[PriceList]:
    """The public list, whole."""
    return msgspec.json.decode(LIST.read_bytes(), type=list[PriceList])


class Prices:
    """Threads: any; two that ask first at one time both read the list, and one is kept."""

    def __init__(self, providers: Sequence[ProviderConfig]) -> None:
        self._own: Mapping[str, Mapping[str, ModelPrice]] = {
            one.name: one.prices for one in providers if one.prices
        }
        self._hosts = {one.name: urlsplit(one.base_url).hostname or "" for one in providers}
        self._listed: Mapping[str, Mapping[str, ListedModel]] | None = None
        self._known: dict[tuple[str, str], Rates | None] = {}

    def cost_usd(self, provider: str, upstream_model: str, usage: Usage | None) -> float | None:
        """US$ of one answer; None when the price or the usage is unknown."""
        counts = (usage.input_tokens, usage.output_tokens, usage.cached_tokens) if usage else ()
        nano = self.cost_nano_usd(provider, upstream_model, *counts)
        return None if nano is None else nano / 1e9

    def cost_nano_usd(
        self,
        provider: str,
        upstream_model: str,
        input_tokens: int | None = None,
        output_tokens: int | None = None,
        cached_tokens: int | None = None,
    ) -> int | None:
        """The same in nano-dollars, rounded; `cached_tokens` None is none."""
        if provider == LOCAL:
            return 0
        if input_tokens is None or output_tokens is None:
            return None
        rates = self.find_rates(provider, upstream_model)
        if rates is None:
            return None
        if isinstance(rates, ListedModel) and rates.long and input_tokens > rates.long.above_tokens:
            rates = rates.long
        return rates.cost_nano_usd(input_tokens, output_tokens, cached_tokens or 0)

    def find_rates(self, provider: str, upstream_model: str) -> Rates | None:
        """The price of a model: the config's, "*" in the config, then the public list's."""
        key = (provider, upstream_model)
        try:
            return self._known[key]
        except KeyError:
            pass
        if len(self._known) >= _MAX_KNOWN:  # names may come from callers: never without end
            self._known.clear()
        found = self._known[key] = self._find(provider, upstream_model)
        return found

    def _find(self, provider: str, upstream_model: str) -> Rates | None:
        own = self._own.get(provider, {})
        for name in (*_names(upstream_model), "*"):
            if price := own.get(name):
                return Rates(input=price.input, output=price.output, cached=price.cached)
        if self._listed is None:
            self._listed = self._load()
        listed = self._listed.get(self._hosts.get(provider, ""), {})
        return next((listed[name] for name in _names(upstream_model) if name in listed), None)

    def _load(self) -> Mapping[str, Mapping[str, ListedModel]]:
        wanted = set(self._hosts.values())
        return {
            host: {model.id: model for model in group.models}
            for group in load_list()
            for host in group.hosts
            if host in wanted
        }


def _names(upstream_model: str) -> Iterator[str]:
    """The name itself, without the folder that Google puts before it, without its date."""
    yield upstream_model
    bare = upstream_model.removeprefix("models/")
    yield bare
    yield _SNAPSHOT.sub("", bare)
