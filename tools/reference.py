"""Write docs/configuration.md from openbr/config/: every key, its default, its help.

In: the fields of SECTIONS and TABLES. Out: the page; a test compares it with what this would write.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "configuration.md"
sys.path.insert(0, str(ROOT))

from openbr import config  # noqa: E402  (the checkout, from wherever this is called)

HEAD = """# Configuration

<!-- Written by `make docs` from openbr/config/: change a key there, not here. -->

Every key has a default, so no file is needed. Where there is one, it is `config.toml` in
`$XDG_CONFIG_HOME/openbr` (`~/.config/openbr` where that is unset), or the file named by
`OPENBR_CONFIG` or `--config`. The environment overrides the file, and flags override both.
`${NAME}` inside a value is the environment variable of that name; unset, it is an error.
`python -m openbr config check` reads a file as `run` does and says what is wrong, in which line.

Sizes are numbers of bytes or texts such as `"32 MiB"`. Keys that end in `_s` are seconds.
"""

TAIL = """
## Environment

| variable | what |
| --- | --- |
| `OPENBR_CONFIG` | the config file |
| `OPENBR_STATE` | folder of the database, models, certificates; else `$XDG_STATE_HOME/openbr` |
| `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY`, `NO_PROXY` | as curl reads them, lower case first |

Native code is used where it was built. `false` turns a part off, `USE_LEGACY_MODE=true` all of it;
what is active is in the first lines that `run` prints:

| variable | default |
| --- | --- |
"""


def value_text(value: object) -> str:
    """A default as TOML would write it."""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, config.TLS):
        value = value.mode
    if isinstance(value, str):
        return f'`"{value}"`'
    if isinstance(value, tuple):
        return "`[" + ", ".join(f'"{item}"' for item in value) + "]`"
    if isinstance(value, int) and value >= 1024**2 and value % 1024**2 == 0:
        return f'`"{value // 1024**2} MiB"`'
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def default_text(field: dataclasses.Field[object]) -> str:
    if field.default is not dataclasses.MISSING:
        return value_text(field.default)
    return "required" if field.default_factory is dataclasses.MISSING else "`{}`"


def rows(kind: type, section: str | None) -> list[str]:
    """The table of one section. Only sections have variables; [[tables]] can repeat."""
    lines = [
        "| key | default | what |" + (" variable |" if section else ""),
        "| --- | --- | --- |" + (" --- |" if section else ""),
    ]
    for field in dataclasses.fields(kind):
        cells = [
            f"`{field.name}`",
            default_text(field),
            str(field.metadata["help"]).replace("|", "\\|"),
        ]
        if section:
            cells.append(f"`OPENBR_{section}__{field.name}`".upper())
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def page() -> str:
    lines = [HEAD]
    for name, kind in config.SECTIONS.items():
        lines += [f"## [{name}]", "", *rows(kind, name), ""]
    for name, kind in config.TABLES.items():
        lines += [f"## [[{name}]]", "", "One table for each.", "", *rows(kind, None), ""]
    flags = [
        f"| `{field.name}` | {value_text(field.default)} |"
        for field in dataclasses.fields(config.NativeFlags)
    ]
    return "\n".join(lines).rstrip() + "\n" + TAIL + "\n".join(flags) + "\n"


def main() -> int:
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
