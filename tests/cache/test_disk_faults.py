"""A file that is not as we left it, and a disk that fails: the gateway goes on without it."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Clock

from openbr.store.answers import APPLICATION_ID, AnswerFile, AnswersFailed
from tests.cache.conftest import Run
from tests.cache.test_disk import MIB, TTL_S, Make, chat, numbered, warnings


def write_garbage(path: Path) -> None:
    path.write_bytes(b"this is no database " * 500)


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_pages(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xff" * len(data[4096:])
    path.write_bytes(data)


def run_sql(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


def make_foreign(path: Path) -> None:
    path.unlink()
    run_sql(path, "CREATE TABLE somebody_elses (n)")


def make_newer(path: Path) -> None:
    run_sql(path, "PRAGMA user_version = 99")


@pytest.mark.parametrize(
    "spoil", [write_garbage, cut_in_half, flip_pages, make_foreign, make_newer]
)
def test_a_file_that_is_not_ours_is_made_anew(
    spoil: Callable[[Path], None],
    make: Make,
    path: Path,
    run: Run,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        desk = make()
        await chat(desk, "a")
        desk.cache.close()
        spoil(path)
        desk = make()
        assert (await chat(desk, "b"))[1] == "miss"
        (said,) = warnings(caplog)
        assert str(path) in said and "\n" not in said
        assert (await chat(make()))[1] == "hit"
        assert len(warnings(caplog)) == 1
        connection = sqlite3.connect(path)
        assert connection.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
        connection.close()

    run(main())


def test_an_entry_that_cannot_be_read_is_dropped(make: Make, path: Path, run: Run) -> None:
    async def main() -> None:
        await chat(make(), "a")
        make().cache.close()
        run_sql(path, "UPDATE answers SET data = x'c1'")
        assert (await chat(make(), "b"))[1] == "miss"
        assert (await chat(make()))[1] == "hit"
        make().cache.close()
        run_sql(path, "UPDATE answers SET data = 7")
        assert (await chat(make(), "c"))[1] == "miss"

    run(main())


def folder_in_its_place(path: Path) -> None:
    path.mkdir(parents=True)
    (path / "file").touch()


def file_for_its_folder(path: Path) -> None:
    path.parent.write_text("")


@pytest.mark.parametrize("spoil", [folder_in_its_place, file_for_its_folder])
def test_where_no_file_can_be_the_tier_is_off(
    spoil: Callable[[Path], None],
    make: Make,
    path: Path,
    run: Run,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        spoil(path)
        desk = make()
        assert (await chat(desk, "a"))[1] == "miss"
        assert (await chat(desk))[1] == "hit"  # from memory
        assert (await chat(numbered(desk.cache, 1), "b"))[1] == "miss"
        assert warnings(caplog)[-1].endswith("answers are kept in memory only")
        off = [line for line in warnings(caplog) if "in memory only" in line]
        assert len(off) == 1

    run(main())


def test_a_folder_that_may_not_be_written(
    make: Make,
    run: Run,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(path: Path, *_: Any) -> int:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    async def main() -> None:
        monkeypatch.setattr(os, "open", refuse)  # root, whom nothing stops, runs tests too
        desk = make()
        assert (await chat(desk, "a"))[1] == "miss"
        assert (await chat(desk))[1] == "hit"
        (said,) = warnings(caplog)
        assert "Permission denied" in said

    run(main())


class FailingConnection:
    """A connection whose disk fails from now on."""

    def __init__(self, code: int) -> None:
        self._code = code

    def execute(self, *_: Any) -> Any:
        error = sqlite3.OperationalError("the disk fails")
        error.sqlite_errorcode = self._code
        raise error

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    "code", [sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR]
)
def test_a_disk_that_fails_ends_the_tier_with_one_line(
    code: int, make: Make, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        desk = make()
        await chat(desk, "a")
        disk = desk.cache._disk
        assert disk is not None and await disk.find(b"x") is None
        assert disk._file is not None
        disk._file._connection.close()
        disk._file._connection = FailingConnection(code)  # type: ignore[assignment]
        for number in range(5):
            assert (await chat(numbered(desk.cache, number), "b"))[1] == "miss"
        assert disk.is_off
        (said,) = warnings(caplog)
        assert "the disk fails" in said and said.endswith("answers are kept in memory only")
        assert (await chat(desk))[1] == "hit"

    def patched() -> None:
        # SQLite's connection belongs to the worker; closing it here is the test's doing.
        connect = sqlite3.connect

        def anywhere(*args: Any, **kwargs: Any) -> sqlite3.Connection:
            return connect(*args, **{**kwargs, "check_same_thread": False})

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sqlite3, "connect", anywhere)
            run(main())

    patched()


def test_a_full_disk_in_the_middle_of_a_write(path: Path, wall: Clock) -> None:
    file = AnswerFile.open(path, 100 * MIB, TTL_S, wall())
    file._connection.execute("PRAGMA max_page_count = 40")
    file.keep(b"one", b"x" * 50_000, wall())
    with pytest.raises(AnswersFailed, match="full"):
        file.keep(b"two", b"x" * 200_000, wall())
    assert file.find(b"one", wall()) == (b"x" * 50_000, 0.0)
    file.close()


def test_damage_that_shows_later_ends_the_tier_and_the_file(
    make: Make, path: Path, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        cache = make().cache
        for number in range(10):
            await chat(numbered(cache, number), "x" * 50_000)
        cache.close()
        desk = make()
        assert (await chat(numbered(desk.cache, 0)))[1] == "hit"
        flip_pages(path)  # under the open file
        for number in range(1, 10):
            await chat(numbered(desk.cache, number), "y")
        desk.cache.close()
        assert len(warnings(caplog)) <= 1
        assert (await chat(make(), "a"))[1] == "miss"
        assert (await chat(make()))[1] == "hit"

    run(main())


def test_a_file_that_somebody_locks_is_left_alone(
    make: Make, path: Path, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        await chat(make(), "a")
        desk = make()
        assert (await chat(desk))[1] == "hit"
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        assert (await chat(numbered(desk.cache, 1), "b"))[1] == "miss"
        desk.cache._kept.clear()
        assert (await chat(desk))[1] == "hit"  # reading goes on meanwhile
        other.execute("ROLLBACK")
        other.close()
        assert not warnings(caplog)
        assert not desk.cache._disk.is_off  # type: ignore[union-attr]

    run(main())
