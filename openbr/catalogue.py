"""Which models each provider has: fresh for 5 s, then stale with its age, and never waited for.

In: providers. Out: ProviderState records and an index of models, always from memory. The rules
that live only here: reading kicks one background fetch per provider, shared by all readers; a
failed fetch keeps the old list and its age, and is tried again after 5, 10, 20, 40, then 60 s;
models not seen for 24 h leave. Nothing ticks: without readers there are no fetches.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from openbr.errors import UpstreamError
from openbr.providers.base import Provider
from openbr.records import Deployment, Model, ProviderState
from openbr.ultra import TTLCache, create_cache

FRESH_S = 5.0
KEEP_S = 24 * 3600.0
RETRY_S = (5.0, 10.0, 20.0, 40.0, 60.0)
_OURS = frozenset({"disabled", "no_key"})
_UNREACHABLE = frozenset({"refused", "timeout", "dns", "tls"})

logger = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class _Entry:
    """What is known of one provider. Instants are of the monotonic clock, but `fetched_at`."""

    provider: Provider
    fetched_at: float | None = None
    fetched: float | None = None
    reason: str | None = None
    detail: str | None = None
    failures: int = 0
    retry: float | None = None
    task: asyncio.Task[None] | None = None


class Catalogue:
    """Threads: event loop only. `clock` is monotonic, `now` is unix time; both in seconds."""

    def __init__(
        self,
        providers: Iterable[Provider],
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._entries = {p.name: _Entry(provider=p) for p in providers}
        self._clock = clock
        self._now = now
        # A list leaves by itself when it was not renewed for a day.
        self._seen = create_cache(max_entries=max(1, len(self._entries)), ttl_s=KEEP_S, clock=clock)
        self._index: dict[str, Deployment] = {}
        self._bare: dict[str, list[str]] = {}
        self.version = 0

    def caches(self) -> dict[str, TTLCache[Any, Any]]:
        """By their names in the app's memory."""
        return {"lists of models": self._seen}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._entries)

    def providers(self) -> tuple[ProviderState, ...]:
        """Every provider, A to Z, from memory. Kicks a refresh of what is older than 5 s."""
        self.refresh(forced=False)
        return tuple(self._state(self._entries[name]) for name in sorted(self._entries))

    def provider(self, name: str) -> ProviderState | None:
        entry = self._entries.get(name)
        return self._state(entry) if entry else None

    def adapter(self, name: str) -> Provider:
        """Raises: KeyError for a provider that is not configured."""
        return self._entries[name].provider

    def models(self) -> tuple[Model, ...]:
        """Every known model, in the order of `providers()`."""
        return tuple(model for state in self.providers() for model in state.models)

    def find(self, model: str) -> Deployment | None:
        """The deployment of a full id, known or plausible: a provider's list may be behind."""
        found = self._index.get(model)
        if found is not None:
            return found
        name, slash, upstream_model = model.partition("/")
        entry = self._entries.get(name)
        if entry is None or not slash or not upstream_model:
            return None
        if not entry.provider.offers(upstream_model):
            return None
        return Deployment(
            provider=name, upstream_model=upstream_model, is_local=entry.provider.is_local
        )

    def find_bare(self, name: str) -> list[str]:
        """Full ids of every provider that has a model of this name."""
        return self._bare.get(name, [])

    def refresh(self, *, forced: bool = True) -> None:
        """Start fetches in the background: of all, or only of what is old and may be retried."""
        now = self._clock()
        for entry in self._entries.values():
            if entry.task is None and (forced or self._is_due(entry, now)):
                entry.task = asyncio.get_running_loop().create_task(self._fetch(entry))

    async def settle(self, timeout_s: float) -> None:
        """Wait for the fetches that are under way, at most so long."""
        tasks = [entry.task for entry in self._entries.values() if entry.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=timeout_s)

    def note_failure(self, error: UpstreamError) -> None:
        """A chat found the provider unreachable: say so now, and look again soon."""
        entry = self._entries.get(error.provider)
        if entry is not None and error.reason in _UNREACHABLE and entry.task is None:
            self._failed(entry, error)

    async def close(self) -> None:
        tasks = [entry.task for entry in self._entries.values() if entry.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _is_due(self, entry: _Entry, now: float) -> bool:
        if entry.retry is not None:
            return now >= entry.retry
        return entry.fetched is None or now - entry.fetched >= FRESH_S

    async def _fetch(self, entry: _Entry) -> None:
        provider = entry.provider
        try:
            models = await provider.fetch_models()
        except UpstreamError as exc:
            self._failed(entry, exc)
        except Exception:
            # An adapter's own defect must not end the refreshing of a list for ever.
            logger.exception("the model list of %s could not be fetched", provider.name)
            self._failed(entry, UpstreamError("internal error", reason="protocol"))
        else:
            models = tuple(sorted(models, key=lambda model: model.upstream_model.lower()))
            changed = models != self._seen.peek(provider.name) or entry.reason is not None
            self._seen.set(provider.name, models)
            entry.fetched_at, entry.fetched = self._now(), self._clock()
            entry.reason = entry.detail = entry.retry = None
            entry.failures = 0
            if changed:
                self._rebuild()
        finally:
            entry.task = None

    def _failed(self, entry: _Entry, error: UpstreamError) -> None:
        # What is switched off here costs nothing to look at again, and somebody may be waiting.
        is_ours = error.reason in _OURS
        wait = RETRY_S[0 if is_ours else min(entry.failures, len(RETRY_S) - 1)]
        wait = max(wait, error.retry_after_s or 0.0)
        entry.retry = self._clock() + wait * random.uniform(0.9, 1.1)
        entry.failures += 1
        if (entry.reason, entry.detail) != (error.reason, error.message):
            entry.reason, entry.detail = error.reason, error.message
            self._rebuild()

    def _rebuild(self) -> None:
        index: dict[str, Deployment] = {}
        bare: dict[str, list[str]] = {}
        for name, entry in sorted(self._entries.items()):
            for model in self._seen.peek(name) or ():
                index[model.id] = Deployment(
                    provider=name,
                    upstream_model=model.upstream_model,
                    is_local=entry.provider.is_local,
                )
                bare.setdefault(model.upstream_model, []).append(model.id)
        self._index, self._bare = index, bare
        self.version += 1

    def _state(self, entry: _Entry) -> ProviderState:
        models = self._seen.peek(entry.provider.name)
        now = self._clock()
        if entry.reason is None:
            state = "loading" if models is None else "ready"
        elif entry.reason in _OURS:
            state = "disabled"
        else:
            state = "down" if models is None else "stale"
        return ProviderState(
            name=entry.provider.name,
            kind=entry.provider.kind,
            is_local=entry.provider.is_local,
            state=state,
            models=models or (),
            reason=entry.reason,
            detail=entry.detail,
            fetched_at=entry.fetched_at,
            age_s=None if entry.fetched is None else now - entry.fetched,
            retry_in_s=None if entry.retry is None else max(0.0, entry.retry - now),
            refreshing=entry.task is not None,
        )
