"""argparse with our manners: one line for a mistake, the nearest right word, examples as written.

In: arguments. Out: a namespace, or exit 2.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from openbr.cli.table import visible


class Parser(argparse.ArgumentParser):
    """Subparsers made from it are of this class too."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("allow_abbrev", False)
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(**options)

    def error(self, message: str) -> NoReturn:
        print(f"openbr: {visible(message)}; see `{self.prog} --help`", file=sys.stderr)
        sys.exit(2)

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: None = None
    ) -> argparse.Namespace:
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            parser = self._chosen(found)
            word = unknown[0]
            kind = "flag" if word.startswith("-") else "argument"
            flags = list(parser._option_string_actions)
            parser.error(f"no such {kind}: {word}{nearest(word.partition('=')[0], flags)}")
        return found

    def _chosen(self, found: argparse.Namespace) -> argparse.ArgumentParser:
        """The parser of the (sub)command that the arguments chose: its flags are meant."""
        parser: argparse.ArgumentParser = self
        while True:
            nested = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
            name = getattr(found, nested[0].dest, None) if nested else None
            if name is None:
                return parser
            parser = nested[0].choices[name]

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        # argparse calls this for every word that has choices; its own message is a list only.
        if action.choices is None or value in action.choices:
            return
        known = [str(choice) for choice in action.choices]
        what = "/".join(action.option_strings) or "command"
        hint = nearest(str(value), known) or "; known: " + ", ".join(known)
        raise argparse.ArgumentError(None, f"no such {what}: {value}{hint}")


def nearest(word: str, known: Sequence[str]) -> str:
    import difflib

    found = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {found[0]}?" if found else ""
