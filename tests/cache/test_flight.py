"""One call for many callers: who joins, who leaves, who fails, who reads slowly."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import traceback
from typing import Any

import pytest

from openbr.errors import (
    OpenbrError,
    StreamInterruptedError,
    UpstreamRejectedError,
    UpstreamTimeoutError,
)
from openbr.providers.base import ChatStream
from tests.cache.conftest import Run
from tests.cache.fakes import (
    DONE,
    ELSEWHERE,
    HERE,
    USAGE,
    USAGE_EVENT,
    Desk,
    FakeStream,
    Opener,
    body_of_text,
    chunk,
    completion,
    make_cache,
    read_all,
    text_events,
    turns,
)

EVENTS = text_events(*(f"word {n} " for n in range(20)))
ALL = b"".join(EVENTS)
BIG = chunk({"content": "x" * 1000})
FINISH = chunk({}, "stop")
TEXT = "".join(f"word {n} " for n in range(20))


def leave(desk: Desk, task: asyncio.Task[Any]) -> None:
    """A caller goes, as the server sees it."""
    if not desk.cache.spare(task):
        task.cancel()


def content_of(body: bytes) -> str:
    content: str = json.loads(body)["choices"][0]["message"]["content"]
    return content


async def chat(desk: Desk, opener: Opener, **changes: Any) -> tuple[bytes, str]:
    stream = await desk.chat(opener, **changes)
    return await read_all(stream), stream.answer.cache


async def complete(desk: Desk, opener: Opener) -> tuple[str, str]:
    whole = await desk.complete(opener)
    return content_of(whole.body), whole.answer.cache


def test_a_hundred_streams_share_one_call(run: Run) -> None:
    async def main() -> None:
        desk = Desk(make_cache())
        upstream = FakeStream(EVENTS, held=True)
        opener = Opener(upstream, held=True)
        callers = [asyncio.create_task(chat(desk, opener)) for _ in range(100)]
        await turns()
        opener.gate.set()
        for _ in range(len(EVENTS) + 1):
            upstream.release()
            await turns()
        got = await asyncio.gather(*callers)
        assert [data for data, _ in got] == [ALL] * 100
        assert [cache for _, cache in got] == ["miss"] + ["join"] * 99
        assert opener.calls == 1
        assert upstream.calls == len(EVENTS) + 1 and upstream.closed
        stats = desk.cache.stats()
        assert (stats.misses, stats.joins, stats.in_flight, stats.entries) == (1, 99, 0, 1)

    run(main())


@pytest.mark.parametrize("leader_streams", [True, False])
def test_streams_and_bodies_share_one_call(leader_streams: bool, run: Run) -> None:
    async def main() -> None:
        desk = Desk(make_cache())
        answer: Any = FakeStream(EVENTS) if leader_streams else completion(body_of_text(TEXT))
        opener = Opener(answer, held=True)
        ways = [chat, complete] if leader_streams else [complete, chat]
        callers = [asyncio.create_task(ways[n % 2](desk, opener)) for n in range(100)]
        await turns()
        opener.gate.set()
        got = await asyncio.gather(*callers)
        assert [cache for _, cache in got] == ["miss"] + ["join"] * 99
        assert opener.calls == 1
        texts = {data for data, _ in got if isinstance(data, str)}
        streams = {data for data, _ in got if isinstance(data, bytes)}
        assert texts == {TEXT} and len(streams) == 1
        if leader_streams:
            assert streams == {ALL}
        assert desk.cache.stats().in_flight == 0

    run(main())


def test_a_late_caller_gets_what_has_passed_and_then_the_rest(run: Run) -> None:
    async def main() -> None:
        desk = Desk(make_cache())
        upstream = FakeStream(EVENTS, held=True)
        first = await desk.chat(Opener(upstream))
        upstream.release(7)
        seen = [await first.next() for _ in range(7)]
        assert seen == EVENTS[:7]
        late = await desk.chat(Opener())
        assert late.answer.cache == "join"
        assert await late.next() == b"".join(EVENTS[:7])
        waiting = [asyncio.create_task(stream.next()) for stream in (late, first)]
        await turns()
        upstream.release()
        assert await asyncio.gather(*waiting) == [EVENTS[7]] * 2
        upstream.release(99)
        rest = b"".join(EVENTS[8:])
        assert await read_all(late) == await read_all(first) == rest
        assert upstream.closed

    run(main())


@pytest.mark.parametrize("end", ["cancel", "close"])
def test_the_first_caller_may_leave_while_it_streams(end: str, run: Run) -> None:
    async def main() -> None:
        desk = Desk(make_cache())
        upstream = FakeStream(EVENTS, held=True)
        opener = Opener(upstream)
        first = await desk.chat(opener)
        others = [await desk.chat(opener) for _ in range(3)]
        asked = asyncio.create_task(first.next())
        await turns()  # the first one waits for the upstream, for all of them
        waiting = [asyncio.create_task(read_all(stream)) for stream in others]
        body = asyncio.create_task(complete(desk, opener))
        await turns()
        assert upstream.calls == 1
        if end == "cancel":
            asked.cancel()
            await asyncio.wait([asked])
            assert asked.cancelled()
        first.close()
        await turns()
        assert not upstream.closed
        upstream.release(99)
        assert await asyncio.gather(*waiting) == [ALL] * 3
        assert await body == (TEXT, "join")
        assert opener.calls == 1 and upstream.closed
        if end == "close":
            assert await asked == b""
        assert (await chat(desk, Opener()))[1] == "hit"

    run(main())


@pytest.mark.parametrize("first_way", [chat, complete])
def test_the_first_caller_may_leave_before_the_answer_begins(first_way: Any, run: Run) -> None:
    async def main() -> None:
        desk = Desk(make_cache())
        answer: Any = FakeStream(EVENTS) if first_way is chat else completion(body_of_text(TEXT))
        opener = Opener(answer, held=True)
        first = asyncio.create_task(first_way(desk, opener))
        await turns()
        others = [asyncio.create_task(way(desk, opener)) for way in (chat, complete) * 5]
        await turns()
        leave(desk, first)
        await turns()
        assert opener.cancelled == 0
        opener.gate.set()
        got = await asyncio.gather(*others)
        assert first.cancelled()
        assert {cache for _, cache in got} == {"join"}
        assert {data for data, _ in got if isinstance(data, str)} == {TEXT}
        assert opener.calls == 1

    run(main())


@pytest.mark.parametrize("first_way", [chat, complete])
def test_a_first_caller_that_is_cut_off_is_made_up_for(first_way: Any, run: Run) -> None:
    """Cancelled by somebody who did not ask whether it may: the others wait for a second call."""

    async def main() -> None:
        desk = Desk(make_cache())
        answer: Any = FakeStream(EVENTS) if first_way is chat else completion(body_of_text(TEXT))
        opener = Opener(answer, held=True)
        first = asyncio.create_task(first_way(desk, opener))
        await turns()
        others = [asyncio.create_task(way(desk, opener)) for way in (chat, complete) * 5]
        await turns()
        first.cancel()
        await turns()
        assert first.cancelled() and (opener.calls, opener.cancelled) == (2, 1)
        opener.gate.set()
        got = await asyncio.gather(*others)
        assert {data for data, _ in got if isinstance(data, str)} == {TEXT}
        assert opener.calls == 2

    run(main())


@pytest.mark.parametrize("way", [chat, complete])
@pytest.mark.parametrize("callers", [1, 4])
def test_the_last_to_leave_ends_the_opening(way: Any, callers: int, run: Run) -> None:
    async def main() -> None:
        desk = Desk(make_cache())
        opener = Opener(None, held=True)
        tasks = [asyncio.create_task(way(desk, opener)) for _ in range(callers)]
        await turns()
        for task in tasks:
            assert opener.cancelled == 0
            leave(desk, task)
            await turns()
        assert (opener.calls, opener.cancelled) == (1, 1)
        assert all(task.cancelled() for task in tasks)
        assert desk.cache.stats().in_flight == 0

    run(main())


def test_a_stream_that_opens_although_all_have_left_is_closed(run: Run) -> None:
    async def main() -> None:
        desk = Desk(make_cache())
        upstream = FakeStream(EVENTS)
        waiting = asyncio.Event()

        async def stubborn() -> ChatStream:
            with contextlib.suppress(asyncio.CancelledError):
                waiting.set()
                await asyncio.Event().wait()
            return upstream

        first = asyncio.create_task(desk.chat(Opener(None, held=True)))
        await turns()
        task = asyncio.create_task(desk.chat(stubborn))
        await turns()
        first.cancel()
        await turns()
        assert not waiting.is_set()  # who joined brings no way of asking of its own
        task.cancel()
        await turns()
        assert task.cancelled() and desk.cache.stats().in_flight == 0
        third = asyncio.create_task(desk.chat(stubborn))
        await waiting.wait()
        fourth = asyncio.create_task(desk.chat(Opener(None)))
        await turns()
        leave(desk, third)
        leave(desk, fourth)
        await turns()
        assert fourth.cancelled() and third.cancelled() and upstream.closed

    run(main())


def test_a_caller_that_leaves_at_once_asks_nobody(run: Run) -> None:
    async def main() -> None:
        desk = Desk(make_cache())
        opener = Opener(None)
        task = asyncio.create_task(chat(desk, opener))
        task.cancel()
        await turns()
        assert task.cancelled() and opener.calls == 0

    run(main())


@pytest.mark.parametrize("number", range(8))
def test_whoever_leaves_whenever_the_upstream_is_let_go(number: int, run: Run) -> None:
    """Cancelled after each possible number of turns of the loop: never a stream left open."""

    async def main() -> None:
        desk = Desk(make_cache())
        upstream = FakeStream(EVENTS[:3], held=True)
        upstream.release(2)
        opener = Opener(upstream)
        task = asyncio.create_task(chat(desk, opener))
        await turns(number)
        task.cancel()
        await turns(5)
        assert task.cancelled()
        assert upstream.closed == (opener.calls == 1)
        assert desk.cache.stats().in_flight == 0

    run(main())


def test_the_last_reader_to_leave_closes_the_upstream_at_once(run: Run) -> None:
    async def main() -> None:
        desk = Desk(make_cache())
        upstream = FakeStream(EVENTS, held=True)
        upstream.release(2)
        streams = [await desk.chat(Opener(upstream)) for _ in range(3)]
        for stream in streams:
            assert not upstream.closed
            await stream.next()
            stream.close()
            stream.close()
        assert upstream.closed
        assert desk.cache.stats().in_flight == 0
        opener = Opener(FakeStream(EVENTS))
        assert await chat(desk, opener) == (ALL, "miss")

    run(main())


@pytest.mark.parametrize(
    "error",
    [
        UpstreamTimeoutError("too slow", provider="fake", retry_after_s=3),
        UpstreamRejectedError("no", status=422, code="odd", param="n", provider="fake"),
    ],
)
def test_a_failed_opening_fails_for_each_and_is_asked_once(error: OpenbrError, run: Run) -> None:
    async def main() -> None:
        desk = Desk(make_cache())
        cause = ValueError("why")
        error.__cause__ = cause
        opener = Opener(error, held=True)
        ways = (chat, complete) * 10
        tasks = [asyncio.create_task(way(desk, opener)) for way in ways]
        await turns()
        opener.gate.set()
        got = await asyncio.gather(*tasks, return_exceptions=True)
        assert opener.calls == 1
        assert len({id(one) for one in got}) == 20
        for one in got:
            assert type(one) is type(error)
            assert one.__cause__ is cause
            assert (str(one), one.__dict__) == (str(error), error.__dict__)
            assert len(traceback.extract_tb(one.__traceback__)) < 15
        again = Opener(FakeStream(EVENTS))
        assert await chat(desk, again) == (ALL, "miss")

    run(main())


def test_a_stream_that_breaks_breaks_for_each_after_what_it_had(run: Run) -> None:
    async def main() -> None:
        desk = Desk(make_cache())
        broken = StreamInterruptedError("broke", provider="fake", upstream_status=200)
        upstream = FakeStream(EVENTS[:5], error=broken)
        opener = Opener(upstream, held=True)

        async def read() -> tuple[bytes, Exception]:
            stream = await desk.chat(opener)
            out = b""
            with pytest.raises(StreamInterruptedError) as failed:
                while batch := await stream.next():
                    out += batch
            with pytest.raises(StreamInterruptedError):
                await stream.next()
            stream.close()
            return out, failed.value

        tasks = [asyncio.create_task(read()) for _ in range(10)]
        body = asyncio.create_task(complete(desk, opener))
        await turns()
        opener.gate.set()
        got = await asyncio.gather(*tasks)
        assert {out for out, _ in got} == {b"".join(EVENTS[:5])}
        assert len({id(error) for _, error in got}) == 10
        with pytest.raises(StreamInterruptedError, match="broke"):
            await body
        assert opener.calls == 1 and upstream.closed
        assert desk.cache.stats().entries == 0

    run(main())


def test_what_is_no_error_of_ours_reaches_each_as_it_is(run: Run) -> None:
    async def main() -> None:
        desk = Desk(make_cache())
        defect = KeyError("a defect")
        opener = Opener(defect, held=True)
        tasks = [asyncio.create_task(chat(desk, opener)) for _ in range(3)]
        await turns()
        opener.gate.set()
        got = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(one is defect for one in got)

    run(main())


def test_an_opening_that_is_cancelled_from_outside_keeps_nobody_waiting(run: Run) -> None:
    async def main() -> None:
        desk = Desk(make_cache())

        async def cancelled() -> ChatStream:
            raise asyncio.CancelledError

        with pytest.raises(asyncio.CancelledError):
            await desk.chat(cancelled)
        assert desk.cache.stats().in_flight == 0

    run(main())


def test_who_has_a_fallback_shares_no_call_with_who_has_none(run: Run) -> None:
    async def main() -> None:
        desk = Desk(make_cache())
        other = FakeStream(EVENTS, deployment=ELSEWHERE, held=True)
        strict = FakeStream(text_events("mine"), held=True)
        first = await desk.chat(Opener(other), chain=(ELSEWHERE,))
        joined = await desk.chat(Opener(), chain=(ELSEWHERE,))
        second = await desk.chat(Opener(strict))
        third = await desk.chat(Opener())
        assert [s.answer.cache for s in (first, joined, second, third)] == ["miss", "join"] * 2
        assert {s.answer.deployment for s in (first, joined)} == {ELSEWHERE}
        assert {s.answer.deployment for s in (second, third)} == {HERE}
        for upstream in (other, strict):
            upstream.release(99)
        assert await read_all(first) == await read_all(joined) == ALL
        assert await read_all(second) == await read_all(third) == b"".join(text_events("mine"))
        kept = await desk.chat(Opener(), chain=(ELSEWHERE,))  # an answer of HERE serves both
        assert await read_all(kept) == b"".join(text_events("mine"))

    run(main())


@pytest.mark.parametrize("wants_usage", [True, False])
def test_each_gets_the_usage_as_it_asked(wants_usage: bool, run: Run) -> None:
    async def main() -> None:
        desk = Desk(make_cache())
        upstream = FakeStream([*EVENTS[:-1], USAGE_EVENT, DONE], usage=USAGE, held=True)
        first = await desk.chat(Opener(upstream), include_usage=not wants_usage)
        second = await desk.chat(Opener(), include_usage=wants_usage)
        upstream.release(99)
        asked, other = (second, first) if wants_usage else (first, second)
        assert await read_all(asked) == ALL.replace(DONE, USAGE_EVENT + DONE)
        assert await read_all(other) == ALL
        assert asked.answer.usage == other.answer.usage == USAGE

    run(main())


@pytest.mark.parametrize("seed", range(30))
def test_callers_that_come_and_go_at_random(seed: int, run: Run) -> None:
    """Who stays gets all of it; while anybody stays, the upstream is asked once and kept open."""
    rng = random.Random(seed)
    is_large = rng.random() < 0.5  # then nobody joins once it is found to be so
    bound = 8 * len(BIG) * (5 if is_large else 1000)
    events = [chunk({"content": f"{n} {'x' * 900}"}) for n in range(60)]
    expected = b"".join([*events, FINISH, DONE])

    async def read(desk: Desk, opener: Opener) -> bytes:
        stream = await desk.chat(opener)
        out = []
        try:
            while batch := await stream.next():
                out.append(batch)
                for _ in range(rng.randint(0, 3)):
                    await asyncio.sleep(0)
        finally:
            stream.close()
        return b"".join(out)

    async def whole(desk: Desk, opener: Opener) -> str:
        return content_of((await desk.complete(opener)).body)

    async def main() -> None:
        desk = Desk(make_cache(max_bytes=bound))
        upstream = FakeStream([*events, FINISH, DONE], held=True)
        opener = Opener(upstream, held=True)
        stays = asyncio.create_task(read(desk, opener))
        await turns(1)
        others: list[asyncio.Task[Any]] = []
        for step in range(200):
            if step < (5 if is_large else 20):
                others.append(asyncio.create_task(rng.choice([read, whole])(desk, opener)))
            if step == 5:
                opener.gate.set()
            if rng.random() < 0.1 and others:
                rng.choice(others).cancel()
            upstream.release(rng.randint(0, 2))
            assert upstream.closed == upstream.is_over
            await turns(rng.randint(0, 2))
        upstream.release(99)
        got = await asyncio.gather(stays, *others, return_exceptions=True)
        texts = {one for one in got if isinstance(one, str)}
        streams = {one for one in got if isinstance(one, bytes)}
        assert texts <= {"".join(f"{n} {'x' * 900}" for n in range(60))}
        assert streams <= {expected} and texts | streams
        left = [one for one in got if not isinstance(one, (str, bytes))]
        assert all(isinstance(one, asyncio.CancelledError) for one in left)
        assert opener.calls == 1 and upstream.closed
        assert desk.cache.stats().in_flight == 0

    run(main())
