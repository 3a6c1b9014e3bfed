"""Rules that every template keeps: nothing inline, nothing evaluated, nothing unescaped."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEMPLATES = sorted((ROOT / "templates").rglob("*.html"))
CSS = (ROOT / "static" / "openbr.css").read_text(encoding="utf-8")
JS = (ROOT / "static" / "openbr.js").read_text(encoding="utf-8")

FORBIDDEN = {
    "an inline handler": r"\son[a-z]+\s*=",
    "an evaluated handler": r"hx-on\b|hx-on:",
    "an inline style": r"\sstyle\s*=|<style",
    "an inline script": r"<script(?![^>]*\ssrc=)",
    "evaluated values": r"[\"'](?:js|javascript):",
    "a filter of a trigger, which is evaluated": r"hx-trigger=\"[^\"]*\[",
    "a document-wide boost": r"hx-boost",
    "another host": r"(?:src|href|action|hx-[a-z]+)=\"(?:https?:)?//",
    "unescaped output": r"\|\s*safe\b|autoescape\s+false|Markup",
}


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_nothing_that_the_policy_forbids(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    found = [what for what, pattern in FORBIDDEN.items() if re.search(pattern, text)]
    assert not found


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_the_root_of_a_fragment_is_named_as_its_file(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if path.parent.name == "fragments" and 'id="' in text and "<hx-partial" not in text:
        name = path.stem.replace("_", "-")
        by_message = r'id="m{{ turn.id }}'
        assert f'id="{name}"' in text or by_message in text or 'id="{{ pill_id }}"' in text


def test_there_is_no_text_in_the_script() -> None:
    code = re.sub(r"/\*.*?\*/|//[^\n]*", "", JS, flags=re.DOTALL)
    strings = re.findall(r'"([^"]*)"', code)
    assert strings
    assert not [text for text in strings if re.search(r"[a-z] [a-z]+ [a-z]", text)]


def test_sizes() -> None:
    assert len(gzip.compress(CSS.encode(), 9)) <= 10_000
    assert len(gzip.compress(JS.encode(), 9)) <= 5_000


# Contrast, by the formula of WCAG 2.2.

PAIRS = [
    # text, ground, least ratio
    ("ink", "bg", 4.5),
    ("ink", "card", 4.5),
    ("soft", "bg", 4.5),
    ("soft", "card", 4.5),
    ("soft", "none-bg", 4.5),
    ("soft", "accent-bg", 4.5),
    ("soft", "warn-bg", 4.5),
    ("soft", "bad-bg", 4.5),
    ("accent", "card", 4.5),
    ("accent", "bg", 4.5),
    ("accent", "accent-bg", 4.5),
    ("ok", "ok-bg", 4.5),
    ("warn", "warn-bg", 4.5),
    ("bad", "bad-bg", 4.5),
    ("edge", "card", 3.0),
    ("edge", "bg", 3.0),
    ("accent", "card", 3.0),
]


def colours() -> dict[str, tuple[str, str]]:
    found = re.findall(r"--([a-z-]+): light-dark\((#[0-9a-f]{6}), (#[0-9a-f]{6})\)", CSS)
    return {name: (light, dark) for name, light, dark in found}


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize(("text", "ground", "least"), PAIRS)
def test_contrast(text: str, ground: str, least: float, theme: int) -> None:
    known = colours()
    assert contrast(known[text][theme], known[ground][theme]) >= least


def test_white_on_the_accent() -> None:
    for name in ("fill", "fill-over"):
        (colour,) = re.findall(rf"--{name}: (#[0-9a-f]{{6}});", CSS)
        assert contrast("#ffffff", colour) >= 4.5


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def luminance(colour: str) -> float:
    def linear(part: str) -> float:
        value = int(part, 16) / 255
        return value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4

    red, green, blue = (linear(colour[at : at + 2]) for at in (1, 3, 5))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
