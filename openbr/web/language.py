"""Which language a page speaks, and its words.

In: the saved setting, a cookie, Accept-Language; locale/<language>/LC_MESSAGES/openbr.po. Out: a
Language with its gettext functions. The rules that live only here: the order setting, cookie,
Accept-Language, pt-BR; catalogues are read from the .po itself, once, with the first page of
that language, so a checkout and a wheel work alike and nothing has to be compiled.
"""

from __future__ import annotations

import ast
import gettext
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COOKIE = "openbr_lang"
SETTING = "language"
NAMES = {"pt-BR": "Português", "en": "English"}
DEFAULT = "pt-BR"
_ENTRY = re.compile(r'^(msgid_plural|msgid|msgstr(?:\[\d\])?)\s+(".*")$')


@dataclass(frozen=True, slots=True)
class Language:
    """`code` is a BCP 47 tag, as <html lang> wants it."""

    code: str
    words: gettext.NullTranslations

    @property
    def is_portuguese(self) -> bool:
        return self.code == "pt-BR"

    def gettext(self, message: str, **variables: object) -> str:
        """Plain text, for places that are not HTML."""
        found = self.words.gettext(message)
        return found % variables if variables else found


def choose_language(setting: str | None, cookie: str | None, accept: str) -> str:
    """One of NAMES."""
    for wish in (setting, cookie, *_accepted(accept)):
        found = find_language(wish or "")
        if found is not None:
            return found
    return DEFAULT


def find_language(wish: str) -> str | None:
    """The language of ours that a tag such as "pt-PT" or "en_US" means."""
    primary = re.split("[-_]", wish.strip().lower(), maxsplit=1)[0]
    return next((code for code in NAMES if code.lower().partition("-")[0] == primary), None)


def _accepted(header: str) -> Iterator[str]:
    """The languages of an Accept-Language header, most wanted first."""
    wishes: list[tuple[float, str]] = []
    for part in header[:500].split(","):
        name, _, quality = part.strip().partition(";q=")
        try:
            weight = float(quality or 1)
        except ValueError:
            continue
        if name and weight > 0:
            wishes.append((-weight, name))
    wishes.sort(key=lambda wish: wish[0])
    yield from (name for _, name in wishes)


def load_language(code: str, folder: Path) -> Language:
    """Read a language's catalogue. English is what the sources say: it has none."""
    if code == "en":
        return Language(code, gettext.NullTranslations())
    path = folder / code.replace("-", "_") / "LC_MESSAGES" / "openbr.po"
    return Language(code, Words(path.read_text(encoding="utf-8")))


class Words(gettext.NullTranslations):
    """The messages of one .po file. Fuzzy and empty ones are left in English."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self._messages: dict[str, str] = {}
        self._plurals: dict[str, tuple[str, ...]] = {}
        self._form: Any = gettext.c2py("n != 1")
        for entry in text.replace("\r\n", "\n").split("\n\n"):
            self._read(_fields(entry))

    def _read(self, fields: dict[str, str]) -> None:
        key = fields.get("msgid")
        if key is None:
            return
        if key == "":
            self._read_head(fields.get("msgstr", ""))
        elif "msgid_plural" in fields:
            forms = [fields[name] for name in sorted(fields) if name.startswith("msgstr[")]
            if forms and all(forms):
                self._plurals[key] = tuple(forms)
        elif fields.get("msgstr"):
            self._messages[key] = fields["msgstr"]

    def _read_head(self, head: str) -> None:
        rule = re.search(r"^Plural-Forms:.*\bplural=([^;\n]+)", head, re.MULTILINE)
        if rule:
            self._form = gettext.c2py(rule[1])

    def gettext(self, message: str) -> str:
        return self._messages.get(message, message)

    def ngettext(self, msgid1: str, msgid2: str, n: int) -> str:
        forms = self._plurals.get(msgid1)
        if forms is None:
            return super().ngettext(msgid1, msgid2, n)
        form: int = self._form(n)
        return forms[min(form, len(forms) - 1)]


def _fields(entry: str) -> dict[str, str]:
    """{"msgid": ..., "msgstr": ...} of one entry; empty when it is fuzzy."""
    fields: dict[str, str] = {}
    current = ""
    for line in entry.split("\n"):
        if line.startswith("#,") and "fuzzy" in line:
            return {}
        match = _ENTRY.match(line)
        if match:
            current = match[1]
            fields[current] = _unquote(match[2])
        elif line.startswith('"') and current:
            fields[current] += _unquote(line)
    return fields


def _unquote(text: str) -> str:
    """The text of a quoted .po string, whose escapes are those of a Python literal."""
    return str(ast.literal_eval(text))
