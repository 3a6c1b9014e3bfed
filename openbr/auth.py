"""Room 2: a request's head -> Caller, or a refusal.

In: Host, Origin, Sec-Fetch-Site, key or login cookie, and where the request came in. Out: a
Caller, or 401, 403, 421, 429. The rules that live only here: loopback is not trust (a web page
can send to it), so Host must be a name of ours and a browser's request must come from our own
pages; one extractor for both key headers; keys are 256 random bits and only their hash is kept.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from openbr.errors import AuthenticationError, ForbiddenError, RateLimitedError, WrongHostError
from openbr.records import Caller
from openbr.secret import SCOPES
from openbr.store import Store, keys, sessions
from openbr.ultra import TTLCache, blake3_hash, create_cache

COOKIE = "openbr_session"
SESSION_S = 30 * 86400.0
MAX_FAILURES = 20
FAILURE_WINDOW_S = 60.0
# How long a revoked key may go on: its row is read again after this.
_RECHECK_S = 1.0
_TOUCH_S = 60.0
_MAX_KEY = 512
_MAX_PASSED = 64
_PREFIX = "sk-openbr-"

OWNER = Caller(key_id=None, name="owner", scopes=SCOPES)
"""The person at this machine, where no key is required."""


def generate_key() -> str:
    """A new key: 256 random bits behind a prefix that secret scanners can know."""
    return _PREFIX + secrets.token_urlsafe(32)


def hash_key(key: str) -> bytes:
    """What the store keeps of a key. A fast hash is right for 256 random bits."""
    return blake3_hash(key.encode())


class Head(msgspec.Struct, frozen=True, gc=False):
    """The headers that decide who asks, taken from a request in one pass."""

    host: str = ""
    origin: str | None = None
    fetch_site: str | None = None
    fetch_mode: str | None = None
    key: str | None = None
    cookie: str | None = None
    content_length: str | None = None
    content_encoding: str | None = None
    cache_control: str | None = None

    def __repr__(self) -> str:
        return f"Head(host={self.host!r})"  # the others may be secrets


_HOST, _KEY, _CACHE_CONTROL = 0, 4, 8  # places in a Head
_WANTED = {
    b"host": _HOST,
    b"origin": 1,
    b"sec-fetch-site": 2,
    b"sec-fetch-mode": 3,
    b"cookie": 5,
    b"content-length": 6,
    b"content-encoding": 7,
    b"cache-control": _CACHE_CONTROL,
}


def read_head(headers: Iterable[tuple[bytes, bytes]]) -> Head:
    """Pick the wanted headers. `Authorization: Bearer` wins over `x-api-key`.

    Raises: WrongHostError when Host is there twice.
    """
    found: list[str | None] = [None] * len(Head.__struct_fields__)
    for name, value in headers:
        place = _WANTED.get(name)
        if place is not None:
            text, said = value.decode("latin-1"), found[place]
            if said is not None:
                if place == _HOST:
                    raise WrongHostError("two Host headers")
                if place == _CACHE_CONTROL:
                    text = f"{said}, {text}"  # one list on two lines (RFC 9110, section 5.3)
            found[place] = text
        elif name == b"authorization":
            scheme, _, key = value.decode("latin-1").partition(" ")
            if scheme.lower() == "bearer":
                found[_KEY] = key.strip()
        elif name == b"x-api-key" and found[_KEY] is None:
            found[_KEY] = value.decode("latin-1").strip()
    found[_HOST] = found[_HOST] or ""
    return Head(*found)  # type: ignore[arg-type]


class Hosts:
    """The Host names that this gateway answers to, and the origins of its own pages."""

    def __init__(self, public: Iterable[str] = (), *, lan: bool = False) -> None:
        self._names = {"localhost", "127.0.0.1", "::1", *(name.lower() for name in public)}
        self._lan = lan
        self._passed: set[str] = set()
        if lan:
            import socket

            name = socket.gethostname().lower()
            self._names |= {name, f"{name}.local"}

    def check(self, head: Head, local_address: str | None, method: str) -> None:
        """Raises: WrongHostError (421), ForbiddenError (403)."""
        if head.origin is None and head.fetch_site is None and head.host in self._passed:
            return  # a program that said so before
        name = _host_name(head.host)
        if name not in self._names and not (self._lan and name == local_address):
            raise WrongHostError(
                f"this gateway does not answer to the name {head.host[:100]!r}; if it is yours, "
                "add it to server.public_hosts"
            )
        if head.origin is not None and head.origin.partition("://")[2] != head.host:
            raise ForbiddenError("a page of another origin may not call this gateway")
        # A link from elsewhere to one of our pages is a navigation that only reads.
        link = method in ("GET", "HEAD") and head.fetch_mode == "navigate"
        if head.fetch_site in ("cross-site", "same-site") and not link:
            raise ForbiddenError("another site may not call this gateway")
        if name in self._names and len(self._passed) < _MAX_PASSED:
            self._passed.add(head.host)


def _host_name(host: str) -> str:
    """A Host header without its port, lower case, IPv6 without brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()


