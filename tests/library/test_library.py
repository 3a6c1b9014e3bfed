"""The folder: what is listed, found, added and removed. Pulling has a file of its own."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from model_files import tiny_gguf

from openbr.library import Library, LibraryError, ModelNameError
from openbr.library.files import check_name, lock, suggest_name

DATA = tiny_gguf()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "My Tiny Model.Q4_0.gguf"
    path.write_bytes(DATA)
    path.chmod(0o644)
    return path


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_an_empty_library(library: Library, folder: Path) -> None:
    assert library.list() == () == library.leftovers()
    assert library.find("tiny") is None
    assert not folder.exists()


def test_add_copies_checks_and_remembers(library: Library, folder: Path, file: Path) -> None:
    added = library.add(file)
    assert added.name == "my-tiny-model.q4_0"
    assert added.sha256 == hashlib.sha256(DATA).hexdigest()
    assert (added.size_bytes, added.context_tokens, added.architecture) == (len(DATA), 512, "llama")
    assert added.source == f"file:{file}"
    assert added.path.read_bytes() == DATA
    assert library.list() == (added,) == (library.find(added.name),)
    assert names(folder) == ["my-tiny-model.q4_0.gguf", "my-tiny-model.q4_0.json"]
    assert {mode(path) for path in folder.iterdir()} == {0o600}
    assert mode(folder) == mode(folder.parent) == 0o700


def test_add_links(library: Library, file: Path) -> None:
    added = library.add(file, "linked", link=True)
    assert added.path.stat().st_ino == file.stat().st_ino
    assert added.sha256 == hashlib.sha256(DATA).hexdigest()
    library.remove("linked")
    assert file.read_bytes() == DATA


def test_a_link_that_cannot_be(
    library: Library, folder: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(LibraryError, match="run the same command without --link"):
        library.add(file, "linked", link=True)
    assert names(folder) == []


def test_nothing_is_replaced_in_silence(library: Library, file: Path) -> None:
    library.add(file, "tiny")
    with pytest.raises(
        ModelNameError, match=r"already a model tiny .* `openbr models remove tiny`"
    ):
        library.add(file, "tiny")


def test_what_cannot_be_loaded_is_not_added(library: Library, folder: Path, file: Path) -> None:
    file.write_bytes(DATA[:-1])
    with pytest.raises(LibraryError, match="truncated"):
        library.add(file, "tiny")
    assert not folder.exists()


def test_a_missing_file(library: Library, tmp_path: Path) -> None:
    with pytest.raises(ModelNameError, match="no such file"):
        library.add(tmp_path / "missing.gguf")


def test_no_room_is_known_beforehand(
    library: Library, folder: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(LibraryError, match="not enough room: 0 MB needed, 0 MB free"):
        library.add(file, "tiny")
    assert names(folder) == []


FILL = """
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
from openbr.library import Library, LibraryError
try:
    Library(Path(sys.argv[1])).add(Path(sys.argv[2]), "tiny")
except LibraryError as exc:
    print(exc)
"""


def test_a_disk_that_fills_up_while_copying(folder: Path, file: Path) -> None:
    """A limit on the size of files stands for the disk: a write is cut short, the next fails."""
    done = subprocess.run(
        [sys.executable, "-c", FILL, folder, file], capture_output=True, text=True, check=True
    )
    assert "the disk is full" in done.stdout
    assert names(folder) == []


def test_a_file_copied_by_hand_counts(library: Library, folder: Path, file: Path) -> None:
    library.add(file, "b")
    (folder / "a.gguf").write_bytes(DATA)
    (folder / "Not A Name.gguf").write_bytes(DATA)
    (folder / "empty.gguf").write_bytes(b"")
    (folder / "folder.gguf").mkdir()
    a, b = library.list()
    assert (a.name, a.sha256, a.source, a.context_tokens) == ("a", None, "copied by hand", None)
    assert b.name == "b" and b.sha256


@pytest.mark.parametrize("note", [b"", b"{", b"[]", b'{"size_bytes": "1"}', b"\xff", b"[" * 9999])
def test_a_damaged_note_costs_only_what_it_said(library: Library, file: Path, note: bytes) -> None:
    path = library.add(file, "tiny").path
    path.with_suffix(".json").write_bytes(note)
    found = library.find("tiny")
    assert found is not None and found.sha256 is None and found.size_bytes == len(DATA)


def test_a_note_of_another_file_does_not_count(library: Library, file: Path) -> None:
    path = library.add(file, "tiny").path
    path.write_bytes(tiny_gguf(weights=512))
    found = library.find("tiny")
    assert found is not None and found.sha256 is None


def test_remove(library: Library, folder: Path, file: Path) -> None:
    library.add(file, "tiny")
    (folder / f"tiny.{'0' * 16}.part").write_bytes(b"12345")
    (folder / "tiny.gguf.new").write_bytes(b"123")
    (folder / f"tiny2.{'0' * 16}.part").write_bytes(b"1")
    assert library.remove("tiny") == len(DATA) + 8
    assert names(folder) == [f"tiny2.{'0' * 16}.part"]
    assert library.remove("tiny2") == 1
    assert names(folder) == []


def test_remove_what_is_not_there(library: Library, file: Path) -> None:
    with pytest.raises(ModelNameError, match="there is no model tiny; there is none yet"):
        library.remove("tiny")
    library.add(file, "smollm2-135m")
    with pytest.raises(ModelNameError, match=r"did you mean smollm2-135m\?"):
        library.remove("smollm")
    with pytest.raises(ModelNameError, match="there is smollm2-135m"):
        library.remove("zzz")


OUTSIDE = ["../tiny", "/etc/passwd", "..", ".", "a/b", "a\\b", "", "tiny\n", "tiny.gguf", "Tiny"]
OUTSIDE += ["-tiny", "tín", "a" * 65, "a\0b", "a b"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_name_leaves_the_folder(library: Library, file: Path, name: str) -> None:
    (file.parent / "state").mkdir()
    (file.parent / "state" / "tiny.gguf").write_bytes(DATA)
    library.add(file, "inside")
    before = sorted(file.parent.rglob("*"))
    acts: list[Callable[[], object]] = [lambda: library.remove(name)]
    if name:  # an empty name means: after the file
        acts.append(lambda: library.add(file, name))
        acts.append(lambda: library.pull("hf:owner/repo/file.gguf", name=name))
    for act in acts:
        with pytest.raises(ModelNameError):
            act()
    assert library.find(name) is None
    assert sorted(file.parent.rglob("*")) == before


@pytest.mark.parametrize(
    ("file_name", "name"),
    [
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2-135m-instruct.q4_1"),
        ("Olá mundo!.GGUF", "ol-mundo"),
        ("..gguf", ""),
        ("x" * 80 + ".gguf", "x" * 64),
    ],
)
def test_a_name_made_from_a_file(file_name: str, name: str) -> None:
    assert suggest_name(file_name) == name
    if name:
        assert check_name(name) == name


def test_two_names_may_be_worked_on_at_once(folder: Path) -> None:
    folder.mkdir(parents=True)
    taken = rf"process {os.getpid()}\) is working on the model a"
    with lock(folder, "a"), lock(folder, "b"), pytest.raises(LibraryError, match=taken):
        lock(folder, "a").__enter__()
    assert names(folder) == []
    with lock(folder, "a"):
        pass


def test_an_unwritable_folder(library: Library, folder: Path, file: Path) -> None:
    folder.parent.write_text("a file where the folder should be")
    with pytest.raises(LibraryError, match="state"):
        library.add(file, "tiny")
