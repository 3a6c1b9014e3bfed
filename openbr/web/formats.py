"""Numbers, sizes, ages and dates as people read them, and untrusted text made harmless to read.

In: a Language and a value. Out: text. The rules that live only here: the decimal comma, units and
their thresholds; which characters may never reach a screen as they are. Every function takes the
language first, so that render.py can offer all of them as filters.
"""

from __future__ import annotations

import re
import time
from urllib.parse import quote

from openbr.web.language import Language

NBSP = "\u00a0"
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MESES = ("jan", "fev", "mar", "abr", "mai", "jun", "jul", "ago", "set", "out", "nov", "dez")

# What could hide, reorder or forge text: controls but tab and line feed, marks that override the
# direction of what follows, invisible spaces and tags, halves of surrogate pairs.
_HIDDEN = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f\u180e\u200b\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f"
)
_IN_TEXT = re.compile(f"[{_HIDDEN}]")
# Prose in some scripts needs direction marks and joiners; a name has no use for them.
_IN_NAME = re.compile(f"[{_HIDDEN}\t\n\u061c\u200c-\u200f\ufe00-\ufe0f]")


def visible(text: str) -> str:
    """The same text with each hidden character shown: a control picture, else its number."""
    return _IN_TEXT.sub(_show, text) if _IN_TEXT.search(text) else text


def name(text: str, longest: int = 120) -> str:
    """A model's name or a title on one line, with nothing invisible in it."""
    if _IN_NAME.search(text):
        text = _IN_NAME.sub(_show, text)
    return text if len(text) <= longest else text[: longest - 1] + "\u2026"


def _show(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "\u2421"
    return "\ufffd" if 0xD800 <= code <= 0xDFFF else f"[U+{code:04X}]"


def plain_lines(text: str) -> str:
    """A text from a form or an upstream with line feeds alone, and no half surrogates."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\x00", "")
    return text.encode("utf-8", "replace").decode("utf-8")


def anchor(text: str) -> str:
    """An id for an element: the same text gives the same id, different texts different ones."""
    safe = quote(text, safe="", errors="replace")
    for mark, code in (("_", "%5F"), (".", "%2E"), ("~", "%7E")):
        safe = safe.replace(mark, code)
    return safe.replace("%", "_")


def number(language: Language, value: float, digits: int = 0) -> str:
    """1.284 and 0,41 in Portuguese, 1,284 and 0.41 in English."""
    text = f"{value:,.{digits}f}"
    if language.is_portuguese:
        text = text.translate({ord(","): ".", ord("."): ","})
    return text


def compact(language: Language, value: int) -> str:
    """A number of tokens: 128 mil, 1 mi; 128k, 1M. Multiples of 1024 count in those."""
    if value < 1000:
        return number(language, value)
    thousands = value / 1024 if value % 1024 == 0 else value / 1000
    if thousands >= 1000:
        millions = thousands / 1024 if thousands % 1024 == 0 else thousands / 1000
        text = number(language, millions, 0 if millions == int(millions) else 1)
        return text + (NBSP + "mi" if language.is_portuguese else "M")
    text = number(language, thousands, 0 if thousands >= 100 or thousands % 1 < 0.05 else 1)
    return text + (NBSP + "mil" if language.is_portuguese else "k")


def size(language: Language, value: int) -> str:
    """Bytes in decimal units, as shops and disks count: 98 MB, 1,9 GB."""
    amount, unit = float(value), "B"
    for bigger in ("kB", "MB", "GB", "TB"):
        if amount < 1000:
            break
        amount, unit = amount / 1000, bigger
    digits = 1 if amount < 10 and unit in ("GB", "TB") else 0
    return number(language, amount, digits) + NBSP + unit


def seconds(language: Language, value: float) -> str:
    """A measured time: 38 ms, 0,41 s, 3,2 s, 48 s."""
    if value < 0.1:
        return f"{max(1, round(value * 1000))}{NBSP}ms"
    digits = 2 if value < 1 else 1 if value < 10 else 0
    return number(language, value, digits) + NBSP + "s"


def duration(language: Language, value: float) -> str:
    """A length of time in its largest unit: 18 s, 2 min, 4 h, 3 d."""
    whole = max(0, int(value))
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if whole >= length:
            return f"{number(language, whole // length)}{NBSP}{unit}"
    return f"{whole}{NBSP}s"


def age(language: Language, value: float) -> str:
    """há 3 s, 3 s ago."""
    if value < 1:
        return language.gettext("just now")
    return language.gettext("%(time)s ago", time=duration(language, value))


def clock(language: Language, at: float) -> str:
    """13:56, in the time zone of this machine."""
    return time.strftime("%H:%M", time.localtime(at))


def day(language: Language, at: float, now: float) -> str:
    """Today, Yesterday, 14 nov., with the year when it is another one."""
    then, today = time.localtime(at), time.localtime(now)
    if then[:3] == today[:3]:
        return language.gettext("Today")
    if then[:3] == time.localtime(now - 86400)[:3]:
        return language.gettext("Yesterday")
    year = "" if then.tm_year == today.tm_year else f" {then.tm_year}"
    if language.is_portuguese:
        return f"{then.tm_mday} {_MESES[then.tm_mon - 1]}.{year}"
    return f"{_MONTHS[then.tm_mon - 1].capitalize()} {then.tm_mday}{year}"


def moment(language: Language, at: float, now: float) -> str:
    """13:56 for today, else the day before it: Ontem, 13:56."""
    if time.localtime(at)[:3] == time.localtime(now)[:3]:
        return clock(language, at)
    return f"{day(language, at, now)}, {clock(language, at)}"


def translated(language: Language, text: str) -> str:
    """A sentence that another room wrote, in the reader's language where it is known."""
    return language.gettext(text)
