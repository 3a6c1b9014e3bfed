"""openbr keys: a key is shown once, kept as a digest, listed and ended."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cli.conftest import Openbr
from openbr.auth import hash_key
from openbr.store import Store, keys


def test_only_the_key_is_printed_when_a_program_reads(openbr: Openbr, tmp_path: Path) -> None:
    said = openbr("keys", "add", "laptop")
    assert (said.code, said.err) == (0, "")
    assert re.fullmatch(r"sk-openbr-[\w-]{43}\n", said.out)
    key = said.out.strip()
    store = Store.open(tmp_path / "state" / "openbr.sqlite3")
    found = store.read(keys.find, hash_key(key))
    store.close()
    assert found and (found.name, found.last4, found.scopes) == ("laptop", key[-4:], {"chat"})
    for file in (tmp_path / "state").iterdir():
        assert key.encode() not in file.read_bytes()


def test_keys_are_unlike_each_other(openbr: Openbr) -> None:
    assert len({openbr("keys", "add", f"k{i}").out for i in range(5)}) == 5


def test_json(openbr: Openbr) -> None:
    said = openbr("keys", "add", "me", "--scope", "admin", "--json").json()
    assert set(said) == {"id", "name", "key", "scopes", "created_at"}
    assert (said["id"], said["name"], said["scopes"]) == (1, "me", ["admin", "chat"])
    (listed,) = openbr("keys", "list", "--json").json()
    assert listed == {
        "id": 1,
        "name": "me",
        "last4": said["key"][-4:],
        "scopes": ["admin", "chat"],
        "created_at": said["created_at"],
        "last_used_at": None,
        "revoked_at": None,
    }


def test_a_terminal_gets_a_word_more(tmp_path: Path) -> None:
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    env = {**os.environ, "HOME": str(tmp_path), "OPENBR_STATE": str(tmp_path / "state")}
    command = [sys.executable, "-m", "openbr", "keys", "add", "laptop"]
    with subprocess.Popen(command, env=env, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        said = b""
        while b"Bearer" not in said:
            said += os.read(ours, 4096)
        assert process.wait(10) == 0
    os.close(ours)
    assert said.startswith(b"sk-openbr-") and b"only time" in said


def test_list_is_a_table(openbr: Openbr) -> None:
    said = openbr("keys", "list")
    assert (said.code, said.out) == (0, "")
    assert "keys add" in said.err
    assert openbr("keys", "list", "--json").json() == []
    first = openbr("keys", "add", "laptop").out.strip()
    openbr("keys", "add", "old phone", "--scope", "chat", "--scope", "admin")
    openbr("keys", "revoke", "old phone")
    lines = openbr("keys", "list").out.splitlines()
    assert lines[0].split() == ["ID", "NAME", "KEY", "SCOPES", "CREATED", "LAST", "USED", "STATE"]
    assert re.match(rf"1   laptop     …{re.escape(first[-4:])}  chat  .* never  +live$", lines[1])
    assert re.match(r"2   old phone  ….{4}  admin chat  .* never  +revoked \d{4}-", lines[2])
    assert first not in "".join(lines)


@pytest.mark.parametrize("word", ["laptop", "1"])
def test_revoke_by_name_or_id(openbr: Openbr, word: str) -> None:
    key = openbr("keys", "add", "laptop").out.strip()
    said = openbr("keys", "revoke", word)
    assert (said.code, said.out) == (0, f"revoked: laptop (id 1, …{key[-4:]})\n")
    again = openbr("keys", "revoke", word)
    assert again.code == 2
    assert again.err.startswith(f"openbr: no live key has the name or id '{word}'")


def test_revoke_in_json(openbr: Openbr) -> None:
    openbr("keys", "add", "laptop")
    said = openbr("keys", "revoke", "laptop", "--json").json()
    assert said["name"] == "laptop" and said["revoked_at"] >= said["created_at"]


def test_a_near_name_is_proposed(openbr: Openbr) -> None:
    openbr("keys", "add", "laptop")
    assert "did you mean laptop?" in openbr("keys", "revoke", "labtop").err


@pytest.mark.parametrize(
    "words, said",
    [
        (("add", "laptop"), 'a key named "laptop" is there already'),
        (("add", " "), "a key's name is 1 to 64"),
        (("add", "a\nb"), "a key's name is 1 to 64"),
    ],
)
def test_names_that_are_refused(openbr: Openbr, words: tuple[str, ...], said: str) -> None:
    openbr("keys", "add", "laptop")
    found = openbr("keys", *words)
    assert (found.code, found.out) == (2, "")
    assert found.err.startswith(f"openbr: {said}") and found.err.count("\n") == 1


def test_a_store_that_cannot_be_opened_is_one_line(openbr: Openbr, tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file, not a folder")
    found = openbr("keys", "list")
    assert found.code == 2
    assert found.err.startswith(f"openbr: {tmp_path / 'state' / 'openbr.sqlite3'}: ")
    assert found.err.count("\n") == 1
