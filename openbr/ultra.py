"""The public face of the native layer: caches, hashes and JSON, and an honest word on what runs.

In: sizes and data. Out: caches, digests, JSON, and `info()`: what is native, what is pure and why.
The rules that live only here: results never depend on which implementation runs; JSON is strict
in both; a library that most runs do not need is loaded at its first use, and until then `info()`
says no more of it than that it is there.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeVar

from openbr import _native
from openbr._native import (
    ArenaBuffer,
    InstancePool,
    MemoryArena,
    ObjectPool,
    PooledBuffer,
    TTLCache,
    limit_heap_arenas,
    trim_heap,
)
from openbr._native.memory import MemoryManager, Trimmed
from openbr.config import NativeFlags, load_native_flags

if TYPE_CHECKING:
    from blake3 import blake3

__all__ = [
    "ArenaBuffer",
    "Info",
    "InstancePool",
    "MemoryArena",
    "MemoryManager",
    "ObjectPool",
    "Part",
    "PooledBuffer",
    "TTLCache",
    "Trimmed",
    "blake3_hash",
    "create_blake3_hasher",
    "create_cache",
    "create_instance_pool",
    "create_memory_arena",
    "create_memory_manager",
    "create_object_pool",
    "features",
    "hash_batch",
    "info",
    "limit_heap_arenas",
    "parse_json",
    "stringify_json",
    "trim_heap",
    "xxh3_hash",
]

T = TypeVar("T")

Data = bytes | bytearray | memoryview

_NAMES = {"lru": "cache", "arena": "arena", "pool": "pool", "heap": "heap"}


def create_cache(
    max_entries: int = 1000,
    ttl_s: float | None = 3600,
    *,
    max_bytes: int | None = None,
    policy: str = "lru",
    size_of: Callable[[Any, Any], int] | None = None,
    on_evict: Callable[[Any, Any, str], object] | None = None,
    clock: Callable[[], float] | None = None,
) -> TTLCache[Any, Any]:
    """A cache bounded by entries, by bytes and by time. In the original: createCache."""
    return TTLCache(
        max_entries,
        ttl_s,
        max_bytes=max_bytes,
        policy=policy,
        size_of=size_of,
        on_evict=on_evict,
        clock=clock,
    )


def create_memory_arena(chunk_bytes: int = 65536) -> MemoryArena:
    """Memory taken in many pieces and given back at once. Was: createMemoryArena."""
    return MemoryArena(chunk_bytes)


def create_object_pool(max_buffers: int = 100, *, max_bytes: int = 33554432) -> ObjectPool:
    """Buffers to use again, bounded by count and bytes. Was: createObjectPool."""
    return ObjectPool(max_buffers, max_bytes=max_bytes)


def create_instance_pool(
    factory: Callable[[], T], reset: Callable[[T], object] | None = None, *, max_objects: int = 100
) -> InstancePool[T]:
    """Objects to use again, each reset before it is kept. The original has no such pool."""
    return InstancePool(factory, reset, max_objects=max_objects)


def create_memory_manager() -> MemoryManager:
    """Every arena, pool and cache that is added to it in one stats(), and trim().

    Was: createMemoryManager.
    """
    return MemoryManager()


# Hashes.


def _first_blake3(*data: Data) -> blake3:
    """Stands for the class until its first use, which loads it."""
    global _blake3
    from blake3 import blake3

    _blake3 = blake3
    return blake3(*data)


_blake3: Callable[..., blake3] = _first_blake3


def __getattr__(name: str) -> Any:
    """xxh3_hash is xxhash's own function, put here at its first use: a function of ours around it
    would cost more than hashing 256 bytes."""
    if name != "xxh3_hash":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from xxhash import xxh3_128_digest

    globals()[name] = xxh3_128_digest
    return xxh3_128_digest


if TYPE_CHECKING:

    def xxh3_hash(data: Data, /) -> bytes:
        """The 16-byte XXH3 digest, for ETags and shards inside one trust domain. Was: xxh3Hash.

        Raises: TypeError if data is not bytes-like.
        """


def blake3_hash(data: Data) -> bytes:
    """The 32-byte BLAKE3 digest, for where a collision would be an attack. Was: blake3Hash.

    Raises: TypeError if data is not bytes-like.
    """
    if data is None:
        raise TypeError("data must be bytes-like, not None")
    return _blake3(data).digest()


def hash_batch(items: Iterable[Data]) -> list[bytes]:
    """The BLAKE3 digests of many items, in order. Was: hashBatch."""
    return [blake3_hash(item) for item in items]


def create_blake3_hasher() -> blake3:
    """A hasher for data in pieces: `update(data)`, then `digest()`. Was: createBlake3Hasher."""
    return _blake3()


# JSON.

_SMALL_FLOAT = re.compile(r"e-[0-9](?![0-9])")  # 1e-5, where Python writes 1e-05


@dataclass(frozen=True, slots=True)
class _Codec:
    name: str
    reason: str | None
    loads: Callable[[bytes], Any] | None
    dumps: Callable[[Any], str] | None


@cache
def _codec() -> _Codec:
    reason = _ujson_refusal()
    if reason is None:
        try:
            import ujson
        except ImportError as exc:
            import logging

            reason = f"ujson does not load: {exc}"
            logging.getLogger("openbr.native").warning("%s; the json of Python serves", reason)
        else:

            def dumps(value: Any) -> str:
                text: str = ujson.dumps(
                    value, ensure_ascii=False, escape_forward_slashes=False, allow_nan=False
                )
                return text

            return _Codec(f"ujson {ujson.__version__}", None, ujson.loads, dumps)
    return _Codec("json", reason, None, None)


def _ujson_refusal() -> str | None:
    flags = load_native_flags()
    if flags.USE_LEGACY_MODE:
        return "USE_LEGACY_MODE is on"
    for name in ("USE_ULTRA_PERFORMANCE", "USE_UJSON"):
        if not getattr(flags, name):
            return f"{name} is off"
    return None if find_spec("ujson") else "ujson is not installed"


@cache
def _check_json() -> Callable[[bytes], object]:
    import msgspec

    return msgspec.json.Decoder(msgspec.Raw).decode


def parse_json(data: Data | str) -> Any:
    """The value of a JSON text in UTF-8, as RFC 8259 has it. Was: parseJSON.

    ujson and the json of Python read more than JSON (`01`, `1.`, NaN, lone surrogates), and not
    the same: the grammar is checked first, by msgspec without building anything, so that both
    refuse alike. What ujson refuses (deep nesting) is for the json of Python to decide.
    Raises: ValueError if it is not JSON; TypeError if data is neither text nor bytes-like.
    """
    if isinstance(data, str):
        raw = data.encode()
    elif isinstance(data, (bytes, bytearray, memoryview)):
        raw = bytes(data)
        if not raw.isascii():
            str(raw, "utf-8")  # neither of the two below looks into strings as strictly
    else:
        raise TypeError(f"data must be text or bytes-like, not {type(data).__name__}")
    try:
        _check_json()(raw)
    except (ValueError, RecursionError) as exc:
        raise ValueError(f"not valid JSON: {exc}") from exc
    loads = _codec().loads
    if loads is not None:
        try:
            return loads(raw)
        except (ValueError, RecursionError):
            pass
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as exc:
        raise ValueError(f"not valid JSON: {exc}") from exc


def stringify_json(value: Any) -> str:
    """JSON text without white space, characters beyond ASCII as they are. Was: stringifyJSON.

    value: None, bool, int, float, str, list, tuple, and dict with keys of those but the last
    three. For other types `USE_UJSON=false` raises TypeError, and ujson writes some of them.
    Raises: ValueError (NaN, infinity, nesting too deep or endless), TypeError.
    """
    dumps = _codec().dumps
    if dumps is not None:
        try:
            text = dumps(value)
        except (ArithmeticError, ValueError, TypeError, RecursionError):
            pass
        else:
            if "e-" not in text or not _SMALL_FLOAT.search(text):
                return text
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except RecursionError as exc:
        raise ValueError("nested too deeply for JSON") from exc


# What runs.


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One part of the layer. `kind`: "native", "pure", or "missing" where nothing can stand in.

    `library` is what serves; `reason` says why it is not native; `loaded` is False as long as
    nobody has needed it.
    """

    name: str
    kind: str
    library: str
    reason: str | None = None
    loaded: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Info:
    """The parts, in the order they are told."""

    parts: tuple[Part, ...]

    def find(self, name: str) -> Part | None:
        """The part of that name: cache, json, blake3, xxh3, ..."""
        return next((part for part in self.parts if part.name == name), None)

    def __str__(self) -> str:
        """One line a part, as the banner prints them."""
        width = max(len(part.name) for part in self.parts)
        return "\n".join(
            f"{part.name:{width}}  {part.kind:7}  {part.library}"
            + (f"  ({part.reason})" if part.reason else "" if part.loaded else "  (at first use)")
            for part in self.parts
        )


