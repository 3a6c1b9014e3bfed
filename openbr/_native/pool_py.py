"""Buffers and objects to use again, in plain Python: the twin of pool.pyx.

In: sizes, or a factory. Out: buffers and objects, lent until they are released. The rules that
live only here: which idle buffer is given out, which one is dropped for want of room, and what
cannot be released.

A buffer's room is the next power of two, 64 bytes or more: its size class. A request gets the
buffer of its class that was released last; where the idle ones are too many or too large together,
the one released longest ago is dropped, and one that is larger than max_bytes at once.

The twin counts the idle buffers as the compiled pool keeps them, and keeps no memory: a new
bytearray each time is the best that Python alone can do without a stale name for a buffer
reaching into its next use.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from threading import RLock
from types import TracebackType
from typing import Any, Generic, NoReturn, TypeVar, final

from openbr._native.buffer_py import Buffer
from openbr._native.limits import MAX_BYTES, parse_callable, parse_whole
from openbr._native.stats import PoolStats

T = TypeVar("T")

_SMALLEST = 64
_MAX_COUNT = 2**30


@final
class PooledBuffer(Buffer):
    """Writable memory lent by an ObjectPool, by the buffer protocol; its first content is not said.

    Gone when it is released: then its length is 0, and a view of it raises ValueError.
    Threads: as safe as the memory it is; nobody orders what is written to it.
    """

    __slots__ = ("_owner",)

    _owner: ObjectPool | None

    def __del__(self) -> None:
        owner = getattr(self, "_owner", None)
        if owner is not None:
            owner._lose()


@final
class ObjectPool:
    """Buffers to use again: no zeroing, and no new memory from the system, for those of one size.

    max_buffers, max_bytes: bounds on what is kept idle; what is lent is not bounded.

    Threads: every method is atomic. A buffer may be released by another thread than took it.
    """

    __slots__ = (
        "__weakref__",
        "_classes",
        "_counts",
        "_idle_bytes",
        "_lock",
        "_max_buffers",
        "_max_bytes",
        "_number",
        "_idle",
    )

    def __init__(self, max_buffers: int = 100, *, max_bytes: int = 33554432) -> None:
        self._max_buffers = parse_whole("max_buffers", max_buffers, 1, _MAX_COUNT)
        self._max_bytes = parse_whole("max_bytes", max_bytes, 1, MAX_BYTES)
        self._lock = RLock()
        self._idle: OrderedDict[int, int] = OrderedDict()  # number -> room, longest idle first
        self._classes: dict[int, list[int]] = {}  # room -> numbers, the last released last
        self._number = self._idle_bytes = 0
        self._counts = {"hits": 0, "misses": 0, "in_use": 0, "discarded": 0}

    def __init_subclass__(cls, **kwargs: object) -> NoReturn:
        raise TypeError("ObjectPool cannot be subclassed")

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("cannot pickle 'ObjectPool' object")

    def __repr__(self) -> str:
        return f"<ObjectPool of at most {self._max_buffers} idle buffers>"

    def acquire(self, n: int, /) -> PooledBuffer:
        """A buffer of n bytes, to be given back by `release`.

        Raises: TypeError, ValueError (n < 1), OverflowError, MemoryError.
        """
        size = parse_whole("n", n, 1, MAX_BYTES)
        buffer = PooledBuffer.__new__(PooledBuffer)
        buffer.fill(size)
        with self._lock:
            numbers = self._classes.get(_room(size))
            if numbers:
                self._idle_bytes -= self._idle.pop(numbers.pop())
                self._counts["hits"] += 1
            else:
                self._counts["misses"] += 1
            self._counts["in_use"] += 1
            buffer._owner = self
        return buffer

    def release(self, buffer: PooledBuffer, /) -> None:
        """Take a buffer back. It is gone for the caller.

        Raises: TypeError (not a buffer of a pool), ValueError (released already, or of another
        pool), BufferError while a view of it exists. Nothing changes then.
        """
        if type(buffer) is not PooledBuffer:
            raise TypeError(f"buffer must be a PooledBuffer, not {type(buffer).__name__}")
        with self._lock:
            if buffer._owner is not self:
                which = "released already" if buffer._owner is None else "of another pool"
                raise ValueError(f"this buffer is {which}")
            if buffer.is_exported():
                raise BufferError("the buffer cannot be released: a view of its memory exists")
            room = _room(len(buffer))
            buffer._owner = None
            buffer.kill()
            self._counts["in_use"] -= 1
            self._keep(room)

    def borrow(self, n: int, /) -> Loan:
        """`with pool.borrow(n) as buffer:` acquires at the start and releases at the end."""
        loan = Loan.__new__(Loan)
        loan._size = parse_whole("n", n, 1, MAX_BYTES)
        loan._pool = self
        loan._buffer = None
        return loan

    def trim(self) -> int:
        """Drop every idle buffer. The bytes that this freed."""
        with self._lock:
            freed = self._idle_bytes
            self._idle.clear()
            self._classes.clear()
            self._idle_bytes = 0
        return freed

    def stats(self) -> PoolStats:
        """Counts since the pool was made, and what is lent and idle now."""
        with self._lock:
            return PoolStats(idle=len(self._idle), idle_bytes=self._idle_bytes, **self._counts)

    def _keep(self, room: int) -> None:
        if room > self._max_bytes:
            self._counts["discarded"] += 1
            return
        self._number += 1
        self._idle[self._number] = room
        self._classes.setdefault(room, []).append(self._number)
        self._idle_bytes += room
        while len(self._idle) > self._max_buffers or self._idle_bytes > self._max_bytes:
            number, dropped = self._idle.popitem(last=False)
            self._classes[dropped].remove(number)
            self._idle_bytes -= dropped
            self._counts["discarded"] += 1

    def _lose(self) -> None:
        """A lent buffer was never released, and nobody has it any more."""
        with self._lock:
            self._counts["in_use"] -= 1


def _room(size: int) -> int:
    return max(_SMALLEST, 1 << (size - 1).bit_length())


@final
class Loan:
    """A buffer for the length of a `with` block; made by `ObjectPool.borrow`.

    Leaving the block by an exception while a view exists leaves the buffer to that view; without
    an exception it raises BufferError.
    Threads: one.
    """

    __slots__ = ("_buffer", "_pool", "_size")

    _buffer: PooledBuffer | None
    _pool: ObjectPool
    _size: int

    def __init__(self) -> None:
        raise TypeError(f"{type(self).__name__} objects are made by their owner")

    def __enter__(self) -> PooledBuffer:
        if self._buffer is not None:
            raise RuntimeError("this loan has begun already")
        self._buffer = self._pool.acquire(self._size)
        return self._buffer

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None:
        buffer, self._buffer = self._buffer, None
        if buffer is None:
            raise RuntimeError("this loan has not begun")
        try:
            self._pool.release(buffer)
        except (BufferError, ValueError):
            if error is None:
                raise


@final
class InstancePool(Generic[T]):
    """Objects to use again, where making one costs more than resetting it.

    factory() makes one. reset(object) makes a used one as good as new before it is kept; one that
    raises is dropped, and `release` raises that. max_objects: bound on what is kept idle.

    Threads: every method is atomic; factory and reset run outside of it, and may use the pool.
    What is lent and never released stays known to the pool, and alive.
    """

    __slots__ = (
        "__weakref__",
        "_counts",
        "_factory",
        "_idle",
        "_lent",
        "_lock",
        "_max_objects",
        "_reset",
    )

    def __init__(
        self,
        factory: Callable[[], T],
        reset: Callable[[T], object] | None = None,
        *,
        max_objects: int = 100,
    ) -> None:
        if factory is None:
            raise TypeError("factory must be a function, not NoneType")
        self._factory = parse_callable("factory", factory)
        self._reset = parse_callable("reset", reset)
        self._max_objects = parse_whole("max_objects", max_objects, 1, _MAX_COUNT)
        self._lock = RLock()
        self._idle: list[T] = []
        self._lent: dict[int, T] = {}
        self._counts = {"hits": 0, "misses": 0, "discarded": 0}

    def __init_subclass__(cls, **kwargs: object) -> NoReturn:
        raise TypeError("InstancePool cannot be subclassed")

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("cannot pickle 'InstancePool' object")

    def __repr__(self) -> str:
        return f"<InstancePool of at most {self._max_objects} idle objects>"

    def acquire(self) -> T:
        """An object, the one released last or a new one; to be given back by `release`.

        Raises: what factory raises; ValueError if factory returns one that is lent already.
        """
        with self._lock:
            if self._idle:
                lent = self._idle.pop()
                self._lent[id(lent)] = lent
                self._counts["hits"] += 1
                return lent
        made: T = self._factory()
        with self._lock:
            if id(made) in self._lent or any(one is made for one in self._idle):
                raise ValueError("factory must return a new object each time")
            self._lent[id(made)] = made
            self._counts["misses"] += 1
        return made

    def release(self, lent: T, /) -> None:
        """Take an object back.

        Raises: ValueError if it is not lent by this pool; what reset raises.
        """
        with self._lock:
            if id(lent) not in self._lent:
                raise ValueError("this object is not lent by this pool")
            del self._lent[id(lent)]
        if self._reset is not None:
            self._reset(lent)
        with self._lock:
            if len(self._idle) < self._max_objects:
                self._idle.append(lent)
            else:
                self._counts["discarded"] += 1

    def borrow(self) -> InstanceLoan[T]:
        """`with pool.borrow() as one:` acquires at the start and releases at the end."""
        loan: InstanceLoan[T] = InstanceLoan.__new__(InstanceLoan)
        loan._pool = self
        loan._begun = False
        loan._lent = None
        return loan

    def trim(self) -> int:
        """Drop every idle object. How many they were."""
        with self._lock:
            dropped, self._idle = self._idle, []
        return len(dropped)

    def stats(self) -> PoolStats:
        """Counts since the pool was made, and what is lent and idle now."""
        with self._lock:
            return PoolStats(
                in_use=len(self._lent), idle=len(self._idle), idle_bytes=0, **self._counts
            )


@final
class InstanceLoan(Generic[T]):
    """An object for the length of a `with` block; made by `InstancePool.borrow`.

    Threads: one.
    """

    __slots__ = ("_begun", "_lent", "_pool")

    _begun: bool
    _lent: Any
    _pool: InstancePool[T]

    def __init__(self) -> None:
        raise TypeError(f"{type(self).__name__} objects are made by their owner")

    def __enter__(self) -> T:
        if self._begun:
            raise RuntimeError("this loan has begun already")
        lent = self._lent = self._pool.acquire()
        self._begun = True
        return lent

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None:
        if not self._begun:
            raise RuntimeError("this loan has not begun")
        lent, self._lent, self._begun = self._lent, None, False
        try:
            self._pool.release(lent)
        except ValueError:
            if error is None:
                raise
