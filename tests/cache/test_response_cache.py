"""What is kept, for whom, how long, how much of it; and what Cache-Control changes."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from conftest import Clock

from openbr.cache.kept import OVERHEAD_BYTES
from openbr.errors import (
    StreamInterruptedError,
    UpstreamProtocolError,
    UpstreamUnavailableError,
)
from openbr.records import Answer
from openbr.ultra import MemoryManager
from tests.cache.conftest import Run
from tests.cache.fakes import (
    ANA,
    BIA,
    DONE,
    ELSEWHERE,
    HERE,
    USAGE,
    Desk,
    FakeStream,
    Opener,
    body_of_text,
    chunk,
    completion,
    make_cache,
    make_request,
    read_all,
    text_events,
)


def stream(*texts: str, **facts: Any) -> FakeStream:
    finish = facts.get("finish") or "stop"
    return FakeStream(text_events(*texts, finish=finish), **facts)


async def ask(desk: Desk, answer: Any, *, as_stream: bool, **changes: Any) -> tuple[bytes, str]:
    """One request to its end: what it got, and hit, join or miss."""
    opener = Opener(answer)
    if as_stream:
        got = await desk.chat(opener, **changes)
        data, cache = await read_all(got), got.answer.cache
    else:
        whole = await desk.complete(opener, **changes)
        data, cache = whole.body, whole.answer.cache
    assert opener.calls == (cache == "miss")
    return data, cache


def fresh(text: str, as_stream: bool, **facts: Any) -> Any:
    if as_stream:
        return stream(text, **facts)
    finish = facts.pop("finish", "stop")
    return completion(body_of_text(text, finish), finish_reason=finish, **facts)


@pytest.mark.parametrize("as_stream", [True, False])
def test_a_hit_is_the_fresh_answer_with_facts_of_its_own(as_stream: bool, run: Run) -> None:
    async def main() -> None:
        cache = make_cache()
        desk = Desk(cache)
        answer = fresh("a", as_stream, usage=USAGE)
        answer.answer.upstream_model = "alpha-2026"
        first, cached = await ask(desk, answer, as_stream=as_stream)
        assert cached == "miss"
        again = await (desk.chat if as_stream else desk.complete)(Opener())
        assert again.answer == Answer(
            deployment=HERE,
            upstream_model="alpha-2026",
            finish_reason="stop",
            usage=USAGE,
            cache="hit",
        )
        again.answer.fallback = "down"  # the walk's own note, on this answer only
        assert (await (desk.chat if as_stream else desk.complete)(Opener())).answer.fallback is None
        assert (await ask(desk, None, as_stream=as_stream)) == (first, "hit")
        stats = cache.stats()
        assert (stats.hits, stats.misses, stats.joins, stats.entries) == (3, 1, 0, 1)
        assert stats.in_flight == 0 and stats.disk_bytes is None

    run(main())


def test_a_hit_comes_in_one_batch(run: Run) -> None:
    async def main() -> None:
        desk = Desk(make_cache())
        data, _ = await ask(desk, stream("a", "b"), as_stream=True)
        hit = await desk.chat(Opener())
        assert await hit.next() == data
        assert await hit.next() == b"" and await hit.next() == b""
        hit.close()

    run(main())


def test_callers_and_deployments_do_not_meet(run: Run) -> None:
    async def main() -> None:
        cache = make_cache()
        request = make_request()
        seen = []
        for caller in (ANA, BIA, ANA):
            for deployment in (HERE, ELSEWHERE):
                key = cache.key(request, caller, deployment)
                assert key is not None
                opener = Opener(stream("a", deployment=deployment))
                got = await cache.chat(key, request, deployment, opener)
                await read_all(got)
                seen.append((got.answer.cache, got.answer.deployment))
        missed = [("miss", HERE), ("miss", ELSEWHERE)]
        assert seen == [*missed, *missed, ("hit", HERE), ("hit", ELSEWHERE)]

    run(main())


def broken(error: Exception) -> FakeStream:
    return FakeStream(text_events("a")[:2], error=error)


@pytest.mark.parametrize("finish", ["length", "content_filter"])
@pytest.mark.parametrize("as_stream", [True, False])
def test_cut_answers_are_not_kept(finish: str, as_stream: bool, run: Run) -> None:
    async def main() -> None:
        desk = Desk(make_cache())
        for _ in range(2):
            answer = fresh("a", as_stream, finish=finish)
            assert (await ask(desk, answer, as_stream=as_stream))[1] == "miss"
        assert desk.cache.stats().entries == 0

    run(main())


def test_an_answer_without_a_finish_reason_is_not_kept(run: Run) -> None:
    async def main() -> None:
        desk = Desk(make_cache())
        await ask(desk, FakeStream([chunk({"content": "a"}), DONE]), as_stream=True)
        assert desk.cache.stats().entries == 0

    run(main())


@pytest.mark.parametrize("as_stream", [True, False])
def test_a_fallbacks_answer_is_not_kept(as_stream: bool, run: Run) -> None:
    async def main() -> None:
        desk = Desk(make_cache())
        other = fresh("a", as_stream, deployment=ELSEWHERE)
        assert (await ask(desk, other, as_stream=as_stream))[1] == "miss"
        noted = fresh("a", as_stream)
        noted.answer.fallback = "refused"
        got = await (desk.chat if as_stream else desk.complete)(Opener(noted))
        assert got.answer.fallback == "refused"
        if as_stream:
            await read_all(got)
        assert desk.cache.stats().entries == 0
        assert (await ask(desk, fresh("a", as_stream), as_stream=as_stream))[1] == "miss"

    run(main())


def test_who_answers_in_anothers_place_is_named(run: Run) -> None:
    async def main() -> None:
        desk = Desk(make_cache())
        other = stream("a", deployment=ELSEWHERE)
        assert (await desk.chat(Opener(other))).answer.deployment == ELSEWHERE
        assert (await desk.complete(Opener())).answer.deployment == ELSEWHERE

    run(main())


@pytest.mark.parametrize("as_stream", [True, False])
def test_errors_are_not_kept(as_stream: bool, run: Run) -> None:
    async def main() -> None:
        desk = Desk(make_cache())
        ask_once = desk.chat if as_stream else desk.complete
        for _ in range(2):
            opener = Opener(UpstreamUnavailableError("down", provider="fake"))
            with pytest.raises(UpstreamUnavailableError, match="down"):
                await ask_once(opener)
            assert opener.calls == 1
        assert (await ask(desk, fresh("a", as_stream), as_stream=as_stream))[1] == "miss"

    run(main())


def test_a_broken_stream_is_not_kept(run: Run) -> None:
    async def main() -> None:
        desk = Desk(make_cache())
        cut = broken(StreamInterruptedError("broke", provider="fake"))
        got = await desk.chat(Opener(cut))
        assert await got.next() + await got.next() == b"".join(text_events("a")[:2])
        with pytest.raises(StreamInterruptedError, match="broke"):
            await got.next()
        got.close()
        assert cut.closed and desk.cache.stats().entries == 0
        first = await desk.chat(Opener(broken(StreamInterruptedError("broke"))))
        with pytest.raises(StreamInterruptedError):
            await desk.complete(Opener())
        first.close()
        assert (await ask(desk, stream("a"), as_stream=True))[1] == "miss"

    run(main())


def test_a_caller_that_leaves_alone_leaves_nothing(run: Run) -> None:
    async def main() -> None:
        desk = Desk(make_cache())
        upstream = stream("a", "b")
        got = await desk.chat(Opener(upstream))
        await got.next()
        got.close()
        assert upstream.closed
        assert desk.cache.stats().entries == desk.cache.stats().in_flight == 0
        assert await got.next() == b""

    run(main())


def test_answers_die_at_their_age(clock: Clock, run: Run) -> None:
    async def main() -> None:
        desk = Desk(make_cache(clock, ttl_s=60.0))
        assert (await ask(desk, stream("a"), as_stream=True))[1] == "miss"
        clock.tick(59.9)
        assert (await ask(desk, stream("a"), as_stream=True))[1] == "hit"
        assert (await ask(desk, None, as_stream=False))[1] == "hit"  # keeps another form...
        clock.tick(0.1)
        assert (await ask(desk, stream("b"), as_stream=True))[1] == "miss"  # ...but no new life
        clock.tick(60)
        assert sum(one.expire() for one in desk.cache.caches().values()) == 1
        assert desk.cache.stats().entries == 0

    run(main())


def test_no_store_bypasses_and_leaves_what_is_kept() -> None:
    cache = make_cache()
    assert cache.key(make_request(cache_control="no-store"), ANA, HERE) is None


@pytest.mark.parametrize("header", ["no-cache", "max-age=0"])
@pytest.mark.parametrize("as_stream", [True, False])
def test_no_cache_asks_again_and_keeps_the_new_one(header: str, as_stream: bool, run: Run) -> None:
    async def main() -> None:
        desk = Desk(make_cache())
        old, _ = await ask(desk, fresh("old", as_stream), as_stream=as_stream)
        new, cached = await ask(
            desk, fresh("new", as_stream), as_stream=as_stream, cache_control=header
        )
        assert cached == "miss" and new != old
        assert await ask(desk, None, as_stream=as_stream) == (new, "hit")

    run(main())


def test_no_cache_does_not_join_an_older_call(run: Run) -> None:
    async def main() -> None:
        desk = Desk(make_cache())
        older, newer = stream("old", held=True), stream("new", held=True)
        first = await desk.chat(Opener(older))
        second = await desk.chat(Opener(newer), cache_control="no-cache")
        third = await desk.chat(Opener())
        assert [s.answer.cache for s in (first, second, third)] == ["miss", "miss", "join"]
        newer.release(99)
        assert await read_all(second) == await read_all(third) == b"".join(text_events("new"))
        older.release(99)
        assert await read_all(first) == b"".join(text_events("old"))
        kept, cached = await ask(desk, None, as_stream=True)
        assert (kept, cached) == (b"".join(text_events("new")), "hit")

    run(main())


def test_an_older_call_that_ends_first_is_neither_kept_nor_in_the_way(run: Run) -> None:
    async def main() -> None:
        desk = Desk(make_cache())
        older, newer = stream("old", held=True), stream("new", held=True)
        first = await desk.chat(Opener(older))
        second = await desk.chat(Opener(newer), cache_control="no-cache")
        older.release(99)
        await read_all(first)
        third = await desk.chat(Opener())
        assert third.answer.cache == "join" and desk.cache.stats().entries == 0
        newer.release(99)
        assert await read_all(second) == await read_all(third) == b"".join(text_events("new"))
        assert (await ask(desk, None, as_stream=True))[1] == "hit"

    run(main())


def test_no_cache_is_newer_than_every_call_of_the_key(run: Run) -> None:
    async def main() -> None:
        desk = Desk(make_cache())
        older, newer = stream("old", held=True), stream("new")
        first = await desk.chat(Opener(older), chain=(ELSEWHERE,))
        assert (await ask(desk, newer, as_stream=True, cache_control="no-cache"))[1] == "miss"
        older.release(99)
        await read_all(first)
        kept = await ask(desk, None, as_stream=True)
        assert kept == (b"".join(text_events("new")), "hit")

    run(main())


def test_max_age(clock: Clock, run: Run) -> None:
    async def main() -> None:
        desk = Desk(make_cache(clock))
        await ask(desk, stream("a"), as_stream=True)
        clock.tick(10)
        assert (await ask(desk, None, as_stream=True, cache_control="max-age=10"))[1] == "hit"
        clock.tick(1)
        newer, cached = await ask(desk, stream("b"), as_stream=True, cache_control="max-age=10")
        assert cached == "miss"
        assert await ask(desk, None, as_stream=True) == (newer, "hit")

    run(main())


def numbered(number: int) -> Desk:
    body = {
        "model": "m",
        "temperature": 0,
        "messages": [{"role": "user", "content": str(number)}],
    }
    return Desk(make_cache(), make_request(body))


def test_bounded_by_bytes_oldest_use_first(run: Run) -> None:
    async def main() -> None:
        cache = make_cache(max_bytes=256 * 1024)
        desks = [numbered(n) for n in range(40)]
        text = "x" * 20_000
        for desk in desks:
            desk.cache = cache
            assert (await ask(desk, stream(text), as_stream=True))[1] == "miss"
            assert cache.stats().bytes <= 256 * 1024
            assert (await ask(desks[0], None, as_stream=True))[1] == "hit"
        stats = cache.stats()
        assert stats.entries == 256 * 1024 // (20_000 + OVERHEAD_BYTES + len_of_frame())
        assert stats.evictions == 40 - stats.entries
        cached = [
            (await ask(desk, stream("x"), as_stream=True))[1] for desk in (desks[0], desks[1])
        ]
        assert cached == ["hit", "miss"]

    run(main())


def len_of_frame() -> int:
    return len(b"".join(text_events("")))


def test_nothing_larger_than_an_eighth_is_kept(run: Run) -> None:
    async def main() -> None:
        cache = make_cache(max_bytes=80_000)
        desk = Desk(cache)
        for size, cached in ((10_000, "miss"), (8_000, "miss"), (8_000, "hit")):
            answer = stream("x" * size)
            assert (await ask(desk, answer, as_stream=True))[1] == cached
            assert cache.stats().entries == (size == 8_000)
        # Both forms together would be too large: each hit makes the other form, and keeps one.
        for _ in range(2):
            whole, cached = await ask(desk, None, as_stream=False)
            assert cached == "hit" and len(msgspec.json.decode(whole)["choices"]) == 1
        assert cache.stats().bytes < 10_000

    run(main())


def test_a_cache_without_memory_still_shares_calls(run: Run) -> None:
    async def main() -> None:
        desk = Desk(make_cache(max_bytes=0))
        opener = Opener(fresh("a", False), held=True)
        both = asyncio.gather(desk.complete(opener), desk.complete(opener))
        await asyncio.sleep(0)
        opener.gate.set()
        assert {one.answer.cache for one in await both} == {"miss", "join"}
        assert opener.calls == 1 and desk.cache.stats().entries == 0

    run(main())


def test_the_other_form_is_made_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from openbr.cache import kept

    async def main() -> None:
        made: list[str] = []
        for name in ("body_of", "events_of"):
            convert = getattr(kept, name)
            monkeypatch.setattr(
                kept, name, lambda data, c=convert, n=name: made.append(n) or c(data)
            )
        streamed_first, whole_first = Desk(make_cache()), Desk(make_cache())
        await ask(streamed_first, stream("a"), as_stream=True)
        await ask(whole_first, fresh("a", False), as_stream=False)
        before = streamed_first.cache.stats().bytes
        for _ in range(3):
            assert (await ask(streamed_first, None, as_stream=False))[1] == "hit"
            assert (await ask(whole_first, None, as_stream=True))[1] == "hit"
        assert made == ["body_of", "events_of"]
        assert streamed_first.cache.stats().bytes > before

    run(main())


def test_a_body_that_nobody_can_read_is_asked_for_anew_as_a_stream(run: Run) -> None:
    async def main() -> None:
        desk = Desk(make_cache())
        odd = body_of_text("a", odd=0).replace(b'"odd":0', b'"odd":' + b"1" * 5000)
        opener = Opener(completion(odd), held=True)
        whole = asyncio.create_task(desk.complete(opener))
        await asyncio.sleep(0)
        joined = asyncio.create_task(desk.chat(opener))
        await asyncio.sleep(0)
        opener.gate.set()
        assert (await whole).body == odd
        with pytest.raises(UpstreamProtocolError, match="cannot be read"):
            await joined
        assert await ask(desk, None, as_stream=False) == (odd, "hit")
        assert (await ask(desk, stream("b"), as_stream=True))[1] == "miss"

    run(main())


def test_clear_and_close(run: Run) -> None:
    async def main() -> None:
        desk = Desk(make_cache())
        await ask(desk, stream("a"), as_stream=True)
        desk.cache.clear()
        assert (await ask(desk, stream("a"), as_stream=True))[1] == "miss"
        upstream = stream("a", held=True)
        other = Desk(desk.cache, make_request(b'{"model":"m","messages":[{}],"seed":1}'))
        got = await other.chat(Opener(upstream))
        desk.cache.close()
        assert upstream.closed and desk.cache.stats().in_flight == 0
        with pytest.raises(Exception, match="stopping"):
            await got.next()
        got.close()

    run(main())


def test_a_memory_manager_may_know_it() -> None:
    cache = make_cache()
    manager = MemoryManager()
    manager.add("answers", cache)
    assert manager.stats()["answers"].entries == 0  # type: ignore[union-attr]
    assert manager.trim().entries == 0
