"""Memory taken in many pieces and given back at once, in plain Python: the twin of arena.pyx.

In: sizes, and bytes to collect. Out: buffers, and the collected bytes as one. The rules that live
only here: how chunks are counted, and that nothing is given back while a view of it exists.

A piece starts at a multiple of 16 in the current chunk. One that does not fit there gets a new
current chunk, or a chunk of its own when it is larger than a chunk. What is appended fills the
current chunk to its end first. The twin counts so, and takes its memory from bytearrays.
"""

from __future__ import annotations

from threading import RLock
from typing import NoReturn, final

from openbr._native.buffer_py import Buffer
from openbr._native.limits import MAX_BYTES, parse_whole
from openbr._native.stats import ArenaStats

_ALIGNMENT = 16
_MIN_CHUNK = 64


def _round_up(size: int) -> int:
    return (size + _ALIGNMENT - 1) & -_ALIGNMENT


@final
class ArenaBuffer(Buffer):
    """Writable memory of a MemoryArena, by the buffer protocol; what is in it at first is not said.

    Gone when the arena is reset: then its length is 0, and a view of it raises ValueError.
    Threads: as safe as the memory it is; nobody orders what is written to it.
    """

    __slots__ = ()


@final
class MemoryArena:
    """Memory in chunks, handed out in pieces and given back in one go by `reset`.

    chunk_bytes: 64 or more, rounded up to a multiple of 16; 64 KiB is a good size for streams.

    Threads: every method is atomic. The bytes appended by several threads are in the order of
    their calls.
    """

    __slots__ = (
        "__weakref__",
        "_allocated",
        "_chunk_bytes",
        "_chunks",
        "_collected",
        "_cursor",
        "_end",
        "_high_water",
        "_live",
        "_lock",
        "_resets",
        "_used",
    )

    def __init__(self, chunk_bytes: int = 65536) -> None:
        self._chunk_bytes = _round_up(
            parse_whole("chunk_bytes", chunk_bytes, _MIN_CHUNK, MAX_BYTES)
        )
        self._lock = RLock()
        self._live: list[ArenaBuffer] = []
        self._collected: list[bytes] = []
        self._cursor = self._end = 0  # in the current chunk; equal: there is none, or it is full
        self._allocated = self._chunks = self._used = self._high_water = self._resets = 0

    def __init_subclass__(cls, **kwargs: object) -> NoReturn:
        raise TypeError("MemoryArena cannot be subclassed")

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("cannot pickle 'MemoryArena' object")

    def __repr__(self) -> str:
        return f"<MemoryArena with chunks of {self._chunk_bytes} bytes>"

    def alloc_buffer(self, n: int, /) -> ArenaBuffer:
        """n bytes, aligned to 16.

        Raises: TypeError, ValueError (n < 1), OverflowError, MemoryError.
        """
        size = parse_whole("n", n, 1, MAX_BYTES)
        buffer = ArenaBuffer.__new__(ArenaBuffer)
        buffer.fill(size)
        with self._lock:
            start, needed = _round_up(self._cursor), _round_up(size)
            if start + needed <= self._end:
                self._cursor = start + needed
            elif needed > self._chunk_bytes:
                self._add_chunk(needed)
            else:
                self._add_chunk(self._chunk_bytes)
                self._cursor, self._end = needed, self._chunk_bytes
            self._use(size)
            self._live.append(buffer)
        return buffer

    def append(self, data: bytes | bytearray | memoryview, /) -> None:
        """Collect a copy of data, for `take`.

        Raises: TypeError (not bytes-like), BufferError (not contiguous).
        """
        view = memoryview(data)
        if not view.c_contiguous:
            raise BufferError("data must be contiguous")
        copy = bytes(view)
        if not copy:
            return
        with self._lock:
            rest = max(0, len(copy) - (self._end - self._cursor))
            self._cursor += len(copy) - rest
            if rest > self._chunk_bytes:
                self._add_chunk(_round_up(rest))
            elif rest:
                self._add_chunk(self._chunk_bytes)
                self._cursor, self._end = rest, self._chunk_bytes
            self._use(len(copy))
            self._collected.append(copy)

    def take(self) -> bytes:
        """All that was appended since the last `take` or `reset`, as one. Its memory stays."""
        with self._lock:
            taken = b"".join(self._collected)
            self._collected.clear()
        return taken

    def reset(self) -> None:
        """Give all memory back but one chunk. What was handed out is gone; see ArenaBuffer.

        Raises: BufferError while a view of a buffer exists; nothing changes then.
        """
        with self._lock:
            if any(buffer.is_exported() for buffer in self._live):
                raise BufferError("the arena cannot be reset: a view of its memory exists")
            for buffer in self._live:
                buffer.kill()
            self._live.clear()
            self._collected.clear()
            keeps = self._end > 0
            self._allocated = self._end = self._chunk_bytes if keeps else 0
            self._chunks = int(keeps)
            self._cursor = self._used = 0
            self._resets += 1

    def stats(self) -> ArenaStats:
        """What is taken, and the most that ever was."""
        with self._lock:
            return ArenaStats(
                allocated=self._allocated,
                used=self._used,
                high_water=self._high_water,
                chunks=self._chunks,
                resets=self._resets,
            )

    def _add_chunk(self, size: int) -> None:
        self._allocated += size
        self._chunks += 1

    def _use(self, size: int) -> None:
        self._used += size
        self._high_water = max(self._high_water, self._used)
