"""Answers being written. A run belongs to the server: it goes on when its reader leaves.

In: a conversation's messages. Out: a Run that any number of readers may follow from any point,
and in the end a finished row in the store. The rules that live only here: one running answer for
a conversation; a run ends in exactly one of done, stopped, cut, failed, and what had arrived is
kept; it is in the store before anybody is told that it ended.

A run's pieces are numbered from 1; a reader that has seen piece n asks for what follows it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from openbr.errors import InvalidRequestError, OpenbrError, StreamInterruptedError
from openbr.store import conversations
from openbr.web.formats import plain_lines
from openbr.web.reasons import encode_failure

if TYPE_CHECKING:
    import sqlite3

    from openbr.records import Answer, Caller, Deployment
    from openbr.web.parts import Parts

logger = logging.getLogger(__name__)

T = TypeVar("T")
ROUTE = "default"


class BusyError(InvalidRequestError):
    """The conversation has a running answer."""

    status = 409


class Run:
    """One answer. Threads: event loop only."""

    def __init__(
        self,
        message_id: int,
        conversation_id: int,
        chosen_model: str | None,
        expected: Deployment | None,
    ) -> None:
        self.message_id = message_id
        self.conversation_id = conversation_id
        self.chosen_model = chosen_model
        self.expected = expected
        self.pieces: list[str] = []
        self.answer: Answer | None = None
        self.state = "running"
        self.failure: str | None = None
        self.task: asyncio.Task[None] | None = None
        self._stop_asked = False
        self._changed = asyncio.Event()
        self._ended = asyncio.Event()

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def has_ended(self) -> bool:
        """Ended, and stored."""
        return self._ended.is_set()

    def after(self, number: int) -> str:
        """The text that follows piece `number`."""
        return "".join(self.pieces[number:])

    async def news(self, number: int, timeout_s: float) -> bool:
        """Wait until there is more than piece `number`, or the end. False when time ran out."""
        try:
            async with asyncio.timeout(timeout_s):
                while len(self.pieces) <= number and not self.has_ended:
                    await self._changed.wait()
        except TimeoutError:
            return False
        return True

    async def wait(self) -> None:
        """Until it has ended and is stored."""
        await self._ended.wait()

    def stop(self) -> None:
        """Keep what arrived and let the upstream go. No-op once it ended."""
        if self.task is not None and self.state == "running" and not self._stop_asked:
            self._stop_asked = True
            self.task.cancel()

    async def write(self, parts: Parts, messages: list[dict[str, str]], caller: Caller) -> None:
        """Ask, gather the pieces, keep the result. The body of the run's task."""
        state, failure = "done", None
        try:
            await self._gather(parts, messages, caller)
        except asyncio.CancelledError:
            # Whoever cancelled wants it to end, and ended it will be, with what it has.
            state = "stopped" if self._stop_asked else "cut"
        except OpenbrError as exc:
            broken = isinstance(exc, StreamInterruptedError) or bool(self.pieces)
            state, failure = "cut" if broken else "failed", encode_failure(exc)
        except Exception as exc:
            logger.exception("the answer %d failed", self.message_id)
            state, failure = "cut" if self.pieces else "failed", encode_failure(exc)
        self.state, self.failure = state, failure
        try:
            await parts.store.commit(self._save, parts.now())
        except OpenbrError as exc:
            logger.error("the answer %d could not be stored: %s", self.message_id, exc.message)
        finally:
            self.end()

    def end(self) -> None:
        """Tell every reader that there will be no more."""
        self._ended.set()
        self._tell()

    async def _gather(self, parts: Parts, messages: list[dict[str, str]], caller: Caller) -> None:
        from openbr.api.chat import build_request

        request = build_request(ROUTE, messages, stream_options={"include_usage": True})
        stream = await parts.gateway.chat(request, caller)
        try:
            self.answer = stream.answer
            while await stream.next():
                if stream.text:
                    self.pieces.append(plain_lines(stream.text))
                    self._tell()
        finally:
            stream.close()

    def _tell(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _save(self, connection: sqlite3.Connection, now: float) -> None:
        answer = self.answer
        usage = answer.usage if answer else None
        conversations.finish_message(
            connection,
            self.message_id,
            text=self.text,
            state=self.state,
            now=now,
            model=answer.deployment.model if answer else None,
            chosen_model=self.chosen_model,
            fallback_reason=answer.fallback if answer else None,
            ttft_s=answer.ttft_s if answer else None,
            input_tokens=usage.input_tokens if usage else None,
            output_tokens=usage.output_tokens if usage else None,
            error=self.failure,
        )


class Runs:
    """The running answers of one gateway. Threads: event loop only."""

    def __init__(self) -> None:
        self._runs: dict[int, Run] = {}
        self._beginning: set[int] = set()
        self._tasks: set[asyncio.Task[Any]] = set()

    def get(self, message_id: int) -> Run | None:
        return self._runs.get(message_id)

    def of(self, conversation_id: int) -> Run | None:
        """The running answer of a conversation."""
        found = (r for r in self._runs.values() if r.conversation_id == conversation_id)
        return next(found, None)

    async def ask(
        self, parts: Parts, caller: Caller, conversation_id: int | None, title: str, text: str
    ) -> tuple[Run, int]:
        """Store a message and start its answer; the run, and the id of the message asked.

        None begins a new conversation. A caller that is cancelled does not leave a stored
        message without its run. Raises: BusyError, NotFoundError, ServiceUnavailableError.
        """
        if conversation_id is not None:
            if conversation_id in self._beginning or self.of(conversation_id) is not None:
                raise BusyError("an answer is still being written in this conversation")
            self._beginning.add(conversation_id)
        return await asyncio.shield(
            self._keep(self._begin(parts, caller, conversation_id, title, text))
        )

    async def close(self, timeout_s: float = 0.0) -> None:
        """Let running answers end by themselves for so long, then cut them. All are stored."""
        if timeout_s > 0 and self._tasks:
            await asyncio.wait(set(self._tasks), timeout=timeout_s)
        for task in set(self._tasks):
            task.cancel()
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    async def _begin(
        self, parts: Parts, caller: Caller, conversation_id: int | None, title: str, text: str
    ) -> tuple[Run, int]:
        facts = parts.router.in_use(ROUTE)
        chosen = facts.chosen.model if facts.chosen else None
        try:
            begun = await parts.store.commit(
                _add_turn, conversation_id, title, text, chosen, parts.now()
            )
            run = Run(begun.answer_id, begun.conversation_id, chosen, facts.in_use)
            history = _history(parts.store.read(conversations.messages, begun.conversation_id))
            self._runs[begun.answer_id] = run
        finally:
            if conversation_id is not None:
                self._beginning.discard(conversation_id)
        run.task = self._keep(run.write(parts, history, caller))
        run.task.add_done_callback(lambda _: self._forget(run))
        return run, begun.asked_id

    def _forget(self, run: Run) -> None:
        self._runs.pop(run.message_id, None)
        run.end()  # a task that is cancelled before its first step never gets there itself

    def _keep(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


@dataclass(frozen=True, slots=True)
class _Begun:
    conversation_id: int
    asked_id: int
    answer_id: int


def _add_turn(
    connection: sqlite3.Connection,
    conversation_id: int | None,
    title: str,
    text: str,
    chosen: str | None,
    now: float,
) -> _Begun:
    """One transaction: the conversation if new, what was asked, the place of the answer."""
    if conversation_id is None:
        conversation_id = conversations.create(connection, title=title, now=now)
    asked = conversations.add_message(
        connection, conversation_id=conversation_id, role="user", text=text, state="done", now=now
    )
    answer = conversations.add_message(
        connection,
        conversation_id=conversation_id,
        role="assistant",
        text="",
        state="running",
        now=now,
        chosen_model=chosen,
    )
    return _Begun(conversation_id, asked, answer)


def _history(messages: Iterable[conversations.Message]) -> list[dict[str, str]]:
    """What the model is told: every text so far, in order, the sides taking turns.

    A question whose answer failed is followed by the next one: the two are told as one, because
    many models refuse two messages of the same side in a row.
    """
    told: list[dict[str, str]] = []
    for message in messages:
        if not message.text:
            continue
        if told and told[-1]["role"] == message.role:
            told[-1]["content"] += "\n\n" + message.text
        else:
            told.append({"role": message.role, "content": message.text})
    return told
