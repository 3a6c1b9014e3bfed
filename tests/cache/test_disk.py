"""The tier on disk: what outlives the process, what it may cost, and what happens when it fails."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Clock

from openbr.cache import ResponseCache
from openbr.cache.kept import KeptAnswer
from openbr.config import CacheConfig
from tests.cache.conftest import Run
from tests.cache.fakes import (
    DONE,
    USAGE,
    USAGE_EVENT,
    Desk,
    FakeStream,
    Opener,
    body_of_text,
    completion,
    make_request,
    read_all,
    text_events,
    turns,
)

MIB = 1024 * 1024
TTL_S = 3600.0


Make = Callable[..., Desk]


async def chat(desk: Desk, *texts: str, **changes: Any) -> tuple[bytes, str]:
    opener = Opener(FakeStream(text_events(*texts), usage=USAGE))
    stream = await desk.chat(opener, **changes)
    data = await read_all(stream)
    assert opener.calls == (stream.answer.cache == "miss")
    return data, stream.answer.cache


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def test_answers_outlive_the_process(make: Make, path: Path, run: Run) -> None:
    async def main() -> None:
        data, cached = await chat(make(), "a", "b")
        assert cached == "miss"
        desk = make()
        assert await chat(desk) == (data, "hit")
        with_usage, _ = await chat(desk, include_usage=True)
        assert with_usage == data.replace(DONE, USAGE_EVENT + DONE)
        assert desk.cache.stats().disk_bytes == 20480
        body = await make().complete(Opener())
        assert json.loads(body.body)["choices"][0]["message"]["content"] == "ab"
        assert (body.answer.cache, body.answer.usage) == ("hit", USAGE)
        assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)

    run(main())


def test_a_body_outlives_it_too_and_is_found_once(make: Make, run: Run) -> None:
    async def main() -> None:
        fresh = completion(body_of_text("a"))
        assert (await make().complete(Opener(fresh))).body == fresh.body
        desk = make()
        asked = await asyncio.gather(*(desk.complete(Opener()) for _ in range(10)))
        assert {(one.body, one.answer.cache) for one in asked} == {(fresh.body, "hit")}

    run(main())


def test_callers_at_once_ask_the_upstream_once(make: Make, run: Run) -> None:
    async def main() -> None:
        desk = make()
        opener = Opener(completion(body_of_text("a")), held=True)
        callers = [asyncio.create_task(desk.complete(opener)) for _ in range(20)]
        while opener.calls == 0:
            await asyncio.sleep(0)
        opener.gate.set()
        cached = [(await one).answer.cache for one in callers]
        assert opener.calls == 1 and cached.count("miss") == 1

    run(main())


def test_nothing_is_opened_before_it_is_needed(make: Make, path: Path, run: Run) -> None:
    async def main() -> None:
        threads = threading.active_count()
        make()
        assert not path.exists() and threading.active_count() == threads

    run(main())


def test_a_tier_that_is_off_is_not_even_loaded() -> None:
    look = (
        "import sys, pathlib; from openbr.cache import ResponseCache;"
        "from openbr.config import CacheConfig;"
        "ResponseCache.create(CacheConfig(), pathlib.Path('answers.db'));"
        "print([m for m in ('openbr.cache.disk', 'openbr.store.answers', 'sqlite3')"
        " if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", look], text=True).strip() == "[]"


def test_create_makes_the_tier_where_it_is_configured(path: Path) -> None:
    on = ResponseCache.create(CacheConfig(disk_bytes=MIB), path)
    assert on.stats().disk_bytes == 0
    assert ResponseCache.create(CacheConfig(disk_bytes=MIB, mode="off"), path).stats() is not None
    assert ResponseCache.create(CacheConfig(), path).stats().disk_bytes is None


def test_answers_die_by_the_wall_clock(make: Make, wall: Clock, clock: Clock, run: Run) -> None:
    async def main() -> None:
        await chat(make(clock), "a")
        wall.tick(TTL_S - 1)
        desk = make(clock)
        assert (await chat(desk))[1] == "hit"
        clock.tick(1)  # what came from the disk has no new life in memory
        wall.tick(1)
        assert (await chat(desk, "b"))[1] == "miss"
        wall.tick(-TTL_S - 100)  # a clock that was set back: nothing from the future is believed
        assert (await chat(make(clock), "c"))[1] == "miss"

    run(main())


def test_max_age_holds_for_the_disk(make: Make, wall: Clock, clock: Clock, run: Run) -> None:
    async def main() -> None:
        await chat(make(clock), "a")
        wall.tick(10)
        assert (await chat(make(clock), cache_control="max-age=10"))[1] == "hit"
        assert (await chat(make(clock), "b", cache_control="max-age=9"))[1] == "miss"
        wall.tick(5)
        data, cached = await chat(make(clock), "c", cache_control="no-cache")
        assert cached == "miss"
        assert await chat(make(clock)) == (data, "hit")

    run(main())


def test_what_is_not_kept_is_not_written(make: Make, run: Run) -> None:
    async def main() -> None:
        cut = FakeStream(text_events("a", finish="length"), finish="length")
        await read_all(await make().chat(Opener(cut)))
        assert (await chat(make(), "b"))[1] == "miss"

    run(main())


def numbered(cache: ResponseCache, number: int) -> Desk:
    messages = [{"role": "user", "content": str(number)}]
    return Desk(cache, make_request({"model": "m", "temperature": 0, "messages": messages}))


def test_bounded_by_bytes_oldest_use_first(make: Make, path: Path, wall: Clock, run: Run) -> None:
    async def main() -> None:
        cache = make(ttl_s=1e6).cache
        for number in range(60):
            wall.tick(100)
            await chat(numbered(cache, number), "x" * 50_000)
            cache._kept.clear()  # so that the first one is asked of the disk, and used there
            assert (await chat(numbered(cache, 0)))[1] == "hit"
        cache.close()
        assert path.stat().st_size <= MIB
        cache = make(ttl_s=1e6).cache
        cached = [(await chat(numbered(cache, n), "y"))[1] for n in (0, 1, 30, 59)]
        assert cached == ["hit", "miss", "miss", "hit"]

    run(main())


def test_a_smaller_bound_shrinks_the_file(make: Make, path: Path, run: Run) -> None:
    async def main() -> None:
        cache = make(max_bytes=4 * MIB).cache
        for number in range(40):
            await chat(numbered(cache, number), "x" * 50_000)
        cache.close()
        assert path.stat().st_size > 1.5 * MIB
        await chat(make(max_bytes=MIB), "a")
        make().cache.close()
        assert path.stat().st_size <= MIB

    run(main())


def test_an_answer_larger_than_an_eighth_is_not_written(make: Make, run: Run) -> None:
    async def main() -> None:
        await chat(make(max_bytes=MIB), "x" * 140_000)
        assert (await chat(make(), "a"))[1] == "miss"

    run(main())


def test_what_is_too_large_for_the_memory_is_not_written_either(make: Make, run: Run) -> None:
    async def main() -> None:
        large = completion(body_of_text("x" * 5 * MIB))
        assert (await make(max_bytes=64 * MIB).complete(Opener(large))).answer.cache == "miss"
        small = completion(body_of_text("x"))
        assert (await make(max_bytes=64 * MIB).complete(Opener(small))).answer.cache == "miss"

    run(main())


def test_clear_forgets_the_disk_too(make: Make, run: Run) -> None:
    async def main() -> None:
        desk = make()
        await chat(desk, "a")
        desk.cache.clear()
        assert (await chat(desk, "b"))[1] == "miss"
        assert (await chat(make()))[1] == "hit"

    run(main())


def test_too_much_to_write_is_left_out(
    make: Make, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from openbr.cache import disk as disk_module

    monkeypatch.setattr(disk_module, "MAX_WAITING", 9_000)

    async def main() -> None:
        disk = make().cache._disk
        assert disk is not None
        begun, go_on = threading.Event(), threading.Event()
        disk._submit(lambda: (begun.set(), go_on.wait()))
        begun.wait()
        for number in range(10):
            answer = KeptAnswer.of(completion(b"").answer, body=b"x" * 4000)
            disk.keep(bytes([number]), answer)
        go_on.set()
        found = [await disk.find(bytes([number])) is not None for number in range(10)]
        assert found == [True] + [False] * 9
        await turns()
        disk.keep(b"later", answer)
        assert await disk.find(b"later") is not None

    run(main())


def test_a_closed_tier_has_nothing(make: Make, run: Run) -> None:
    async def main() -> None:
        desk = make()
        await chat(desk, "a")
        disk = desk.cache._disk
        assert disk is not None
        desk.cache.close()
        desk.cache.close()
        assert disk.is_off and await disk.find(b"x") is None
        disk.keep(b"x", KeptAnswer.of(completion(b"").answer))
        desk.cache.clear()
        assert not [t for t in threading.enumerate() if t.name.startswith("openbr-answers")]

    run(main())
