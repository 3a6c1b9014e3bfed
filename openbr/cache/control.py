"""What a request's Cache-Control asks of the cache. No I/O.

In: the header. Out: the greatest age of an answer that the caller takes. The rule that lives only
here: of several words the strictest counts, and an age that cannot be read is none at all.

Source: RFC 9111, section 5.2.1, read 2026-11.
"""

from __future__ import annotations

from math import inf


def find_max_age(header: str | None) -> float | None:
    """Seconds: inf where any kept answer will do, 0.0 where none will (`no-cache`, `max-age=0`).

    None is `no-store`: the request neither reads the cache nor fills it.
    """
    if header is None:
        return inf
    max_age_s = inf
    for word in header.lower().split(","):
        name, _, value = word.strip().partition("=")
        name = name.rstrip()
        if name == "no-store":
            return None
        if name == "no-cache":
            max_age_s = 0.0
        elif name == "max-age":
            digits = value.strip().strip('"')
            is_number = digits.isascii() and digits.isdigit() and len(digits) < 16
            max_age_s = min(max_age_s, float(digits) if is_number else 0.0)
    return max_age_s
