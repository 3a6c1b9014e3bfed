"""Opening, refusing, transactions, and what survives a kill."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from openbr.errors import ConfigError, ServiceUnavailableError
from openbr.store import Store, settings
from openbr.store.migrations import APPLICATION_ID, MIGRATIONS

Hold = Callable[..., contextlib.AbstractContextManager[None]]


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        Store.open(path, **options).close()
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def pragma(store: Store, name: str) -> object:
    return store.write(lambda c: c.execute(f"PRAGMA {name}").fetchone()[0])


# opening


def test_a_new_store_is_private_and_migrated(path: Path) -> None:
    old = os.umask(0)
    try:
        store = Store.open(path)
        store.write(settings.put, "a", "1")
    finally:
        os.umask(old)
    assert mode(path.parent) == 0o700
    files = sorted(file.name for file in path.parent.iterdir())
    assert files == [path.name, path.name + "-shm", path.name + "-wal"]
    assert {mode(file) for file in path.parent.iterdir()} == {0o600}
    assert pragma(store, "user_version") == len(MIGRATIONS)
    assert pragma(store, "application_id") == APPLICATION_ID
    store.close()
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_files_that_others_may_read_are_closed_to_them(path: Path) -> None:
    Store.open(path).close()
    path.chmod(0o644)
    store = Store.open(path)
    assert mode(path) == 0o600
    store.close()


def test_a_folder_that_was_there_keeps_its_mode(tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    folder.mkdir(mode=0o755)
    Store.open(folder / "openbr.sqlite3").close()
    assert mode(folder) == 0o755


def test_the_settings_of_the_connections(store: Store) -> None:
    for name, value in {
        "journal_mode": "wal",
        "synchronous": 2,
        "foreign_keys": 1,
        "busy_timeout": 5000,
        "cache_size": -256,
    }.items():
        assert pragma(store, name) == value
    assert store.read(lambda c: c.execute("PRAGMA query_only").fetchone()[0]) == 1


def test_it_is_still_there_the_next_time(path: Path) -> None:
    store = Store.open(path)
    store.write(settings.put, "language", "pt-BR")
    store.close()
    again = Store.open(path)
    assert again.read(settings.get, "language") == "pt-BR"
    again.close()


def test_two_stores_in_one_process_are_two(tmp_path: Path) -> None:
    one, two = Store.open(tmp_path / "one"), Store.open(tmp_path / "two")
    one.write(settings.put, "who", "one")
    assert two.read(settings.get, "who") is None
    one.close()
    two.close()


START_TOGETHER = """
import os, pathlib, sys
from openbr.store import Store
from openbr.store.migrations import MIGRATIONS
for round_number in range(25):
    path = pathlib.Path(sys.argv[1], str(round_number), "openbr.sqlite3")
    if sys.argv[2] == "old":
        Store.open(path, migrations=MIGRATIONS[:1]).close()
    waiting, starting_shot = os.pipe()
    children = []
    for _ in range(4):
        child = os.fork()
        if child == 0:
            try:
                os.close(starting_shot)
                os.read(waiting, 1)
                Store.open(path).close()
                os._exit(0)
            finally:
                os._exit(1)
        children.append(child)
    os.close(waiting)
    os.close(starting_shot)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0, 0]
