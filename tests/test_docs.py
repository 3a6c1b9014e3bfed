"""What the pages say is so: keys, commands, make targets, links. And what no file may say."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from openbr import __version__, config

ROOT = Path(__file__).resolve().parent.parent
NOT_OURS = {"build", "dist", "vendor", "__pycache__", "node_modules"}
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
# Places on one machine, and hosts that a mirror may replace: neither helps a reader elsewhere.
# Brackets keep the pattern from finding itself.
FORBIDDEN = re.compile(
    r"/w[o]rk/|/f[a]rm/|/r[o]ot/|/t[m]p/devenv|/o[p]t/(wheels|pypi)"
    r"|pypi\.org|python[h]osted|npm[j]s|deb\.debian",
    re.IGNORECASE,
)


@cache
def project_files() -> tuple[Path, ...]:
    """Every file that is ours: no hidden folders but .ci, nothing built or fetched."""
    found = []
    for folder, inner, names in os.walk(ROOT):
        inner[:] = [
            name
            for name in inner
            if name not in NOT_OURS
            and not name.endswith(".egg-info")
            and (not name.startswith(".") or name in (".ci", ".github"))
        ]
        found += [Path(folder, name) for name in sorted(names)]
    return tuple(found)


def texts() -> Iterator[tuple[Path, str]]:
    for path in project_files():
        if path.suffix in (".so", ".pyd", ".mo", ".png", ".ico", ".db", ".gguf"):
            continue
        try:
            yield path.relative_to(ROOT), path.read_text("utf-8")
        except UnicodeDecodeError:
            continue  # a recording or an image: nothing to read


def pages() -> dict[Path, str]:
    return {path: text for path, text in texts() if path.suffix == ".md"}


def readme() -> str:
    return (ROOT / "README.md").read_text("utf-8")


def test_no_place_of_one_machine_is_named() -> None:
    named = [
        f"{path}:{number} {line.strip()[:80]}"
        for path, text in texts()
        for number, line in enumerate(text.splitlines(), 1)
        if FORBIDDEN.search(line)
    ]
    assert not named, "\n".join(named)


def test_the_configuration_page_is_current() -> None:
    place = ROOT / "tools" / "reference.py"
    spec = spec_from_file_location("reference", place)
    assert spec and spec.loader
    reference = module_from_spec(spec)
    spec.loader.exec_module(reference)
    current = (ROOT / "docs" / "configuration.md").read_text("utf-8")
    assert current == reference.page(), "run: make docs"


@pytest.mark.parametrize("section", sorted({*config.SECTIONS, *config.TABLES}))
def test_every_key_is_documented(section: str) -> None:
    page = (ROOT / "docs" / "configuration.md").read_text("utf-8") + readme()
    kind = {**config.SECTIONS, **config.TABLES}[section]
    assert f"[{section}]" in page
    for key in fields(kind):
        assert f"`{key.name}`" in page, f"{section}.{key.name}"


def make_targets() -> set[str]:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    (phony,) = re.findall(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)
    return set(phony.split())


def test_every_make_target_that_is_named_exists() -> None:
    for path, text in pages().items():
        named = set(re.findall(r"(?:^|`|\$ )make ([a-z][a-z-]*)", text, re.MULTILINE))
        assert named <= make_targets(), f"{path}: {named - make_targets()}"
    assert {"run", "test"} <= set(re.findall(r"make ([a-z-]+)", readme()))


def test_make_help_names_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    assert set(re.findall(r'@echo "make ([a-z-]+)', makefile)) == make_targets() - {"help"}


def anchors(text: str) -> set[str]:
    """The ids a Markdown viewer gives to headings."""
    heads = re.findall(r"^#+ +(.+?)\s*$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


def is_dead(page: Path, link: str) -> bool:
    file, _, anchor = link.partition("#")
    target = (ROOT / page).parent / file if file else ROOT / page
    if not target.exists():
        return True
    return bool(anchor) and target.suffix == ".md" and anchor not in anchors(target.read_text())


def test_links_lead_somewhere() -> None:
    dead = [
        f"{page}: {link}"
        for page, text in pages().items()
        for link in LINK.findall(re.sub(r"```.*?```", "", text, flags=re.DOTALL))
        if not re.match(r"[a-z]+:", link) and is_dead(page, link)
    ]
    assert not dead, "\n".join(dead)


def test_commands_in_the_readme_exist(capsys: pytest.CaptureFixture[str]) -> None:
    from openbr.cli import main

    spans = re.findall(r"```sh\n(.*?)```|`([^`\n]+)`", readme(), re.DOTALL)
    code = "\n".join(block or span for block, span in spans)
    named = set(re.findall(r"(?:^|/|-m )openbr ([a-z]+(?: [a-z]+)?)", code, re.M))
    assert named
    for words in sorted(named):
        with pytest.raises(SystemExit) as done:
            main([*words.split(), "--help"])
        assert done.value.code == 0, words
        assert "usage: " in capsys.readouterr().out


def test_the_changelog_has_this_version() -> None:
    heads = re.findall(r"^## +(.+)$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert heads, "no version in CHANGELOG.md"
    assert __version__ in heads[0] or "unreleased" in heads[0].lower()


def test_the_license_goes_with_the_package() -> None:
    text = (ROOT / "LICENSE").read_text("utf-8")
    assert text.startswith("MIT License")
    assert "openbr contributors" in text
