"""Answers that are too large to be kept: shared all the same, in bounded memory."""

from __future__ import annotations

import asyncio

import pytest

from openbr.cache import flight as flight_module
from openbr.errors import OpenbrError
from tests.cache.conftest import Run
from tests.cache.fakes import (
    DONE,
    Desk,
    FakeStream,
    Opener,
    make_cache,
    read_all,
    text_events,
    turns,
)
from tests.cache.test_flight import BIG, FINISH, chat, content_of

MANY = [BIG] * 400


@pytest.fixture
def small_ahead(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(flight_module, "MAX_AHEAD", 10 * len(BIG))
    return 10 * len(BIG)


def test_a_slow_reader_loses_nothing_and_holds_the_fast_one_back(
    small_ahead: int, run: Run
) -> None:
    async def main() -> None:
        desk = Desk(make_cache(max_bytes=8 * 20 * len(BIG)))
        upstream = FakeStream([*MANY, FINISH, DONE])
        slow = await desk.chat(Opener(upstream))
        quick = await desk.chat(Opener())
        body = asyncio.create_task(desk.complete(Opener()))
        read_quickly = asyncio.create_task(read_all(quick))
        await turns(200)
        # The bound of what is kept, one batch beyond it, and then no more until the slow one reads.
        assert upstream.calls == 21 and not read_quickly.done()
        out = []
        while batch := await slow.next():
            out.append(batch)
            await turns(20)
            behind = upstream.calls * len(BIG) - sum(map(len, out))
            assert behind <= small_ahead + 2 * len(BIG)
        slow.close()
        expected = b"".join([*MANY, FINISH, DONE])
        assert b"".join(out) == await read_quickly == expected
        assert content_of((await body).body) == "x" * 1000 * len(MANY)
        stats = desk.cache.stats()
        assert (stats.entries, stats.in_flight) == (0, 0)

    run(main())


def test_a_slow_reader_that_leaves_lets_the_others_go_on(small_ahead: int, run: Run) -> None:
    async def main() -> None:
        desk = Desk(make_cache(max_bytes=8 * 20 * len(BIG)))
        upstream = FakeStream([*MANY, FINISH, DONE])
        slow = await desk.chat(Opener(upstream))
        quick = asyncio.create_task(read_all(await desk.chat(Opener())))
        await turns(200)
        assert not quick.done()
        slow.close()
        assert await quick == b"".join([*MANY, FINISH, DONE])

    run(main())


def test_nobody_joins_an_answer_that_is_too_large(run: Run) -> None:
    async def main() -> None:
        desk = Desk(make_cache(max_bytes=8 * 20 * len(BIG)))
        upstream = FakeStream([*MANY, FINISH, DONE])
        first = await desk.chat(Opener(upstream))
        for _ in range(30):
            await first.next()
        opener = Opener(FakeStream(text_events("another")))
        assert (await chat(desk, opener))[1] == "miss"
        assert await read_all(first) == b"".join([*MANY[30:], FINISH, DONE])
        # The large one landed last, and did not take the place of the other's answer.
        assert await chat(desk, Opener()) == (b"".join(text_events("another")), "hit")

    run(main())


def test_one_reader_of_a_large_answer_keeps_no_more_than_the_bound(run: Run) -> None:
    async def main() -> None:
        desk = Desk(make_cache(max_bytes=8 * 20 * len(BIG)))
        stream = await desk.chat(Opener(FakeStream([*MANY, FINISH, DONE])))
        held = []
        while await stream.next():
            flight = stream._flight  # type: ignore[attr-defined]
            held.append(sum(map(len, flight._pieces)))
        assert max(held) <= 20 * len(BIG) and held[-1] == 0
        stream.close()

    run(main())


def test_a_body_larger_than_its_bound_is_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flight_module, "MAX_FOLDED", 100 * len(BIG))

    async def main() -> None:
        desk = Desk(make_cache(max_bytes=8 * 20 * len(BIG)))
        upstream = FakeStream([*MANY, FINISH, DONE], held=True)
        first = await desk.chat(Opener(upstream))
        body = asyncio.create_task(desk.complete(Opener()))
        await turns()
        upstream.release(999)
        assert await read_all(first) == b"".join([*MANY, FINISH, DONE])
        with pytest.raises(OpenbrError, match="larger than"):
            await body

    run(main())
