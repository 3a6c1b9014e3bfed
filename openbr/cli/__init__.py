"""The command line: one module a command, found by its name.

In: arguments. Out: an exit code: 0 done, 1 failed, 2 wrong usage or a config that cannot work. The
rules that live only here: every refusal is one line on stderr that begins with `openbr:`, and a
wrong word gets the nearest right one. Nothing heavy is imported before a command runs.

A command module has NAME, HELP, add_arguments(parser) and run(args) -> int.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from openbr import __version__
from openbr.cli.parser import Parser
from openbr.cli.table import visible
from openbr.errors import ConfigError, OpenbrError, RequestError

COMMANDS = ("run", "models", "keys", "config")

EXAMPLES = """\
examples:
  openbr run                     answer on http://127.0.0.1:18789
  openbr keys add laptop         make a key, shown once
  openbr models pull             fetch the small local model
  openbr config check            read the config as `run` would

`openbr COMMAND --help` has more.
"""


def main(argv: Sequence[str] | None = None) -> int:
    try:
        code = _run(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
        return code
    except OpenbrError as exc:
        print(f"openbr: {visible(str(exc))}", file=sys.stderr)
        return 2 if isinstance(exc, (ConfigError, RequestError)) else 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader left, as `openbr keys list | head -1` does. Python would complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _run(argv: Sequence[str]) -> int:
    parser = Parser(
        prog="openbr",
        description="Every AI model you use, behind one small local address.",
        epilog=EXAMPLES,
    )
    parser.add_argument("--version", action="version", version=f"openbr {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", dest="command", title="commands")
    modules = {}
    for name in COMMANDS:
        module = modules[name] = import_module(f"openbr.cli.{name}")
        module.add_arguments(commands.add_parser(name, help=module.HELP, description=module.HELP))
    args = parser.parse_args(argv)
    if args.command is None:
        parser.print_help(sys.stderr)
        return 2
    code: int = modules[args.command].run(args)
    return code
