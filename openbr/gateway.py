"""The walk: candidates -> provider -> stream. Read this file first.

In: a ChatRequest and its Caller. Out: a ChatStream or a Completion that says who answered, or an
OpenbrError that says whose fault it is. The rule that lives only here: the next deployment is
asked only after a failure that another one could mend, and only until the first content; after
that, never.

    caller = auth.identify(head)                       # 2  in app.py, before the body is read
    plan = router.candidates(request.model)            # 3  deployments, best first
    stream = provider.open_chat(request, deployment)   # 5  until the first content arrives
    stream.relay(...)                                  # 6  api/chat.py sends it out
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from openbr.catalogue import Catalogue
from openbr.errors import UpstreamError
from openbr.providers.base import ChatStream, Completion, Provider
from openbr.records import Caller, ChatRequest, Deployment
from openbr.route import Router

logger = logging.getLogger(__name__)

_Result = TypeVar("_Result", ChatStream, Completion)
_Attempt = Callable[[Provider, Deployment], Awaitable[_Result]]


class Gateway:
    """Threads: event loop only."""

    def __init__(self, catalogue: Catalogue, router: Router) -> None:
        self._catalogue = catalogue
        self._router = router

    async def chat(self, request: ChatRequest, caller: Caller) -> ChatStream:
        """Open a streamed completion. Raises: OpenbrError; nothing was sent then."""
        return await self._walk(request, lambda p, d: p.open_chat(request, d))

    async def complete(self, request: ChatRequest, caller: Caller) -> Completion:
        """Get a whole completion. Raises: OpenbrError."""
        return await self._walk(request, lambda p, d: p.complete_chat(request, d))

    async def _walk(self, request: ChatRequest, attempt: _Attempt[_Result]) -> _Result:
        started = time.monotonic()
        plan = self._router.candidates(request.model)
        candidates, fallback = plan.deployments, plan.fallback
        last = len(candidates) - 1
        for position, deployment in enumerate(candidates):
            provider = self._catalogue.adapter(deployment.provider)
            try:
                result = await attempt(provider, deployment)
            except UpstreamError as exc:
                self._catalogue.note_failure(exc)
                if not exc.fallback or position == last:
                    raise
                fallback = fallback or exc.reason
                logger.warning(
                    "%s: %s failed (%s), asking %s",
                    request.request_id,
                    deployment.model,
                    exc.reason,
                    candidates[position + 1].model,
                )
                continue
            result.answer.fallback = fallback
            result.answer.ttft_s = time.monotonic() - started
            return result
        raise AssertionError("candidates() is never empty")
