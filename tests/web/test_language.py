"""Who decides the language, and that its catalogue is read as the tools that wrote it read it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from babel.messages.pofile import read_po
from web.world import World

from openbr.store import settings
from openbr.web.language import Words, choose_language, load_language
from openbr.web.reasons import DETAILS, REASONS
from openbr.web.render import find_folder

ROOT = Path(__file__).resolve().parents[2]
PO = ROOT / "locale" / "pt_BR" / "LC_MESSAGES" / "openbr.po"


@pytest.mark.parametrize(
    ("setting", "cookie", "accept", "chosen"),
    [
        (None, None, "", "pt-BR"),
        (None, None, "en-US,en;q=0.9", "en"),
        (None, None, "fr,de;q=0.8", "pt-BR"),
        (None, None, "fr, pt;q=0.3, en;q=0.7", "en"),
        (None, None, "en;q=0, pt-PT", "pt-BR"),
        (None, None, "en;q=x,,;q=", "pt-BR"),
        (None, "en", "pt-BR", "en"),
        (None, "tlh", "en", "en"),
        ("pt-BR", "en", "en", "pt-BR"),
    ],
)
def test_setting_then_cookie_then_header(
    setting: str | None, cookie: str | None, accept: str, chosen: str
) -> None:
    assert choose_language(setting, cookie, accept) == chosen


def test_the_cookie_decides_before_the_header(make_world: Callable[..., World]) -> None:
    world = make_world("loaded")
    page = world.get("/ui/models", language="pt-BR", headers={"cookie": "openbr_lang=en"})
    assert b'<html lang="en">' in page.body


def test_the_setting_decides_before_the_cookie(make_world: Callable[..., World]) -> None:
    world = make_world("loaded")
    world.store.write(settings.put, "language", "pt-BR")
    page = world.get("/ui/models", language="en", headers={"cookie": "openbr_lang=en"})
    assert b'<html lang="pt-BR">' in page.body


def test_the_switch_sets_the_cookie_and_goes_back(make_world: Callable[..., World]) -> None:
    world = make_world("loaded")
    answer = world.post("/ui/language", {"language": "en", "next": "/ui/models?q=llama"})
    assert answer.status == 303
    assert answer.headers["location"] == "/ui/models?q=llama"
    assert answer.headers["set-cookie"].startswith("openbr_lang=en;")
    assert world.post("/ui/language", {"language": "tlh"}).status == 400


def test_our_reader_agrees_with_babel() -> None:
    words = Words(PO.read_text(encoding="utf-8"))
    with PO.open("rb") as file:
        catalog = read_po(file, locale="pt_BR")
    checked = 0
    for message in catalog:
        if not message.id:
            continue
        checked += 1
        if isinstance(message.id, tuple):
            few, many = message.string
            assert [words.ngettext(*message.id, n) for n in (0, 1, 2)] == [few, few, many]
        else:
            assert words.gettext(message.id) == message.string
    assert checked > 150


def test_odd_entries_of_a_catalogue() -> None:
    words = Words(
        'msgid ""\nmsgstr ""\n"Plural-Forms: nplurals=3; plural=(n%10==1 ? 0 : n>4 ? 2 : 1);\\n"\n'
        '\n#, fuzzy\nmsgid "guess"\nmsgstr "palpite"\n'
        '\nmsgid "empty"\nmsgstr ""\n'
        '\n#: a.py:1\nmsgid ""\n"long "\n"text\\n\\"quoted\\""\nmsgstr "texto \\"longo\\""\n'
        '\nmsgid "%d a"\nmsgid_plural "%d b"\nmsgstr[0] "x"\nmsgstr[1] "y"\nmsgstr[2] "z"\n'
        '\n#~ msgid "old"\n#~ msgstr "velho"\n'
    )
    assert words.gettext("guess") == "guess"
    assert words.gettext("empty") == "empty"
    assert words.gettext("old") == "old"
    assert words.gettext('long text\n"quoted"') == 'texto "longo"'
    assert [words.ngettext("%d a", "%d b", n) for n in (1, 2, 5)] == ["x", "y", "z"]


def test_every_reason_is_said_in_both_languages() -> None:
    portuguese = load_language("pt-BR", find_folder("locale"))
    for reason in REASONS.values():
        for text in (reason.label, reason.sentence, reason.advice):
            assert text.strip()
            assert portuguese.gettext(text) != text, f"{reason.name}: {text!r}"
    for detail in DETAILS:
        assert portuguese.gettext(detail) != detail


def test_the_catalogue_is_complete() -> None:
    """Nothing missing, fuzzy, unused, or with other placeholders than its English."""
    assert list(_texts().problems()) == []


def _texts() -> ModuleType:
    spec = importlib.util.spec_from_file_location("texts", ROOT / "tools" / "texts.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