def info() -> Info:
    """What is native, what is pure, and for each pure part why. Was: getInfo."""
    modules = [
        Part(
            name=_NAMES[one.module],
            kind=one.kind,
            library=f"openbr._native.{one.module}" + ("" if one.kind == "native" else "_py"),
            reason=one.reason,
        )
        for one in _native.IMPLEMENTATIONS
    ]
    return Info(parts=(*modules, _json_part(), _hash_part("blake3"), _hash_part("xxh3")))


def _json_part() -> Part:
    if _codec.cache_info().currsize:
        codec = _codec()
        kind = "pure" if codec.loads is None else "native"
        return Part(name="json", kind=kind, library=codec.name, reason=codec.reason)
    reason = _ujson_refusal()
    if reason is None:
        return Part(name="json", kind="native", library="ujson", loaded=False)
    return Part(name="json", kind="pure", library="json", reason=reason)


def _hash_part(name: str) -> Part:
    library = "xxhash" if name == "xxh3" else name
    if find_spec(library) is None:
        reason = f"{library} is not installed, and openbr needs it"
        return Part(name=name, kind="missing", library=library, reason=reason, loaded=False)
    return Part(name=name, kind="native", library=library, loaded=library in sys.modules)


def features() -> NativeFlags:
    """The flags as active, not as wished: on only where the native code is what runs."""
    parts = {part.name: part.kind == "native" for part in info().parts}
    cache_on, arena, pool = (parts.get(name, False) for name in ("cache", "arena", "pool"))
    return NativeFlags(
        USE_ULTRA_PERFORMANCE=any(parts[name] for name in (*_NAMES.values(), "json")),
        USE_NATIVE_CACHE=cache_on,
        USE_NATIVE_ARENA=arena,
        USE_NATIVE_POOL=pool,
        USE_UJSON=parts["json"],
        USE_LEGACY_MODE=load_native_flags().USE_LEGACY_MODE,
    )
