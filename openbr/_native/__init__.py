"""Chooses, once for all, between the compiled modules and their twins.

In: the flags of `config.load_native_flags()`, and what can be imported. Out: the classes, and
IMPLEMENTATIONS, which says for each module which one it is and why. The rule that lives only here:
a module that was never built is replaced quietly, one that is there and does not load is replaced
with a warning. Nobody else knows that there are two.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from openbr.config import NativeFlags, load_native_flags

if TYPE_CHECKING:
    from openbr._native.arena import ArenaBuffer, MemoryArena
    from openbr._native.heap import limit_heap_arenas, trim_heap
    from openbr._native.lru import TTLCache
    from openbr._native.pool import InstancePool, ObjectPool, PooledBuffer

__all__ = [
    "IMPLEMENTATION",
    "IMPLEMENTATIONS",
    "ArenaBuffer",
    "Implementation",
    "InstancePool",
    "MemoryArena",
    "ObjectPool",
    "PooledBuffer",
    "TTLCache",
    "limit_heap_arenas",
    "trim_heap",
]

_MODULES = {
    "lru": ("USE_NATIVE_CACHE", ("TTLCache",)),
    "arena": ("USE_NATIVE_ARENA", ("MemoryArena", "ArenaBuffer")),
    "pool": ("USE_NATIVE_POOL", ("ObjectPool", "PooledBuffer", "InstancePool")),
    "heap": ("USE_ULTRA_PERFORMANCE", ("trim_heap", "limit_heap_arenas")),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Implementation:
    """`kind` is "native" or "pure"; `reason` says why it is pure, `broken` that it need not be."""

    module: str
    kind: str
    reason: str | None = None
    broken: bool = False


def _refusal(flags: NativeFlags, flag: str) -> str | None:
    if flags.USE_LEGACY_MODE:
        return "USE_LEGACY_MODE is on"
    for name in ("USE_ULTRA_PERFORMANCE", flag):
        if not getattr(flags, name):
            return f"{name} is off"
    return None


def choose(
    module: str, flag: str, names: tuple[str, ...], flags: NativeFlags
) -> tuple[Implementation, dict[str, Any]]:
    """One module's names, native if that is wished for and possible."""
    reason, broken = _refusal(flags, flag), False
    if reason is None:
        path = f"{__name__}.{module}"
        try:
            native = import_module(path)
            classes = {name: getattr(native, name) for name in names}
            return Implementation(module=module, kind="native"), classes
        except ModuleNotFoundError as exc:
            broken = exc.name != path
            reason = f"{module} does not load: {exc}" if broken else "not built"
        except (ImportError, AttributeError) as exc:
            broken, reason = True, f"{module} does not load: {exc}"
        if broken:
            logging.getLogger("openbr.native").warning(
                "%s; its pure twin serves. Build it again, or remove it", reason
            )
    pure = import_module(f"{__name__}.{module}_py")
    chosen = Implementation(module=module, kind="pure", reason=reason, broken=broken)
    return chosen, {name: getattr(pure, name) for name in names}


def _choose_all() -> tuple[Implementation, ...]:
    flags = load_native_flags()
    chosen = []
    for module, (flag, names) in _MODULES.items():
        implementation, classes = choose(module, flag, names, flags)
        globals().update(classes)
        chosen.append(implementation)
    return tuple(chosen)


IMPLEMENTATIONS = _choose_all()
"""In the order of the modules' names in `info()`."""

_kinds = {implementation.kind for implementation in IMPLEMENTATIONS}
IMPLEMENTATION = _kinds.pop() if len(_kinds) == 1 else "mixed"
"""``native``, ``pure``, or ``mixed`` when the modules differ."""
