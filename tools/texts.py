"""Keep the catalogues of texts in step with templates and code. For developers; needs Babel.

In: templates/ and openbr/web/. Out: locale/<language>/LC_MESSAGES/openbr.po.
The gateway reads the .po files themselves, so there is nothing to compile.

    python tools/texts.py update    collect the texts, merge them into every catalogue
    python tools/texts.py check     exit code 1 when one is missing, fuzzy, broken or out of step
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Iterator
from pathlib import Path

from babel.messages.catalog import Catalog
from babel.messages.extract import DEFAULT_KEYWORDS, extract_from_dir
from babel.messages.pofile import read_po, write_po

ROOT = Path(__file__).resolve().parent.parent
LOCALE = ROOT / "locale"
METHODS = [("openbr/web/**.py", "python"), ("templates/**.html", "jinja2")]
OPTIONS = {"templates/**.html": {"trimmed": "true", "silent": "false"}}
KEYWORDS = {**DEFAULT_KEYWORDS, "N_": None, "say": None}


def extract() -> Catalog:
    """Every text of the templates and the pages, in the order of the files."""
    catalog = Catalog(
        project="openbr", charset="utf-8", header_comment="# Texts of openbr's pages."
    )
    for folder in ("openbr/web", "templates"):
        for name, line, message, comments, context in extract_from_dir(
            ROOT / folder,
            [(pattern.removeprefix(folder + "/"), kind) for pattern, kind in METHODS],
            {p.removeprefix(folder + "/"): o for p, o in OPTIONS.items()},
            keywords=KEYWORDS,
        ):
            place = [(f"{folder}/{name}", line)]
            catalog.add(message, None, place, auto_comments=comments, context=context)
    return catalog


def catalogues() -> Iterator[tuple[Path, Catalog]]:
    for path in sorted(LOCALE.glob("*/LC_MESSAGES/openbr.po")):
        with path.open("rb") as file:
            yield path, read_po(file, locale=path.parts[-3])


def update() -> None:
    template = extract()
    for path, catalog in catalogues():
        catalog.update(template, no_fuzzy_matching=True)
        path.write_bytes(_text(catalog))


def problems() -> Iterator[str]:
    """What keeps a page from being wholly in a language."""
    template = extract()
    wanted = {message.id for message in template if message.id}
    for path, catalog in catalogues():
        place = path.relative_to(ROOT)
        found = {message.id: message for message in catalog if message.id}
        for key in sorted(wanted - found.keys(), key=str):
            yield f"{place}: {key!r} is missing"
        for key in sorted(found.keys() - wanted, key=str):
            yield f"{place}: {key!r} is not used any more"
        for key, message in found.items():
            texts = message.string if isinstance(message.string, tuple) else (message.string,)
            if not all(texts):
                yield f"{place}: {key!r} is not translated"
            if message.fuzzy:
                yield f"{place}: {key!r} is fuzzy"
            for error in message.check(catalog):
                yield f"{place}: {key!r}: {error}"


def _text(catalog: Catalog) -> bytes:
    """The file, under a head that changes only when it means something else."""
    out = io.BytesIO()
    write_po(out, catalog, width=96, omit_header=True, sort_by_file=True, include_lineno=False)
    head = f"""\
msgid ""
msgstr ""
"Project-Id-Version: openbr\\n"
"Language: {catalog.locale}\\n"
"Plural-Forms: {catalog.plural_forms}\\n"
"MIME-Version: 1.0\\n"
"Content-Type: text/plain; charset=utf-8\\n"
"Content-Transfer-Encoding: 8bit\\n"

"""
    return head.encode() + out.getvalue()


def main() -> int:
    parser = argparse.ArgumentParser(description="Catalogues of texts.")
    parser.add_argument("action", choices=("update", "check"))
    if parser.parse_args().action == "update":
        update()
        return 0
    found = list(problems())
    for problem in found:
        print(problem, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
