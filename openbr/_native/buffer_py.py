"""A block of memory that its owner can take back, in plain Python.

In: a size. Out: an object with the buffer protocol. The rule that lives only here: how the twins
refuse, since Python 3.11 lets only compiled code refuse a buffer. A dead block is empty there, so
nothing in it can be read or written; from 3.12 on a view of it raises ValueError, as native code
does.
"""

from __future__ import annotations

from typing import NoReturn


class Buffer(bytearray):
    """`size` bytes, until `kill`. A bytearray, because that is what has the protocol in 3.11."""

    __slots__ = ("alive",)

    alive: bool

    def __init__(self) -> None:
        raise TypeError(f"{type(self).__name__} objects are made by their owner")

    def __init_subclass__(cls, **kwargs: object) -> None:
        if Buffer not in cls.__bases__:
            raise TypeError(f"{cls.__bases__[0].__name__} cannot be subclassed")

    def __buffer__(self, flags: int, /) -> memoryview:
        if not self.alive:
            raise ValueError("this buffer is gone: it was released, or its arena was reset")
        return super().__buffer__(flags)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self)} bytes>"

    __str__ = __repr__

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError(f"cannot pickle '{type(self).__name__}' object")

    __hash__ = object.__hash__  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return self is other

    def __ne__(self, other: object) -> bool:
        return self is not other

    def fill(self, size: int) -> None:
        """Come to life with that many bytes."""
        bytearray.__init__(self, size)
        self.alive = True

    def is_exported(self) -> bool:
        """True while a view of it exists: then its size cannot change."""
        try:
            self.append(0)
        except BufferError:
            return True
        self.pop()
        return False

    def kill(self) -> None:
        """Take the memory back. Nothing may be exported."""
        self.alive = False
        self.clear()
