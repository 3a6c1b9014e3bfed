"""openbr config: check, show and find the configuration.

In: arguments. Out: text or JSON. The reader is the one of `run`, so the two never disagree; a
secret is shown by its last four characters.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from openbr.cli.options import add_config, add_json, load_config, print_json
from openbr.errors import ConfigError
from openbr.secret import Secret

if TYPE_CHECKING:
    from openbr.config import Config

_BARE = re.compile(r"[A-Za-z0-9_-]+")

NAME = "config"
HELP = "check, show and find the configuration"

EXAMPLES = """\
examples:
  openbr config check                     exit 0 if `openbr run` could start with it, else 2
  openbr config check --config new.toml
  openbr config show                      every key, its value and where it came from
  openbr config path                      the file that is read
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    commands = parser.add_subparsers(metavar="ACTION", dest="action", required=True)
    for name, help in (
        ("check", "read it as `run` would, and say what is wrong"),
        ("show", "every key with its value and where it came from; secrets masked"),
        ("path", "print the path of the file"),
    ):
        command = commands.add_parser(
            name, help=help, description=help[0].upper() + help[1:] + ".", epilog=EXAMPLES
        )
        add_config(command)
        if name != "path":
            add_json(command)


def run(args: argparse.Namespace) -> int:
    return {"check": _check, "show": _show, "path": _path}[args.action](args)


def _check(args: argparse.Namespace) -> int:
    try:
        config = load_config(args)
    except ConfigError as exc:
        if not args.json:
            raise
        print_json({"ok": False, "error": exc.message})
        return 2
    counts = {"providers": len(config.providers), "routes": len(config.routes)}
    if args.json:
        print_json({"ok": True, "path": str(config.path), "found": config.found, **counts})
    else:
        file = str(config.path) if config.found else f"no {config.path}, so the defaults"
        said = ", ".join(f"{number} {name}" for name, number in counts.items())
        print(f"fine: {file} ({said})")
    return 0


def _path(args: argparse.Namespace) -> int:
    print(load_config(args).path)
    return 0


def _show(args: argparse.Namespace) -> int:
    config = load_config(args)
    if args.json:
        print_json(_tree(config))
        return 0
    note = "" if config.found else " (not there: defaults)"
    print(f"# {config.path}{note}\n# state: {config.state}")
    from openbr.config import SECTIONS, TABLES

    for name in SECTIONS:
        _print_table(f"[{name}]", getattr(config, name), name, config)
    for name in TABLES:
        for row in getattr(config, name):
            _print_table(f"[[{name}]]", row, None, config)
    return 0


def _print_table(head: str, record: object, section: str | None, config: Config) -> None:
    print(f"\n{head}")
    assert is_dataclass(record)
    for f in fields(record):
        line = f"{f.name} = {_toml(_plain(getattr(record, f.name)))}"
        if section is not None:
            origin = config.origins.get(f"{section}.{f.name}", "default")
            line = f"{line:<40}  # {'file' if origin == str(config.path) else origin}"
        print(line)


def _tree(config: Config) -> dict[str, object]:
    from openbr.config import SECTIONS, TABLES

    tree: dict[str, object] = {
        "path": str(config.path),
        "found": config.found,
        "state": str(config.state),
        "origins": dict(config.origins),
    }
    for name in (*SECTIONS, *TABLES):
        tree[name] = _plain(getattr(config, name))
    return tree


def _plain(value: object) -> object:
    """Records as JSON has them, secrets masked."""
    if isinstance(value, Secret):
        return value.masked
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {key: item for key, item in value._asdict().items() if item is not None}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if is_dataclass(value):
        mode = getattr(value, "mode", None)
        if mode in ("off", "auto") and hasattr(value, "cert"):
            return mode
        return {
            f.name: _plain(getattr(value, f.name))
            for f in fields(value)
            if not (mode == "files" and f.name == "mode")
        }
    return value


def _toml(value: object) -> str:
    if isinstance(value, dict):
        pairs = [
            f"{key if _BARE.fullmatch(key) else _toml(key)} = {_toml(item)}"
            for key, item in value.items()
        ]
        return "{ " + ", ".join(pairs) + " }" if pairs else "{}"
    if isinstance(value, float):
        return f"{value:g}"
    import json

    return json.dumps(value, ensure_ascii=False)