"""


@pytest.mark.parametrize("age", ["new", "old"])
def test_processes_that_start_together_all_open_it(tmp_path: Path, age: str) -> None:
    subprocess.run([sys.executable, "-c", START_TOGETHER, str(tmp_path), age], check=True)
    backups = {file.name for file in tmp_path.glob("*/*.backup*")}
    assert backups == ({"openbr.sqlite3.v1.backup"} if age == "old" else set())


def test_a_second_store_on_the_same_file_leaves_the_first_its_locks(
    store: Store, path: Path, holding: Hold
) -> None:
    store.write(settings.put, "a", "1")
    Store.open(path).close()
    with holding(path, "SELECT 1"):
        pass  # a last user would remove the -wal file as it leaves
    assert path.with_name(path.name + "-wal").exists()
    store.write(settings.put, "b", "2")
    with contextlib.closing(sqlite3.connect(path)) as other:
        assert other.execute("SELECT count(*) FROM settings").fetchone() == (2,)


# migrations

EXTRA = ("CREATE TABLE extra (a)", "INSERT INTO extra VALUES (1)")


def test_an_existing_store_is_migrated_after_a_backup(path: Path) -> None:
    store = Store.open(path)
    store.write(settings.put, "a", "1")
    store.close()
    newer = Store.open(path, migrations=(*MIGRATIONS, EXTRA))
    assert newer.read(lambda c: c.execute("SELECT a FROM extra").fetchone()) == (1,)
    assert newer.read(settings.get, "a") == "1"
    newer.close()
    backup = path.with_name(f"{path.name}.v{len(MIGRATIONS)}.backup")
    assert mode(backup) == 0o600
    with contextlib.closing(sqlite3.connect(backup)) as copy:
        assert copy.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
        assert copy.execute("SELECT value FROM settings").fetchall() == [("1",)]
        assert copy.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_new_store_and_a_current_one_make_no_backup(path: Path) -> None:
    Store.open(path).close()
    Store.open(path).close()
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_failed_migration_is_undone_whole(path: Path) -> None:
    Store.open(path).close()
    broken = (*MIGRATIONS, EXTRA, ("CREATE TABLE more (b)", "INSERT INTO nowhere VALUES (1)"))
    message = refusal(path, migrations=broken)
    assert f"migration {len(MIGRATIONS) + 2} of the store failed" in message
    assert f"{path}.v{len(MIGRATIONS)}.backup" in message
    repaired = Store.open(path, migrations=(*MIGRATIONS, EXTRA, ("CREATE TABLE more (b)",)))
    assert repaired.read(lambda c: c.execute("SELECT count(*) FROM extra").fetchone()) == (1,)
    repaired.close()


def test_no_migration_without_its_backup(path: Path) -> None:
    Store.open(path).close()
    place = path.with_name(f"{path.name}.v{len(MIGRATIONS)}.backup")
    place.mkdir()
    (place / "full").touch()
    assert "backup" in refusal(path, migrations=(*MIGRATIONS, EXTRA))
    with contextlib.closing(sqlite3.connect(path)) as c:
        assert c.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)


# refusals


def test_a_newer_store_is_refused_with_its_backup(path: Path) -> None:
    Store.open(path).close()
    Store.open(path, migrations=(*MIGRATIONS, EXTRA)).close()
    message = refusal(path)
    known = len(MIGRATIONS)
    assert f"newer openbr (version {known + 1}; this openbr knows {known})" in message
    assert f"{path}.v{known}.backup" in message


def test_a_file_that_is_no_database_is_refused_and_kept(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"not a database at all, " * 400)
    message = refusal(path)
    assert "damaged" in message and "move it away" in message
    assert path.read_bytes() == b"not a database at all, " * 400


def test_a_truncated_store_is_refused(path: Path) -> None:
    Store.open(path).close()
    os.truncate(path, path.stat().st_size // 2)
    assert "damaged" in refusal(path)


def test_overwritten_pages_are_refused(path: Path) -> None:
    Store.open(path).close()
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(4096))
    assert "damaged" in refusal(path)


def test_a_database_of_something_else_is_refused_untouched(path: Path) -> None:
    path.parent.mkdir()
    with contextlib.closing(sqlite3.connect(path)) as c:
        c.execute("CREATE TABLE recipes (name)")
        c.commit()
    assert "something else" in refusal(path)
    with contextlib.closing(sqlite3.connect(path)) as c:
        assert c.execute("SELECT name FROM sqlite_master").fetchall() == [("recipes",)]


def test_a_folder_in_its_place_is_refused(path: Path) -> None:
    path.mkdir(parents=True)
    assert "is a folder" in refusal(path)


def test_a_file_where_the_folder_should_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    message = refusal(tmp_path / "file" / "openbr.sqlite3")
    assert "OPENBR_STATE" in message


def test_read_only_is_refused_before_anybody_relies_on_it(
    opened_by_ordinary_user: Callable[[Path], str],
) -> None:
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    try:
        folder.chmod(0o755)
        path = folder / "openbr.sqlite3"
        Store.open(path).close()
        private = opened_by_ordinary_user(path)
        path.chmod(0o444)
        folder.chmod(0o555)
        read_only = opened_by_ordinary_user(path)
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)
    for message in (private, read_only):
        assert message.startswith(f"{path}: ")
        assert "writable" in message


def test_a_store_that_another_process_keeps_locked_is_refused(path: Path, holding: Hold) -> None:
    Store.open(path).close()
    with holding(path, "PRAGMA locking_mode = EXCLUSIVE", "BEGIN EXCLUSIVE"):
        assert "another process keeps the store locked" in refusal(path, busy_timeout_s=0.05)
    Store.open(path).close()


# at work


def test_a_transaction_is_whole_or_nothing(store: Store) -> None:
    def half(c: sqlite3.Connection) -> None:
        settings.put(c, "a", "1")
        raise KeyError("stop here")

    with pytest.raises(KeyError):
        store.write(half)
    assert store.read(settings.get, "a") is None
    store.write(settings.put, "a", "2")
    assert store.read(settings.get, "a") == "2"


def test_reading_cannot_write(store: Store) -> None:
    with pytest.raises(ServiceUnavailableError):
        store.read(settings.put, "a", "1")


def test_mistakes_in_sql_are_not_blamed_on_the_disk(store: Store) -> None:
    with pytest.raises(sqlite3.OperationalError):
        store.read(lambda c: c.execute("SELECT nothing FROM nowhere"))
    with pytest.raises(sqlite3.IntegrityError):
        store.write(lambda c: c.execute("INSERT INTO sessions VALUES (x'00', 99, 0, 0)"))


def test_commits_run_on_one_thread_that_lives_on(store: Store) -> None:
    async def scenario() -> set[str]:
        def who(c: sqlite3.Connection) -> str:
            return threading.current_thread().name

        names = {await store.commit(who) for _ in range(5)}
        names.update(await asyncio.gather(*(store.commit(who) for _ in range(20))))
        return names

    assert threading.active_count() == 1
    names = asyncio.run(scenario())
    assert len(names) == 1
    assert threading.current_thread().name not in names


def test_a_commit_is_seen_by_readers_and_other_processes(store: Store, path: Path) -> None:
    async def scenario() -> None:
        await store.commit(settings.put, "a", "1")
        assert store.read(settings.get, "a") == "1"
        with contextlib.closing(sqlite3.connect(path)) as other:
            assert other.execute("SELECT value FROM settings").fetchall() == [("1",)]

    asyncio.run(scenario())


def test_commit_hands_on_results_and_failures(store: Store) -> None:
    async def scenario() -> None:
        assert await store.commit(lambda c, a, *, b: a + b, 1, b=2) == 3
        with pytest.raises(KeyError):
            await store.commit(lambda c: {}["missing"])
        await store.commit(settings.put, "after", "fine")

    asyncio.run(scenario())
    assert store.read(settings.get, "after") == "fine"


def test_closing_finishes_what_was_given(path: Path) -> None:
    store = Store.open(path)

    async def scenario() -> None:
        pending = [
            asyncio.ensure_future(store.commit(settings.put, f"n{i}", "x")) for i in range(20)
        ]
        await pending[0]
        store.close()
        await asyncio.gather(*pending)

    asyncio.run(scenario())
    store.close()
    assert not store.is_open
    for call in (store.read, store.write):
        with pytest.raises(ServiceUnavailableError):
            call(settings.get, "n0")
    with pytest.raises(ServiceUnavailableError):
        asyncio.run(store.commit(settings.get, "n0"))
    again = Store.open(path)
    assert again.read(lambda c: c.execute("SELECT count(*) FROM settings").fetchone()) == (20,)
    again.close()


def test_readers_do_not_wait_for_a_writer(store: Store, path: Path, holding: Hold) -> None:
    store.write(settings.put, "a", "1")
    with holding(path, "BEGIN IMMEDIATE", "DELETE FROM settings"):
        assert store.read(settings.get, "a") == "1"


def test_locked_by_another_process_then_free_again(path: Path, holding: Hold) -> None:
    store = Store.open(path, busy_timeout_s=0.05)
    with holding(path, "BEGIN IMMEDIATE"), pytest.raises(ServiceUnavailableError) as caught:
        store.write(settings.put, "a", "1")
    assert caught.value.code == "store_unavailable"
    assert "locked" in caught.value.message
    store.write(settings.put, "a", "2")
    assert store.read(settings.get, "a") == "2"
    store.close()


def test_a_full_disk_loses_nothing_that_was_acknowledged(store: Store, path: Path) -> None:
    store.write(settings.put, "a", "1")
    pages = store.read(lambda c: c.execute("PRAGMA page_count").fetchone()[0])
    pragma(store, f"max_page_count = {pages + 2}")
    with pytest.raises(ServiceUnavailableError) as caught:
        store.write(settings.put, "b", "x" * 100_000)
    assert "full" in caught.value.message
    assert str(path) not in caught.value.message
    assert store.read(settings.get, "a") == "1"
    assert store.read(settings.get, "b") is None
    pragma(store, "max_page_count = 100000")
    store.write(settings.put, "b", "x" * 100_000)
    assert len(store.read(settings.get, "b") or "") == 100_000


WRITER = """
import asyncio, pathlib, sys
from openbr.store import Store, settings

async def main():
    store = Store.open(pathlib.Path(sys.argv[1]))
    number = 0
    while True:
        await asyncio.gather(*(
            acknowledge(store, number + i) for i in range(4)
        ))
        number += 4

async def acknowledge(store, number):
    await store.commit(settings.put, str(number), "x" * 200)
    sys.stdout.write(f"{number}\\n")
    sys.stdout.flush()

asyncio.run(main())
"""


@pytest.mark.parametrize("acknowledged", [1, 150, 600])
def test_kill_under_writes_loses_no_acknowledged_row(path: Path, acknowledged: int) -> None:
    command = [sys.executable, "-c", WRITER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        seen = [process.stdout.readline() for _ in range(acknowledged)]
        process.send_signal(signal.SIGKILL)
        seen += process.stdout.read().splitlines(keepends=True)
        process.wait(10)
    store = Store.open(path)
    kept = {name for (name,) in store.read(lambda c: c.execute("SELECT name FROM settings"))}
    assert {line.strip() for line in seen if line.endswith("\n")} <= kept
    assert store.read(lambda c: c.execute("PRAGMA integrity_check").fetchone()) == ("ok",)
    store.close()
