"""Static files: openbr's own and those that tools/assets.py fetches.

In: a path below /static. Out: the file with its type, an ETag and its life in caches. The rules
that live only here: an address with the hash of the content (?v=) is kept for a year, one without
is asked for again each time; only known kinds of files leave, and only from this folder.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from openbr.errors import NotFoundError
from openbr.web.page import Page

if TYPE_CHECKING:
    from starlette.requests import Request

TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
VENDOR = ("vendor/htmx.min.js", "vendor/hx-sse.min.js", "vendor/hx-ptag.min.js")
"""In the order in which a page loads them."""


class StaticFolder:
    """The files, and the hashes of those that were asked for. Nothing else stays in memory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._versions: dict[str, tuple[int, str]] = {}

    def url(self, name: str) -> str:
        """The address of a file that is there, with its version."""
        return f"/static/{name}?v={self.version(name)}"

    def version(self, name: str) -> str:
        """Sixteen digits of the content's hash, read again when the file changes."""
        path = self.folder / name
        changed_at = path.stat().st_mtime_ns
        known = self._versions.get(name)
        if known is None or known[0] != changed_at:
            known = (changed_at, hashlib.sha256(path.read_bytes()).hexdigest()[:16])
            self._versions[name] = known
        return known[1]

    def missing(self) -> list[str]:
        """Third-party files that were not fetched."""
        return [name for name in VENDOR if not (self.folder / name).is_file()]

    def find(self, name: str) -> Path | None:
        parts = name.split("/")
        if Path(name).suffix not in TYPES or any(part.startswith(".") for part in parts):
            return None
        path = self.folder.joinpath(*parts)
        inside = path.resolve().is_relative_to(self.folder.resolve())
        return path if inside and path.is_file() else None


async def serve(request: Request) -> Response:
    static: StaticFolder = request.app.state.parts.pages.static
    name: str = request.path_params["path"]
    path = static.find(name)
    if path is None:
        raise NotFoundError("there is no such file")
    version = static.version(name)
    pinned = request.query_params.get("v") == version
    headers = {
        "etag": f'"{version}"',
        "cache-control": "public, max-age=31536000, immutable" if pinned else "no-cache",
    }
    if f'"{version}"' in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(path.read_bytes(), media_type=TYPES[path.suffix], headers=headers)


def routes() -> list[BaseRoute]:
    return [Route("/static/{path:path}", Page(get=serve))]
