"""The wheel, installed where there is no checkout: all is in it, and it starts."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
import venv
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import pytest

from openbr import __version__

ROOT = Path(__file__).resolve().parent.parent
NOT_SOURCE = ("*.so", "*.c", "__pycache__", "*.egg-info", "build", "dist", ".*")
DEADLINE_S = 120.0


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: what earlier builds left in the checkout must not slip in."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, folder / "source", ignore=shutil.ignore_patterns(*NOT_SOURCE))
    done = subprocess.run(
        [*(sys.executable, "-m", "build", "--wheel", "--no-isolation"), "--outdir", str(folder)],
        cwd=folder / "source",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as opened:
        return set(opened.namelist())


@pytest.fixture(scope="module")
def place(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment that holds the wheel and sees the dependencies of this one, not its openbr."""
    folder = tmp_path_factory.mktemp("place")
    venv.create(folder, with_pip=False)
    paths = {"base": str(folder), "platbase": str(folder)}
    own = Path(sysconfig.get_path("purelib", vars=paths))
    # Files that an editable install leaves here are read only in a site folder of its own.
    dependencies = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (own / "dependencies.pth").write_text("\n".join(sorted(dependencies)))
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python")]
    done = subprocess.run(
        [*pip, "install", "--quiet", "--no-deps", "--no-index", str(wheel)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def files_of(folder: str, *suffixes: str) -> set[str]:
    """Where the files of a folder of the checkout must be in the wheel."""
    found = {
        f"openbr/{path.relative_to(ROOT)}"
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix in suffixes
    }
    assert found
    return found


def test_it_holds_what_the_pages_need(names: set[str]) -> None:
    assert files_of("templates", ".html") <= names
    assert files_of("static", ".css", ".js", ".svg") <= names  # vendor too, once fetched
    assert files_of("locale", ".po") <= names


def test_it_holds_all_code_and_its_types(names: set[str]) -> None:
    code = (ROOT / "openbr").rglob("*")
    wanted = {
        str(f.relative_to(ROOT)) for f in code if f.suffix in (".py", ".pyi", ".sql", ".json")
    }
    assert wanted <= names
    assert "openbr/py.typed" in names


def test_it_holds_nothing_else(names: set[str]) -> None:
    info = f"openbr-{__version__}.dist-info"
    assert {name.partition("/")[0] for name in names} == {"openbr", info}
    assert not [name for name in names if name.endswith((".c", ".pyx", ".pyc", ".db"))]
    assert f"{info}/licenses/LICENSE" in names


def test_native_modules_are_in_it_where_they_are_built(names: set[str]) -> None:
    sources = {path.stem for path in (ROOT / "openbr" / "_native").glob("*.pyx")}
    compiled = {Path(name).name.partition(".")[0] for name in names if name.endswith(".so")}
    if os.environ.get("OPENBR_PURE"):
        assert not compiled
    elif os.environ.get("OPENBR_REQUIRE_NATIVE") == "1":
        assert compiled == sources
    else:
        assert compiled <= sources


def clean_environ(home: Path) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "HOME": str(home), "OPENBR_STATE": str(home / "state")}


@contextmanager
def gateway(place: Path, folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Started in an empty folder. Gives the process, and its address once it has said it."""
    started = subprocess.Popen(
        [str(place / "bin" / "python"), "-m", "openbr", "run", "--port", "0"],
        cwd=folder,
        env=clean_environ(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    watchdog = threading.Timer(DEADLINE_S, started.kill)
    watchdog.start()
    try:
        assert started.stdout
        said = ""
        for line in started.stdout:
            said += line
            address = re.search(r"http://127\.0\.0\.1:\d+", line)
            if address:
                yield started, address[0]
                return
        pytest.fail(f"it did not say its address:\n{said}")
    finally:
        watchdog.cancel()
        started.kill()
        started.communicate()


def test_it_starts_in_an_empty_folder_serves_and_stops(place: Path, tmp_path: Path) -> None:
    with gateway(place, tmp_path) as (process, address):
        with urlopen(f"{address}/healthz") as answer:
            assert answer.status == 200
        with urlopen(f"{address}/ui/models") as answer:
            page = answer.read().decode()
        assert "<html" in page
        styles = re.findall(r'href="(/static/[^"]+\.css[^"]*)"', page)
        assert styles
        with urlopen(address + styles[0]) as answer:
            assert answer.headers.get_content_type() == "text/css"
            assert "@layer" in answer.read().decode()
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_S) == 0


def test_its_language_is_in_it(place: Path, tmp_path: Path) -> None:
    with gateway(place, tmp_path) as (_, address), urlopen(f"{address}/ui/models") as answer:
        assert 'lang="pt-BR"' in answer.read().decode()


def test_the_console_script(place: Path, tmp_path: Path) -> None:
    said = subprocess.check_output(
        [str(place / "bin" / "openbr"), "--version"],
        cwd=tmp_path,
        env=clean_environ(tmp_path),
        text=True,
    )
    assert said.strip() == f"openbr {__version__}"


def test_what_runs_is_the_wheel(place: Path, tmp_path: Path) -> None:
    said = subprocess.check_output(
        [str(place / "bin" / "python"), "-c", "import openbr; print(openbr.__file__)"],
        cwd=tmp_path,
        env=clean_environ(tmp_path),
        text=True,
    )
    assert place in Path(said.strip()).parents
