"""What people read: numbers, times, sizes; and what no screen may show as it is."""

from __future__ import annotations

import pytest

from openbr.web import formats
from openbr.web.language import Language, load_language
from openbr.web.render import find_folder

NOON = 1795176190.0  # 2026-11-20 12:03:10 UTC
S = formats.NBSP


@pytest.fixture
def pt() -> Language:
    return load_language("pt-BR", find_folder("locale"))


@pytest.fixture
def en() -> Language:
    return load_language("en", find_folder("locale"))


def test_numbers(pt: Language, en: Language) -> None:
    assert formats.number(pt, 1284) == "1.284"
    assert formats.number(en, 1284) == "1,284"
    assert formats.number(pt, 1234.5, 1) == "1.234,5"


@pytest.mark.parametrize(
    ("value", "in_pt", "in_en"),
    [
        (512, "512", "512"),
        (2048, f"2{S}mil", "2k"),
        (8192, f"8{S}mil", "8k"),
        (131_072, f"128{S}mil", "128k"),
        (200_000, f"200{S}mil", "200k"),
        (1_000_000, f"1{S}mi", "1M"),
        (1_048_576, f"1{S}mi", "1M"),
        (10_485_760, f"10{S}mi", "10M"),
        (1_500, f"1,5{S}mil", "1.5k"),
    ],
)
def test_contexts(pt: Language, en: Language, value: int, in_pt: str, in_en: str) -> None:
    assert formats.compact(pt, value) == in_pt
    assert formats.compact(en, value) == in_en


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0, f"0{S}B"),
        (999, f"999{S}B"),
        (98_362_432, f"98{S}MB"),
        (1_900_000_000, f"1,9{S}GB"),
        (43_000_000_000, f"43{S}GB"),
        (5_000_000_000_000, f"5,0{S}TB"),
    ],
)
def test_sizes(pt: Language, value: int, said: str) -> None:
    assert formats.size(pt, value) == said


@pytest.mark.parametrize(
    ("value", "said"),
    [(0.0, f"1{S}ms"), (0.038, f"38{S}ms"), (0.41, f"0,41{S}s"), (3.21, f"3,2{S}s")],
)
def test_measured_times(pt: Language, value: float, said: str) -> None:
    assert formats.seconds(pt, value) == said


@pytest.mark.parametrize(
    ("value", "in_pt", "in_en"),
    [
        (0.4, "agora", "just now"),
        (3.9, f"há 3{S}s", f"3{S}s ago"),
        (130, f"há 2{S}min", f"2{S}min ago"),
        (7300, f"há 2{S}h", f"2{S}h ago"),
        (200_000, f"há 2{S}d", f"2{S}d ago"),
    ],
)
def test_ages(pt: Language, en: Language, value: float, in_pt: str, in_en: str) -> None:
    assert formats.age(pt, value) == in_pt
    assert formats.age(en, value) == in_en


@pytest.mark.parametrize(
    ("ago_s", "in_pt", "in_en"),
    [
        (60, "Hoje", "Today"),
        (86_400, "Ontem", "Yesterday"),
        (5 * 86_400, "15 nov.", "Nov 15"),
        (400 * 86_400, "16 out. 2025", "Oct 16 2025"),
    ],
)
def test_days(pt: Language, en: Language, ago_s: float, in_pt: str, in_en: str) -> None:
    assert formats.day(pt, NOON - ago_s, NOON) == in_pt
    assert formats.day(en, NOON - ago_s, NOON) == in_en


def test_moments(pt: Language) -> None:
    assert formats.moment(pt, NOON - 60, NOON) == "12:02"
    assert formats.moment(pt, NOON - 86_400, NOON) == "Ontem, 12:03"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, não, 漢字, 👩‍👩‍👧, مرحبا", "plain, não, 漢字, 👩‍👩‍👧, مرحبا"),
        ("line\n\tfeed", "line\n\tfeed"),
        ("a\x00b\x1b[31m", "a␀b␛[31m"),
        ("del\x7f", "del␡"),
        ("\u202egpj.exe", "[U+202E]gpj.exe"),
        ("a\u2066b\u2069", "a[U+2066]b[U+2069]"),
        ("zero\u200bwidth\ufeff", "zero[U+200B]width[U+FEFF]"),
        ("tag\U000e0041", "tag[U+E0041]"),
        ("half \ud83d", "half \ufffd"),
        ("line\u2028end", "line[U+2028]end"),
        ("c1\x85", "c1[U+0085]"),
    ],
)
def test_hidden_characters_are_shown(text: str, shown: str) -> None:
    assert formats.visible(text) == shown


def test_names_are_one_line_of_limited_length() -> None:
    assert formats.name("gpt\u200e-4\n") == "gpt[U+200E]-4␊"
    assert formats.name("x" * 500, 20) == "x" * 19 + "…"


def test_texts_of_forms_get_plain_line_feeds() -> None:
    assert formats.plain_lines("a\r\nb\rc\x00\ud83d") == "a\nb\nc?"


def test_anchors_tell_names_apart() -> None:
    names = ["a/b", "a_2Fb", "a.b", "a~b", "a b", "a%2Fb", "a-b", "á", "\ud83d"]
    anchors = [formats.anchor(name) for name in names]
    assert len(set(anchors)) == len(names)
    assert all(one.replace("_", "").replace("-", "").isalnum() for one in anchors)
