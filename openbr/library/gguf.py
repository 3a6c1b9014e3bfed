"""Is this file a language model that can be loaded, and what does it say of itself?

In: a path. Out: a GGUFHeader, or a LibraryError with the reason. The rules that live only here:
every count and length is bounded by the bytes that are left before anything is allocated; every
tensor must lie inside the file, so a truncated download is found without loading it.

Shape, little-endian: "GGUF", u32 version, u64 tensors, u64 pairs; pairs of (string key, u32 type,
value); for each tensor (string name, u32 dimensions, u64 each, u32 type, u64 offset); padding to
`general.alignment`; data. A string is a u64 length and bytes.
Source: github.com/ggml-org/ggml, docs/gguf.md, read 2026-11.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from openbr.library.files import LibraryError, disk_errors

_MAX_TENSORS = 1 << 18
_MAX_PAIRS = 1 << 16
_MAX_KEY = 1 << 16
_MAX_TEXT = 1 << 26
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q"}
_SCALARS |= {12: "d"}

# ggml type -> (values in a block, bytes of a block). Source: ggml/src/ggml-common.h, read 2026-11.
# A type that is newer than this table is let through: llama.cpp decides when it loads.
_BLOCKS = {0: (1, 4), 1: (1, 2), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8)}
_BLOCKS |= {30: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34)}
_BLOCKS |= {9: (32, 36), 20: (32, 18), 39: (32, 17), 10: (256, 84), 11: (256, 110)}
_BLOCKS |= {12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292), 16: (256, 66)}
_BLOCKS |= {17: (256, 74), 18: (256, 98), 19: (256, 50), 21: (256, 110), 22: (256, 82)}
_BLOCKS |= {23: (256, 136), 29: (256, 56), 34: (256, 54), 35: (256, 66)}


@dataclass(frozen=True, slots=True, kw_only=True)
class GGUFHeader:
    """What a file says of itself. `parameters` is the number of weights."""

    version: int
    architecture: str
    title: str | None
    context_tokens: int | None
    parameters: int


def load_header(path: Path) -> GGUFHeader:
    """Raises: LibraryError when llama.cpp could not load this as a language model."""
    with disk_errors(path):
        if path.exists() and not path.is_file():
            raise LibraryError(f"{path}: not a file")
        with open(path, "rb") as file:
            return _Reader(file, str(path)).read()


class _Reader:
    """One pass over one header. `left` is how many bytes of the file are still unread."""

    def __init__(self, file: BinaryIO, shown: str) -> None:
        self._file = file
        self._shown = shown
        self._size = os.fstat(file.fileno()).st_size
        self._left = self._size

    def read(self) -> GGUFHeader:
        version, tensors, pairs = self._preamble()
        facts = dict(self._pair() for _ in range(pairs))
        self._refuse_others(facts)
        parameters = self._tensors(tensors, facts)
        architecture = str(facts.get("general.architecture", ""))
        title = facts.get("general.name")
        context = facts.get(f"{architecture}.context_length")
        return GGUFHeader(
            version=version,
            architecture=architecture,
            title=title if isinstance(title, str) else None,
            context_tokens=context if isinstance(context, int) and context > 0 else None,
            parameters=parameters,
        )

    def _preamble(self) -> tuple[int, int, int]:
        magic = self._bytes(min(4, self._left))
        if magic != b"GGUF":
            what = "is empty" if not magic else f"starts with {magic!r}, not with b'GGUF'"
            raise self._bad(f"not a GGUF file: it {what}")
        (version,) = self._unpack("I")
        if version in (1 << 24, 2 << 24, 3 << 24):
            raise self._bad("a GGUF file for big-endian machines")
        if version not in (2, 3):
            raise self._bad(f"GGUF version {version}: only 2 and 3 can be loaded")
        tensors, pairs = self._unpack("QQ")
        if not tensors:
            raise self._bad("a GGUF file without weights (a vocabulary only?)")
        # The smallest tensor takes 24 bytes and the smallest pair 13.
        if tensors > min(_MAX_TENSORS, self._size // 24) or pairs > min(
            _MAX_PAIRS, self._size // 13
        ):
            raise self._bad(f"damaged: it claims {tensors} tensors and {pairs} facts")
        return version, tensors, pairs

    def _refuse_others(self, facts: dict[str, object]) -> None:
        kind = facts.get("general.type", "model")
        architecture = facts.get("general.architecture")
        if not isinstance(architecture, str) or not architecture:
            raise self._bad("damaged: it does not say its architecture")
        if kind != "model" or architecture == "clip":
            what = "a vision projector" if architecture == "clip" else f"of the kind {kind!r}"
            raise self._bad(f"a GGUF file, but {what}, not a language model")
        parts = facts.get("split.count")
        if isinstance(parts, int) and parts > 1:
            raise self._bad(
                f"one of {parts} parts of a model: join them with "
                "`llama-gguf-split --merge FIRST-PART WHOLE.gguf` and add the whole"
            )

    def _pair(self) -> tuple[str, object]:
        key = self._string(_MAX_KEY).decode("utf-8", "replace")
        (kind,) = self._unpack("I")
        return key, self._value(kind, key)

    def _value(self, kind: int, key: str) -> object:
        """The value, or None for an array, which is only walked over."""
        if kind == _STRING:
            return self._string(_MAX_TEXT).decode("utf-8", "replace")
        if kind in _SCALARS:
            (value,) = self._unpack(_SCALARS[kind])
            return value
        if kind != _ARRAY:
            raise self._bad(f"damaged: {key[:60]!r} has the unknown type {kind}")
        item, count = self._unpack("IQ")
        if item == _STRING:
            if count > self._left // 8:
                raise self._cut()
            self._skip_strings(count)
        elif item in _SCALARS:
            self._skip(count * struct.calcsize(_SCALARS[item]))
        else:
            raise self._bad(f"damaged: {key[:60]!r} is an array of the unknown type {item}")
        return None

    def _tensors(self, count: int, facts: dict[str, object]) -> int:
        extents: list[tuple[int, int]] = []
        parameters = 0
        for _ in range(count):
            name = self._string(_MAX_KEY)
            (dimensions,) = self._unpack("I")
            if not 1 <= dimensions <= 4:
                raise self._bad(f"damaged: tensor {name[:60]!r} has {dimensions} dimensions")
            values = 1
            for length in self._unpack(f"{dimensions}Q"):
                values *= length
            kind, offset = self._unpack("IQ")
            block, block_bytes = _BLOCKS.get(kind, (1, 0))
            extents.append((offset, -(-values // block) * block_bytes))
            parameters += values
        alignment = facts.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise self._bad(f"damaged: its alignment is {alignment}")
        start = -(-(self._size - self._left) // alignment) * alignment
        needed = start + max(offset + length for offset, length in extents)
        if needed > self._size:
            raise self._bad(
                f"truncated or damaged: its weights need {needed:,} bytes, it has {self._size:,}"
            )
        return parameters

    def _string(self, limit: int) -> bytes:
        (length,) = self._unpack("Q")
        if length > self._left:
            raise self._cut()
        if length > limit:
            raise self._bad(f"damaged: it holds a text of {length:,} bytes")
        return self._bytes(length)

    def _skip_strings(self, count: int) -> None:
        """A vocabulary: hundreds of thousands of small strings, so no frills in this loop."""
        read: Callable[[int], bytes] = self._file.read
        left = self._left
        for _ in range(count):
            length = int.from_bytes(read(8), "little")
            left -= 8 + length
            if left < 0 or length > _MAX_TEXT:
                raise self._cut()
            read(length)
        self._left = left

    def _skip(self, count: int) -> None:
        if count > self._left:
            raise self._cut()
        self._file.seek(count, os.SEEK_CUR)
        self._left -= count

    def _unpack(self, shape: str) -> tuple[int, ...]:
        shape = "<" + shape
        return struct.unpack(shape, self._bytes(struct.calcsize(shape)))

    def _bytes(self, count: int) -> bytes:
        if count > self._left:
            raise self._cut()
        self._left -= count
        return self._file.read(count)

    def _cut(self) -> LibraryError:
        return self._bad(f"truncated or damaged: it ends inside its header ({self._size:,} bytes)")

    def _bad(self, reason: str) -> LibraryError:
        return LibraryError(f"{self._shown}: {reason}")
