"""A file on a server -> the same file here, in as many runs as it takes.

In: a Remote and the Part that holds what is already here. Out: the part, whole and with the right
digest, or a LibraryError; then what came is kept for the next run, unless it is wrong. The rules
that live only here: a download continues only what has the same digest or the same strong ETag;
a body is whole when its announced length has come; a redirect never leaves https.

urllib is imported here at the top: only a pull imports this module.
"""

from __future__ import annotations

import http.client
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from email.message import Message
from typing import IO
from urllib.parse import urlsplit

from openbr import __version__
from openbr.library.drafts import CHUNK, Part, check_room
from openbr.library.files import LibraryError, UnreachableError, WrongFileError

_TIMEOUT_S = 30.0
_MAX_CUTS = 20
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Remote:
    """A file on a server. None: the server does not say."""

    url: str
    size_bytes: int | None = None
    sha256: str | None = None
    etag: str | None = None

    @property
    def validator(self) -> str | None:
        """Equal for two addresses only when the same bytes are behind them."""
        if self.sha256:
            return self.sha256
        strong = self.etag and not self.etag.startswith("W/")
        return f"{self.url} {self.etag}" if strong else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What a pull is doing: find, download, check, unpack; `present`: there was nothing to do."""

    doing: str
    done: int = 0
    total: int | None = None
    what: str = ""


Tell = Callable[[Step], None]


class CredentialNeededError(LibraryError):
    """The server wants a login that we do not have; its package manager may."""


class _CutError(Exception):
    """The network gave up in the middle; what came before is good."""


class Client:
    """HTTP for one pull, through the proxies that the environment names.

    `find_cafile` gives further certificate authorities when the system's do not suffice.
    """

    def __init__(self, find_cafile: Callable[[], str | None] = lambda: None) -> None:
        self._find_cafile: Callable[[], str | None] | None = find_cafile
        self._cafile: str | None = None

    def open(
        self, url: str, headers: dict[str, str], *, method: str = "GET", follow: bool = True
    ) -> http.client.HTTPResponse:
        """Raises: urllib.error.HTTPError for a status that is not 2xx, OSError for the network."""
        request = urllib.request.Request(url, headers={**_HEADERS, **headers}, method=method)
        while True:
            context = ssl.create_default_context(cafile=self._cafile)
            redirects = _Redirects() if follow else _NoRedirects()
            https = urllib.request.HTTPSHandler(context=context)
            opener = urllib.request.build_opener(https, redirects)
            try:
                answer: http.client.HTTPResponse = opener.open(request, timeout=_TIMEOUT_S)
                return answer
            except urllib.error.URLError as exc:
                untrusted = isinstance(exc.reason, ssl.SSLCertVerificationError)
                if not untrusted or not self._find_cafile:
                    raise
                self._cafile, self._find_cafile = self._find_cafile(), None
                if self._cafile is None:
                    raise


_HEADERS = {"User-Agent": f"openbr/{__version__}", "Accept-Encoding": "identity"}


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: Message,
        newurl: str,
    ) -> urllib.request.Request | None:
        if urlsplit(newurl).scheme not in ("https", req.type):
            raise LibraryError(f"{req.host} redirects to an address that is not https: refused")
        return super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]


class _NoRedirects(_Redirects):
    def redirect_request(self, *_: object, **__: object) -> None:
        return None


def fetch(remote: Remote, part: Part, client: Client, tell: Tell, *, reserve: int = 0) -> None:
    """Make the part whole and check it. `reserve` bytes must stay free on the disk beyond it.

    Raises: LibraryError; the part is kept, unless the digest is wrong.
    """
    too_long = remote.size_bytes is not None and part.size > remote.size_bytes
    if remote.validator is None or too_long:
        part.restart()
    cuts = 0
    while not _is_whole(remote, part):
        before = part.size
        try:
            _continue(remote, part, client, tell, reserve)
            break
        except _CutError as exc:
            cuts += 1
            if part.size == before or cuts > _MAX_CUTS:
                held = f"{part.size / 1e6:.1f} MB are here and kept; " if part.size else ""
                raise UnreachableError(
                    f"{_host(remote.url)}: {exc}: {held}run the same command again to continue"
                ) from exc
    part.sync()
    _check(remote, part)


def _is_whole(remote: Remote, part: Part) -> bool:
    """Nothing is left to fetch: a run that was killed after the download does not repeat it."""
    if remote.sha256 is not None and part.size != remote.size_bytes:
        return part.sha256.hexdigest() == remote.sha256
    return bool(part.size) and part.size == remote.size_bytes


def _check(remote: Remote, part: Part) -> None:
    found = part.sha256.hexdigest()
    if remote.sha256 is not None and found != remote.sha256:
        part.discard()
        raise WrongFileError(
            f"{_host(remote.url)}: what arrived is not what was announced (sha256 {found[:12]}…, "
            f"not {remote.sha256[:12]}…): it was deleted; run the same command again"
        )


def _continue(remote: Remote, part: Part, client: Client, tell: Tell, reserve: int) -> None:
    headers = {}
    if part.size:
        headers["Range"] = f"bytes={part.size}-"
        if remote.sha256 is None and remote.etag:
            headers["If-Range"] = remote.etag
    response = _open(remote, part, client, headers)
    with response:
        total = _begin(remote, part, response)
        if total is not None:
            check_room(part.path.parent, total - part.size + reserve)
        tell(Step(doing="download", done=part.size, total=total))
        while data := _read(response, part):
            part.write(data)
            if total is not None and part.size > total:
                part.discard()
                raise WrongFileError(f"{_host(remote.url)} sent more than it announced: deleted")
            tell(Step(doing="download", done=part.size, total=total))
    if total is not None and part.size < total:
        raise _CutError("the connection was cut")


def _open(
    remote: Remote, part: Part, client: Client, headers: dict[str, str]
) -> http.client.HTTPResponse:
    try:
        return client.open(remote.url, headers)
    except urllib.error.HTTPError as exc:
        with exc:
            if exc.code == 416 and part.size:
                # More is here than there: another file has taken the address.
                part.discard()
            raise refusal(remote.url, exc.code) from exc
    except (OSError, http.client.HTTPException) as exc:
        raise _CutError(explain(exc)) from exc


def _begin(remote: Remote, part: Part, response: http.client.HTTPResponse) -> int | None:
    """Where the body goes on, from its head: the total length, None if nobody says."""
    total = remote.size_bytes
    announced = response.getheader("Content-Length")
    if response.status == 206:
        match = _RANGE.fullmatch(response.getheader("Content-Range") or "")
        if match is None or int(match[1]) != part.size:
            part.discard()
            raise LibraryError(
                f"{_host(remote.url)} cannot continue a download: what was here is deleted; "
                "run the same command again"
            )
        whole = int(match[2]) if match[2] != "*" else None
    else:
        part.restart()
        whole = int(announced) if announced and announced.isdecimal() else None
    if total is not None and whole is not None and whole != total:
        raise LibraryError(
            f"{_host(remote.url)} offers {whole:,} bytes where {total:,} were announced"
        )
    return whole if total is None else total


def _read(response: http.client.HTTPResponse, part: Part) -> bytes:
    try:
        return response.read1(CHUNK)
    except http.client.IncompleteRead as exc:
        part.write(exc.partial)
        raise _CutError("the connection was cut") from exc
    except (OSError, http.client.HTTPException, ValueError) as exc:
        raise _CutError(explain(exc)) from exc


def refusal(url: str, status: int) -> LibraryError:
    """What a status that is no success means for the person at the terminal."""
    host = _host(url)
    if status in (401, 403, 407):
        return CredentialNeededError(
            f"{host} wants a login ({status}): download the file in a browser, then run "
            "`openbr models add FILE.gguf`"
        )
    if status in (404, 410):
        return LibraryError(f"{host} has no such file ({status}): check the name, letter by letter")
    if status == 416:
        return LibraryError(f"{host} has another file there now: run the same command again")
    return LibraryError(f"{host} answered {status}: try again later; what came is kept")


def explain(exc: Exception) -> str:
    """One sentence for a network error."""
    reason = exc.reason if isinstance(exc, urllib.error.URLError) else exc
    if isinstance(reason, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({reason.verify_message})"
    if isinstance(reason, TimeoutError):
        return f"silent for {_TIMEOUT_S:.0f} s"
    if isinstance(reason, OSError):
        return reason.strerror or str(reason) or type(reason).__name__
    return str(reason) or type(reason).__name__


def _host(url: str) -> str:
    return urlsplit(url).hostname or "the server"
