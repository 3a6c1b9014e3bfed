"""The walk: candidates -> cache -> provider -> stream -> record. Read this file first.

In: a ChatRequest and its Caller. Out: a ChatStream or a Completion that says who answered, or an
OpenbrError that says whose fault it is. The rules that live only here: the next deployment is
asked only after a failure that another one could mend, and only until the first content; after
that, never; and every walk leaves one record, however it ends.

    caller = auth.identify(head)                       # 2  in app.py, before the body is read
    plan = router.candidates(request.model)            # 3  deployments, best first
    stream = cache.chat(key, request, ask)             # 4  a kept answer, one under way, or:
    stream = provider.open_chat(request, deployment)   # 5  until the first content arrives
    stream.relay(...)                                  # 6  api/chat.py sends it out
    usage.record(...)                                  # 7  when it is closed
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec

from openbr.cache import ResponseCache
from openbr.catalogue import Catalogue
from openbr.errors import OpenbrError, UpstreamError
from openbr.providers.base import ChatStream, Completion, Provider
from openbr.records import Answer, Caller, ChatRequest, Deployment, Plan
from openbr.route import Router
from openbr.usage import UsageLog, UsageRecord

logger = logging.getLogger(__name__)

_Result = TypeVar("_Result", ChatStream, Completion)
_Ask = Callable[[Provider, ChatRequest, Deployment], Awaitable[_Result]]

CLIENT_LEFT = 499
"""The status of a request whose caller left before its answer began."""


class Gateway:
    """Threads: event loop only."""

    def __init__(
        self, catalogue: Catalogue, router: Router, cache: ResponseCache, usage: UsageLog
    ) -> None:
        self._catalogue = catalogue
        self._router = router
        self._cache = cache
        self._usage = usage

    async def chat(self, request: ChatRequest, caller: Caller) -> ChatStream:
        """Open a streamed completion; it is to be closed. Raises: OpenbrError; nothing was sent."""
        walk = Walk(request, caller, self._usage)
        try:
            plan = self._router.candidates(request.model)
            first = plan.deployments[0]
            key = self._cache.key(request, caller, first)
            if key is None:
                stream = await self._ask(walk, plan, _open)
            else:
                # The usage is asked for whoever may join, or come later.
                walk.request = msgspec.structs.replace(request, include_usage=True)
                stream = await self._cache.chat(
                    key, request, first, lambda: self._ask(walk, plan, _open), plan.deployments[1:]
                )
        except BaseException as exc:
            walk.fail(exc)
            raise
        walk.meet(stream.answer, plan)
        return RecordedStream(stream, walk)

    async def complete(self, request: ChatRequest, caller: Caller) -> Completion:
        """Get a whole completion. Raises: OpenbrError."""
        walk = Walk(request, caller, self._usage)
        try:
            plan = self._router.candidates(request.model)
            first = plan.deployments[0]
            key = self._cache.key(request, caller, first)
            if key is None:
                completion = await self._ask(walk, plan, _get)
            else:
                completion = await self._cache.complete(
                    key, request, first, lambda: self._ask(walk, plan, _get), plan.deployments[1:]
                )
        except BaseException as exc:
            walk.fail(exc)
            raise
        walk.meet(completion.answer, plan)
        walk.end("ok")
        return completion

    async def _ask(self, walk: Walk, plan: Plan, ask: _Ask[_Result]) -> _Result:
        for deployment in plan.deployments:
            walk.ask(deployment)
            provider = self._catalogue.adapter(deployment.provider)
            try:
                result = await ask(provider, walk.request, deployment)
            except UpstreamError as exc:
                self._step_around(walk, plan, exc)
            else:
                result.answer.fallback = walk.fallback
                return result
        raise AssertionError("a plan is never empty")

    def _step_around(self, walk: Walk, plan: Plan, failure: UpstreamError) -> None:
        """Go on to the next deployment, or raise the failure."""
        self._catalogue.note_failure(failure)
        if not failure.fallback or walk.asked == plan.deployments[-1]:
            raise failure
        walk.fallback = walk.fallback or failure.reason
        logger.warning(
            "%s: %s failed (%s), asking the next one",
            walk.request.request_id,
            walk.asked and walk.asked.model,
            failure.reason,
        )


class Walk:
    """One request on its way: what its record will say. Durations are from its reception."""

    __slots__ = (
        "_answer",
        "_caller",
        "_queue_s",
        "_started",
        "_usage",
        "asked",
        "fallback",
        "request",
    )

    def __init__(self, request: ChatRequest, caller: Caller, usage: UsageLog) -> None:
        self.request = request
        self.asked: Deployment | None = None
        self.fallback: str | None = None
        self._caller = caller
        self._usage = usage
        self._answer: Answer | None = None
        self._queue_s: float | None = None
        self._started = request.received_at or time.monotonic()

    def ask(self, deployment: Deployment) -> None:
        self.asked = deployment
        self._queue_s = time.monotonic() - self._started

    def meet(self, answer: Answer, plan: Plan) -> None:
        """The first content is there."""
        if plan.fallback is not None:
            answer.fallback = plan.fallback
        answer.ttft_s = time.monotonic() - self._started
        self._answer = answer

    def fail(self, exc: BaseException) -> None:
        """There will be no answer."""
        if isinstance(exc, OpenbrError):
            self.end("error", exc.status, reason_of(exc))
        elif isinstance(exc, asyncio.CancelledError):
            self.end("cancelled", CLIENT_LEFT)
        else:
            self.end("error", 500, "internal")

    def end(self, outcome: str, status: int = 200, error: str | None = None) -> None:
        request, answer = self.request, self._answer
        total_s = time.monotonic() - self._started
        deployment = self.asked if answer is None else answer.deployment
        usage = None if answer is None else answer.usage
        self._usage.record(
            UsageRecord(
                request.request_id,
                time.time() - total_s,
                request.model,
                status,
                outcome,  # type: ignore[arg-type]
                self._caller.key_id,
                None if deployment is None else deployment.model,
                None if deployment is None else deployment.provider,
                "bypass" if answer is None else answer.cache,  # type: ignore[arg-type]
                self.fallback if answer is None else answer.fallback,
                error,
                request.stream,
                None if usage is None else usage.input_tokens,
                None if usage is None else usage.output_tokens,
                None if usage is None else usage.cached_tokens,
                self._queue_s,
                None if answer is None else answer.ttft_s,
                total_s,
            )
        )


class RecordedStream(ChatStream):
    """A stream whose end is recorded: whole, broken, or left by its caller."""

    def __init__(self, stream: ChatStream, walk: Walk) -> None:
        self.answer = stream.answer
        self._stream = stream
        self._walk: Walk | None = walk
        self._outcome = "cancelled"
        self._error: str | None = None

    @property
    def text(self) -> str:  # type: ignore[override]
        return self._stream.text

    async def next(self) -> bytes:
        try:
            batch = await self._stream.next()
        except OpenbrError as exc:
            self._outcome, self._error = "partial", reason_of(exc)
            raise
        if not batch:
            self._outcome = "ok"
        return batch

    def close(self) -> None:
        self._stream.close()
        walk, self._walk = self._walk, None
        if walk is not None:
            walk.end(self._outcome, error=self._error)


def _open(p: Provider, request: ChatRequest, deployment: Deployment) -> Awaitable[ChatStream]:
    return p.open_chat(request, deployment)


def _get(p: Provider, request: ChatRequest, deployment: Deployment) -> Awaitable[Completion]:
    return p.complete_chat(request, deployment)


def reason_of(exc: OpenbrError) -> str:
    """One word for what went wrong."""
    return exc.reason if isinstance(exc, UpstreamError) else exc.code or exc.type
