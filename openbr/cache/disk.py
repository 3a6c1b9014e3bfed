"""The tier behind the memory: answers that outlive the process.

In: a key; a KeptAnswer to keep. Out: the answer and its age, found on the disk. The rules that live
only here: the file is opened, read and written in one thread of its own, begun when it is first
needed; nobody waits for a write; a disk that fails switches the tier off with one line in the log,
and the gateway goes on without it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec

from openbr.cache.kept import KeptAnswer
from openbr.store.answers import AnswerFile, AnswersFailed

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

logger = logging.getLogger(__name__)

T = TypeVar("T")

MAX_WAITING = 8 * 1024 * 1024
"""Bytes of answers that wait to be written; what comes when there are more is not kept on disk."""


class DiskTier:
    """Threads: `find`, `keep`, `clear`, `close` are the event loop's; the file is the worker's."""

    def __init__(
        self,
        path: Path,
        *,
        max_bytes: int,
        ttl_s: float,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._ttl_s = ttl_s
        self._wall_clock = wall_clock
        self._decode = msgspec.msgpack.Decoder(KeptAnswer).decode
        self._encode = msgspec.msgpack.Encoder().encode
        self._file: AnswerFile | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._is_off = False
        self._waiting = 0
        self.used_bytes = 0
        """Of the file, as of its last use; 0 before the first."""

    @property
    def is_off(self) -> bool:
        """Whether the disk failed, or the tier was closed."""
        return self._is_off

    async def find(self, key: bytes) -> tuple[KeptAnswer, float] | None:
        """The answer and its age in seconds."""
        if self._is_off:
            return None
        return await asyncio.wrap_future(self._submit(lambda: self._find(key)))

    def keep(self, key: bytes, kept: KeptAnswer) -> None:
        """Write it when the worker comes to it."""
        size = kept.size
        if self._is_off or self._waiting + size > MAX_WAITING:
            return
        self._waiting += size
        created_at = self._wall_clock()
        loop = asyncio.get_running_loop()

        def write() -> None:
            try:
                self._do(lambda file, _: file.keep(key, self._encode(kept), created_at))
            finally:
                with contextlib.suppress(RuntimeError):  # the loop has ended
                    loop.call_soon_threadsafe(self._written, size)

        self._submit(write)

    def clear(self) -> None:
        if not self._is_off:
            self._submit(lambda: self._do(lambda file, now: file.clear()))

    def close(self) -> None:
        """Finish what is waiting, then close. Blocks meanwhile. May be called twice."""
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.submit(self._shut)
            thread.shutdown(wait=True)
        self._is_off = True

    def _written(self, size: int) -> None:
        self._waiting -= size

    def _submit(self, work: Callable[[], T]) -> Future[T]:
        if self._thread is None:
            from concurrent.futures import ThreadPoolExecutor

            self._thread = ThreadPoolExecutor(1, "openbr-answers")
        return self._thread.submit(work)

    # In the worker.

    def _find(self, key: bytes) -> tuple[KeptAnswer, float] | None:
        found = self._do(lambda file, now: file.find(key, now))
        if found is None:
            return None
        data, age_s = found
        try:
            return self._decode(data), age_s
        except (msgspec.DecodeError, UnicodeError):
            self._do(lambda file, now: file.drop(key))
            return None

    def _do(self, work: Callable[[AnswerFile, float], T]) -> T | None:
        """Use the file, opened if need be; None where it failed, now or before."""
        if self._is_off:
            return None
        try:
            if self._file is None:
                self._file = AnswerFile.open(
                    self._path, self._max_bytes, self._ttl_s, self._wall_clock()
                )
            result = work(self._file, self._wall_clock())
            self.used_bytes = self._file.used_bytes
            return result
        except AnswersFailed as exc:
            self._is_off = True
            logger.warning("%s; answers are kept in memory only", exc)
            self._shut()
            return None

    def _shut(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()
