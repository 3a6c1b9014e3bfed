"""tools/assets.py: what the lock names and nothing else, whole or not at all."""

from __future__ import annotations

import importlib.util
import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = {
    "dist/a.min.js": b"// a\n",
    "dist/ext/b.min.js": b"// b\n",
    "dist/not-wanted.js": b"// no\n",
    "package.json": b"{}",
}
LOCK = """
[[package]]
name = "lib.org"
version = "1.2.3"
licence = "0BSD"
integrity = "?"

[[package.file]]
name = "a.min.js"
path = "dist/a.min.js"
sha256 = "?"

[[package.file]]
name = "b.min.js"
path = "dist/ext/b.min.js"
sha256 = "?"
"""
# Stands in for npm: packs a prepared tarball, and writes down that it was asked.
NPM = """#!{python}
import pathlib, shutil, sys
here = pathlib.Path(__file__).parent
with (here / "asked").open("a") as log:
    log.write(" ".join(sys.argv[1:]) + "\\n")
if not (here / "package.tgz").exists():
    sys.exit("npm error code ENOTFOUND\\nnpm error network request failed")
place = pathlib.Path(sys.argv[sys.argv.index("--pack-destination") + 1])
shutil.copy(here / "package.tgz", place / "lib.org-1.2.3.tgz")
print("lib.org-1.2.3.tgz")
"""


@pytest.fixture
def assets() -> ModuleType:
    spec = importlib.util.spec_from_file_location("assets", ROOT / "tools" / "assets.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["assets"] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the stand-in, alone on PATH; `package.tgz` in it is what it gives."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "npm"
    program.write_text(NPM.format(python=sys.executable))
    program.chmod(0o755)
    pack(folder, PACKAGE)
    monkeypatch.setenv("PATH", str(folder))
    return folder


@pytest.fixture
def vendor(tmp_path: Path, assets: ModuleType, npm: Path) -> Path:
    """A vendor folder whose lock is right for the package, with nothing fetched yet."""
    folder = tmp_path / "vendor"
    folder.mkdir()
    (folder / "lock.toml").write_text(LOCK)
    assert assets.main(["--update"], folder) == 0
    for file in folder.glob("*.js"):
        file.unlink()
    (npm / "asked").unlink()
    return folder


def pack(folder: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(folder / "package.tgz", "w:gz") as tarball:
        for name, content in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            tarball.addfile(member, io.BytesIO(content))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_it_puts_exactly_the_named_files(assets: ModuleType, vendor: Path, npm: Path) -> None:
    assert assets.main([], vendor) == 0
    assert names(vendor) == {"lock.toml", "a.min.js", "b.min.js"}
    assert (vendor / "a.min.js").read_bytes() == b"// a\n"
    (asked,) = (npm / "asked").read_text().splitlines()
    assert "pack lib.org@1.2.3 --silent" in asked


def test_nothing_is_asked_when_all_is_there(assets: ModuleType, vendor: Path, npm: Path) -> None:
    assets.main([], vendor)
    (npm / "asked").unlink()
    assert assets.main([], vendor) == 0
    assert not (npm / "asked").exists()


def test_a_damaged_file_is_put_right(assets: ModuleType, vendor: Path) -> None:
    assets.main([], vendor)
    (vendor / "b.min.js").write_bytes(b"// half")
    assert assets.main(["--check"], vendor) == 1
    assert assets.main([], vendor) == 0
    assert (vendor / "b.min.js").read_bytes() == b"// b\n"
    assert assets.main(["--check"], vendor) == 0


def test_check_only_looks(
    assets: ModuleType, vendor: Path, npm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert assets.main(["--check"], vendor) == 1
    assert "static/vendor/a.min.js is missing or wrong" in capsys.readouterr().err
    assert names(vendor) == {"lock.toml"}
    assert not (npm / "asked").exists()


def test_another_package_is_refused(
    assets: ModuleType, vendor: Path, npm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The index gives something else under the same version."""
    pack(npm, {**PACKAGE, "dist/not-wanted.js": b"// other\n"})
    assert assets.main([], vendor) == 1
    assert "is not the package of the lock; nothing was changed" in capsys.readouterr().err
    assert names(vendor) == {"lock.toml"}


def test_another_file_is_refused(
    assets: ModuleType, vendor: Path, npm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The tarball is right, and one file of the lock is not in it as the lock says."""
    lock = vendor / "lock.toml"
    before, _, after = lock.read_text().rpartition('sha256 = "')
    lock.write_text(f'{before}sha256 = "{"0" * 64}{after[64:]}')
    assert assets.main([], vendor) == 1
    assert "dist/ext/b.min.js of lib.org is not the file of the lock" in capsys.readouterr().err
    assert names(vendor) == {"lock.toml"}, "not even the good one is put"


def test_a_package_without_the_file_is_refused(assets: ModuleType, vendor: Path, npm: Path) -> None:
    lock = vendor / "lock.toml"
    lock.write_text(lock.read_text().replace("dist/ext/b.min.js", "dist/gone.js"))
    assert assets.main([], vendor) == 1
    assert assets.main(["--update"], vendor) == 1


def test_without_an_index(
    assets: ModuleType, vendor: Path, npm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (npm / "package.tgz").unlink()
    assert assets.main([], vendor) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot be fetched (npm error code ENOTFOUND)" in line
    assert "pages work without them" in line
    assert names(vendor) == {"lock.toml"}


def test_without_npm_and_without_an_index(
    assets: ModuleType,
    vendor: Path,
    npm: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (npm / "npm").unlink()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    assert assets.main([], vendor) == 3
    assert "no npm, and none can be installed" in capsys.readouterr().err


def test_update_writes_the_lock_anew(assets: ModuleType, vendor: Path, npm: Path) -> None:
    old = (vendor / "lock.toml").read_text()
    pack(npm, {**PACKAGE, "dist/a.min.js": b"// a, newer\n"})
    assert assets.main(["--update"], vendor) == 0
    new = (vendor / "lock.toml").read_text()
    assert new != old
    assert "www" not in new and "http" not in new
    assert (vendor / "a.min.js").read_bytes() == b"// a, newer\n"
    assert assets.main(["--check"], vendor) == 0


def test_the_lock_of_this_project(assets: ModuleType) -> None:
    (htmx,) = assets.read_lock(ROOT / "static" / "vendor")
    assert (htmx.name, htmx.version, htmx.licence) == ("htmx.org", "4.0.1", "0BSD")
    assert htmx.integrity.startswith("sha512-")
    assert [file.name for file in htmx.files] == [
        "htmx.min.js",
        "hx-sse.min.js",
        "hx-ptag.min.js",
    ]
    assert "://" not in (ROOT / "static" / "vendor" / "lock.toml").read_text()


def test_the_command() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "assets.py", "--no-such-flag"], capture_output=True
    )
    assert done.returncode == 2
