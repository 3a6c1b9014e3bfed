"""Which numbers the native layer accepts, said once for the compiled classes and their twins.

In: an argument's name and value. Out: the checked number, or an exception that names the
argument. The rule that lives only here: the bounds themselves.
"""

from __future__ import annotations

import math
from operator import index
from typing import Any

MAX_ENTRIES = 2**30
MAX_BYTES = 2**48


def parse_whole(name: str, value: Any, low: int, high: int) -> int:
    """A whole number from low to high.

    Raises: TypeError (not a whole number), ValueError (too small), OverflowError (too large).
    """
    try:
        number = index(value)
    except TypeError:
        raise TypeError(f"{name} must be a whole number, not {type(value).__name__}") from None
    if number < low:
        # A number of more digits than Python writes would raise an error that names nobody.
        shown = f", not {number}" if number > -MAX_BYTES else ""
        raise ValueError(f"{name} must be at least {low}{shown}")
    if number > high:
        raise OverflowError(f"{name} must be at most {high}")
    return number


def parse_seconds(name: str, value: Any) -> float:
    """A length of time above zero. None and infinity both mean: for ever.

    Raises: TypeError (not a number), ValueError (zero, negative, NaN), OverflowError (too large).
    """
    if value is None:
        return math.inf
    if not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number of seconds, not {type(value).__name__}")
    try:
        seconds = float(value)
    except OverflowError:
        raise OverflowError(f"{name} must be a number of seconds that a float can hold") from None
    if not seconds > 0:
        raise ValueError(f"{name} must be above zero, not {seconds}")
    return seconds


def parse_callable(name: str, value: Any) -> Any:
    """A function, or None.

    Raises: TypeError.
    """
    if value is not None and not callable(value):
        raise TypeError(f"{name} must be a function, not {type(value).__name__}")
    return value


def parse_policy(value: Any) -> str:
    """ "lru" or "sieve".

    Raises: ValueError.
    """
    if value not in ("lru", "sieve"):
        raise ValueError(f'policy must be "lru" or "sieve", not {value!r}')
    return str(value)
