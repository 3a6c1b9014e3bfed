"""Room 3: the name a caller sends -> deployments, best first; what is chosen, in use, and why.

In: a model name. Out: deployments, never empty, or a RequestError. The rules that live only here:
`default` and `openbr` mean the chosen model and then the route's fallbacks; a full id is strict;
a bare id counts only when one provider has it; nothing goes from this machine to a cloud without
the route's consent; choosing writes once and answers when it is durable.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from openbr.catalogue import Catalogue
from openbr.config import RouteConfig
from openbr.errors import InvalidRequestError, ServiceUnavailableError, UnknownModelError
from openbr.records import Deployment, InUse, Plan, Selection
from openbr.store import Store, selections
from openbr.ultra import TTLCache, create_cache

DEFAULT = "default"
ALIASES = frozenset({DEFAULT, "openbr"})
_MAX_NAME = 256
# Another process may choose too; a page shows it within this and its poll's 5 s.
_SELECTION_TTL_S = 1.0


class Router:
    """Threads: event loop only."""

    def __init__(
        self,
        catalogue: Catalogue,
        store: Store,
        routes: Iterable[RouteConfig] = (),
        *,
        local_model: str | None = None,
    ) -> None:
        self._catalogue = catalogue
        self._store = store
        self._routes = {route.model: route for route in routes}
        self._local = f"local/{local_model}" if local_model else None
        self._selections = create_cache(max_entries=64, ttl_s=_SELECTION_TTL_S)
        self._last_read: dict[str, tuple[Selection | None]] = {}
        self.version = 0

    def caches(self) -> dict[str, TTLCache[Any, Any]]:
        """By their names in the app's memory."""
        return {"selections": self._selections}

    def candidates(self, model: str) -> Plan:
        """Who is to be asked, in order: first those that answer, each group as configured.

        Raises: UnknownModelError, InvalidRequestError (ambiguous_model), ServiceUnavailableError
        when a route has nobody to ask.
        """
        if model in ALIASES or model in self._routes:
            members = self._members(DEFAULT if model in ALIASES else model)
            if not members:
                raise ServiceUnavailableError(
                    "no model is available: choose one at /ui/models, or run "
                    "`openbr models pull` for the local one",
                    code="no_model",
                )
            ranked = self._rank(members)
            skipped = None if ranked[0] == members[0] else self._reason(members[0])
            return Plan(deployments=ranked, fallback=skipped)
        return Plan((self._explicit(model),))

    def in_use(self, route: str = DEFAULT) -> InUse:
        """What the next message to a route gets, from memory."""
        chosen = self.chosen(route)
        ranked = self._rank(self._members(route))
        first = ranked[0] if ranked else None
        if first is None or self._reason(first) is not None:
            blocked = self._catalogue.find(chosen.model) if chosen else first
            reason, detail, retry = self._why(blocked)
            return InUse(
                route=route,
                chosen=chosen,
                in_use=None,
                reason=reason or "none_available",
                detail=detail,
                retry_in_s=retry,
            )
        if chosen is None:
            return InUse(route=route, chosen=None, in_use=first, reason="not_chosen")
        if first.model == chosen.model:
            return InUse(route=route, chosen=chosen, in_use=first)
        reason, detail, retry = self._why(self._catalogue.find(chosen.model))
        return InUse(
            route=route,
            chosen=chosen,
            in_use=first,
            reason=reason or "unknown_model",
            detail=detail,
            retry_in_s=retry,
        )

    def chosen(self, route: str = DEFAULT) -> Selection | None:
        """The saved choice; another process's within a second.

        While the store fails it is what was read last: inference goes on without the store.
        Raises: ServiceUnavailableError when it was never read.
        """
        found: tuple[Selection | None] | None = self._selections.get(route)
        if found is None:
            try:
                found = (self._store.read(selections.get, route),)
            except ServiceUnavailableError:
                if route not in self._last_read:
                    raise
                found = self._last_read[route]
            self._last_read[route] = found
            self._selections.set(route, found)
        return found[0]

    async def choose(self, model: str, by: str, route: str = DEFAULT) -> Selection:
        """Save a choice; it is durable when this returns.

        Raises: UnknownModelError, InvalidRequestError; nothing was written then.
        """
        deployment = self._explicit(model)
        if deployment.model not in {m.id for m in self._catalogue.models()}:
            raise UnknownModelError(self._unknown(model))
        saved = await self._store.commit(selections.save, route, deployment.model, by, time.time())
        self._last_read[route] = (saved,)
        self._selections.set(route, (saved,))
        self.version += 1
        return saved

    def _explicit(self, model: str) -> Deployment:
        if len(model) > _MAX_NAME or not model.isprintable():
            raise InvalidRequestError("model is not a model's name", param="model")
        deployment = self._catalogue.find(model)
        if deployment is not None:
            return deployment
        ids = self._catalogue.find_bare(model)
        if len(ids) > 1:
            raise InvalidRequestError(
                f"several providers have {model}: say which, one of {', '.join(ids)}",
                code="ambiguous_model",
                param="model",
            )
        found = self._catalogue.find(ids[0]) if ids else None
        if found is None:
            raise UnknownModelError(self._unknown(model))
        return found

    def _unknown(self, model: str) -> str:
        import difflib

        names = [m.id for m in self._catalogue.models()] + [*self._routes, DEFAULT]
        near = difflib.get_close_matches(model, names, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}? " if near else ""
        return f"there is no model {model}; {hint}see /v1/models"

    def _members(self, route: str) -> list[Deployment]:
        """The chosen model, then the fallbacks that may follow it."""
        chosen = self.chosen(route)
        config = self._routes.get(route)
        names = [chosen.model] if chosen else []
        names += [name for name in (config.deployments if config else ()) if name not in names]
        if not names and self._local is not None:
            names = [self._local]
        found = [one for one in map(self._catalogue.find, names) if one is not None]
        if found and found[0].is_local and not (config and config.consent):
            return [one for one in found if one.is_local]
        return found

    def _rank(self, members: list[Deployment]) -> tuple[Deployment, ...]:
        return tuple(sorted(members, key=lambda one: self._reason(one) is not None))

    def _reason(self, deployment: Deployment) -> str | None:
        state = self._catalogue.provider(deployment.provider)
        return state.reason if state is not None else "unknown_model"

    def _why(self, blocked: Deployment | None) -> tuple[str | None, str | None, float | None]:
        state = self._catalogue.provider(blocked.provider) if blocked else None
        return (state.reason, state.detail, state.retry_in_s) if state else (None, None, None)