class Auth:
    """Threads: event loop only. `required` is decided at start by mode and bind."""

    def __init__(
        self, store: Store, *, required: bool, clock: Callable[[], float] | None = None
    ) -> None:
        self.required = required
        self._store = store
        self._callers = create_cache(max_entries=1024, ttl_s=_RECHECK_S, clock=clock)
        self._failures = create_cache(max_entries=4096, ttl_s=FAILURE_WINDOW_S, clock=clock)
        self._touched = create_cache(max_entries=1024, ttl_s=_TOUCH_S, clock=clock)
        self._writes: set[asyncio.Task[None]] = set()

    def caches(self) -> dict[str, TTLCache[Any, Any]]:
        """By their names in the app's memory."""
        return {
            "callers": self._callers,
            "failures of callers": self._failures,
            "uses of keys": self._touched,
        }

    def identify(self, head: Head, address: str) -> Caller:
        """Raises: AuthenticationError (401), RateLimitedError (429) after many failures."""
        caller = None
        if head.key:
            caller = self._by_key(head.key)
        elif head.cookie and (session := _cookie(head.cookie)):
            caller = self._by_session(session)
        if caller is not None:
            return caller
        if not self.required:
            return OWNER
        if not head.key:
            raise AuthenticationError(
                "a key is needed: send `Authorization: Bearer sk-openbr-...`; "
                "`openbr keys add NAME` makes one"
            )
        self._failed(address)
        raise AuthenticationError("this key is not known, or was revoked")

    async def login(self, key: str, address: str = "") -> str:
        """A session for a browser: the value of its cookie. Raises as `identify`."""
        caller = self._by_key(key.strip())
        if caller is None or caller.key_id is None:
            self._failed(address)
            raise AuthenticationError("this key is not known, or was revoked")
        value = secrets.token_urlsafe(32)
        now = time.time()
        await self._store.commit(
            sessions.add,
            digest=hash_key(value),
            key_id=caller.key_id,
            expires_at=now + SESSION_S,
            now=now,
        )
        return value

    async def logout(self, value: str) -> None:
        digest = hash_key(value)
        self._callers.delete(digest)
        await self._store.commit(sessions.delete, digest)

    async def close(self) -> None:
        await asyncio.gather(*self._writes, return_exceptions=True)

    def _by_key(self, key: str) -> Caller | None:
        if len(key) > _MAX_KEY or not key.isascii():
            return None
        return self._find(hash_key(key), self._load_key)

    def _by_session(self, value: str) -> Caller | None:
        if len(value) > _MAX_KEY or not value.isascii():
            return None
        return self._find(hash_key(value), self._load_session)

    def _find(self, digest: bytes, load: Callable[[bytes], Caller | None]) -> Caller | None:
        """Look a credential up by its whole hash, in the store at most once a second."""
        found: tuple[Caller | None] | None = self._callers.get(digest)
        if found is None:
            found = (load(digest),)
            self._callers.set(digest, found)
        caller = found[0]
        if caller is not None and caller.key_id is not None and caller.key_id not in self._touched:
            self._touched.set(caller.key_id, True)
            task = asyncio.ensure_future(self._store.commit(keys.touch, caller.key_id, time.time()))
            self._writes.add(task)
            task.add_done_callback(self._writes.discard)
        return caller

    def _load_key(self, digest: bytes) -> Caller | None:
        key = self._store.read(keys.find, digest)
        return _caller(key)

    def _load_session(self, digest: bytes) -> Caller | None:
        key_id = self._store.read(sessions.find, digest, time.time())
        return _caller(self._store.read(keys.get, key_id)) if key_id is not None else None

    def _failed(self, address: str) -> None:
        address = address.removeprefix("::ffff:")  # an IPv4 in IPv6 form counts with itself
        count = self._failures.get(address) or 0
        if count >= MAX_FAILURES:
            raise RateLimitedError(
                "too many wrong keys from this address: wait a minute",
                code="too_many_failures",
                retry_after_s=FAILURE_WINDOW_S,
            )
        self._failures.set(address, count + 1)


def _caller(key: keys.StoredKey | None) -> Caller | None:
    if key is None or key.revoked_at is not None:
        return None
    return Caller(key_id=key.id, name=key.name, scopes=key.scopes)


def _cookie(header: str) -> str | None:
    """The value of our cookie in a Cookie header."""
    for part in header.split(";"):
        name, _, value = part.strip().partition("=")
        if name == COOKIE:
            return value
    return None
