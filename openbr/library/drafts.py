"""Files that are whole or not there: room on the disk, drafts, and parts that go on later.

In: bytes. Out: files with mode 0600 that got their final name when they were complete and on the
disk, or a LibraryError. The rule that lives only here: nothing unfinished looks complete, however
the process ends.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from pathlib import Path
from typing import BinaryIO

from openbr.library.files import LibraryError, disk_errors, sync_folder

CHUNK = 1 << 20
_SPARE = 1 << 20


def check_room(folder: Path, needed: int) -> None:
    """Raises: LibraryError when fewer bytes than that are free, before any is written."""
    with disk_errors(folder):
        free = shutil.disk_usage(folder).free
    if free < needed + _SPARE:
        raise LibraryError(
            f"{folder}: not enough room: {needed / 1e6:.0f} MB needed, {free / 1e6:.0f} MB free"
        )


class Draft:
    """A file that is written under another name and gets its own by `keep()`.

    Left without keep(), by an exception, it is gone; killed, it is a `.new` that nobody reads.
    """

    def __init__(self, final: Path) -> None:
        self.final = final
        self.path = final.with_name(final.name + ".new")
        self.sha256 = hashlib.sha256()
        self.size = 0

    def __enter__(self) -> Draft:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0)
        with disk_errors(self.final):
            with contextlib.suppress(FileNotFoundError):
                self.path.unlink()
            self._file: BinaryIO = os.fdopen(os.open(self.path, flags, 0o600), "wb", buffering=0)
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(OSError):
            self.path.unlink()

    def write(self, data: bytes) -> None:
        with disk_errors(self.final):
            write_all(self._file, data)
        self.sha256.update(data)
        self.size += len(data)

    def keep(self) -> None:
        with disk_errors(self.final):
            os.fsync(self._file.fileno())
            self._file.close()
            os.replace(self.path, self.final)
            sync_folder(self.final.parent)


class Part:
    """An unfinished download that the next run may continue: it stays, unless it is empty."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sha256 = hashlib.sha256()
        self.size = 0

    def __enter__(self) -> Part:
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)
        with disk_errors(self.path):
            self._file: BinaryIO = os.fdopen(os.open(self.path, flags, 0o600), "r+b", buffering=0)
            while data := self._file.read(CHUNK):
                self.sha256.update(data)
                self.size += len(data)
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._file.close()
            if not self.path.stat().st_size:
                self.path.unlink()

    def write(self, data: bytes) -> None:
        with disk_errors(self.path):
            write_all(self._file, data)
        self.sha256.update(data)
        self.size += len(data)

    def restart(self) -> None:
        with disk_errors(self.path):
            self._file.truncate(0)
            self._file.seek(0)
        self.sha256 = hashlib.sha256()
        self.size = 0

    def sync(self) -> None:
        with disk_errors(self.path):
            os.fsync(self._file.fileno())

    def discard(self) -> None:
        with disk_errors(self.path):
            self.path.unlink(missing_ok=True)


def write_all(file: BinaryIO, data: bytes) -> None:
    """An unbuffered file may take less than it is given: just before the disk is full it does."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def hash_file(path: Path) -> str:
    with disk_errors(path), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def copy_into(draft: Draft, path: Path) -> None:
    with disk_errors(path):
        size = path.stat().st_size
    check_room(draft.path.parent, size)
    with disk_errors(path), open(path, "rb") as file:
        while data := file.read(CHUNK):
            draft.write(data)


def link_into(draft: Draft, path: Path) -> None:
    """Both names lead to the same bytes, which another disk cannot do."""
    try:
        draft.path.unlink(missing_ok=True)
        os.link(path.resolve(), draft.path)
    except OSError as exc:
        raise LibraryError(
            f"{path} cannot be linked into {draft.path.parent} ({exc.strerror}): "
            "run the same command without --link"
        ) from exc
