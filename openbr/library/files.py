"""Names of models and of the files in their folder, and who may work on one.

In: names that people typed. Out: names that are safe to be file names, a lock, or a LibraryError
that says what to do. The rules that live only here: a name never holds a path; one process at a
time works on a name.

    NAME.gguf              a whole model          NAME.json   where it came from, its digest
    NAME.<16 hex>.part     an unfinished download; the hex is of what the whole will be
    NAME.gguf.new          a copy under way       NAME.lock   somebody works on NAME
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from openbr.errors import InvalidRequestError, OpenbrError

try:
    import fcntl
except ModuleNotFoundError:  # Windows: two pulls at once end in a digest error instead
    fcntl = None  # type: ignore[assignment]

_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
_UNNAMED = re.compile(r"[^a-z0-9_.-]+")
_LEFTOVER = re.compile(rf"({_NAME.pattern})\.(?:[0-9a-f]{{16}}\.part|gguf\.new)")
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class LibraryError(OpenbrError):
    """A model file could not be fetched, read or kept."""


class WrongFileError(LibraryError):
    """What arrived is not what was announced. It was deleted: keeping it would not help."""


class UnreachableError(LibraryError):
    """There is nobody to fetch from: no network, no index, no pip."""


class ModelNameError(LibraryError, InvalidRequestError):
    """What was asked for cannot be: a name, a source, a path."""


def check_name(name: str) -> str:
    """Raises: ModelNameError with the rule, and with a name that would do."""
    if _NAME.fullmatch(name) and not name.endswith(".gguf"):
        return name
    if "/" in name or "\\" in name:
        raise ModelNameError(
            f"{name!r} is a path: give the model's name, as `models list` shows it"
        )
    near = suggest_name(name)
    hint = f", such as {near}" if near else ""
    raise ModelNameError(
        f"{name!r} is no name for a model: lower-case letters, digits, '-', '_' and '.', "
        f"at most 64, without .gguf{hint}"
    )


def suggest_name(file: str) -> str:
    """A name for a file: "SmolLM2 135M.Q4_1.gguf" -> "smollm2-135m.q4_1"; "" if none is left."""
    stem = re.sub(r"\.gguf$", "", file.lower())
    return _UNNAMED.sub("-", stem).strip("-_.")[:64].rstrip("-_.")


def leftover_name(file: str) -> str | None:
    """The model's name, for a file that an interrupted command left behind."""
    match = _LEFTOVER.fullmatch(file)
    return match[1] if match else None


def make_folder(folder: Path) -> None:
    with disk_errors(folder):
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn what the operating system refuses into one line."""
    try:
        yield
    except OSError as exc:
        if exc.errno in _FULL:
            raise LibraryError(
                f"{path}: the disk is full ({os.strerror(exc.errno)}): make room and run the same "
                "command again"
            ) from exc
        raise LibraryError(f"{path}: {exc.strerror or exc}") from exc


@contextlib.contextmanager
def lock(folder: Path, name: str) -> Iterator[None]:
    """Be the only process that works on a name. Raises: LibraryError naming the other one."""
    if fcntl is None:
        yield
        return
    path = folder / f"{name}.lock"
    with disk_errors(path):
        file = _locked(path)
    if file is None:
        raise LibraryError(
            f"another openbr{_holder(path)} is working on the model {name}: "
            "wait for it, or stop it, and run this again"
        )
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
        file.close()


def _holder(lock: Path) -> str:
    try:
        return f" (process {int(lock.read_text('ascii'))})"
    except (OSError, ValueError):
        return ""


def _locked(path: Path) -> BinaryIO | None:
    """The lock file, held, or None. It is unlinked at the end, so the one held must be that one."""
    while True:
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b", buffering=0)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            here = os.stat(path)
        except FileNotFoundError:
            file.close()
            continue
        except BlockingIOError:
            file.close()
            return None
        except BaseException:
            file.close()
            raise
        if os.path.samestat(here, os.fstat(file.fileno())):
            file.truncate(0)
            file.write(str(os.getpid()).encode())
            return file
        file.close()


def sync_folder(folder: Path) -> None:
    """Make a rename durable. Where a folder cannot be opened (Windows) the rename itself is."""
    with contextlib.suppress(PermissionError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
