"""openbr models: pull, add, list and remove the model files on this machine.

In: arguments. Out: lines for a person or JSON for a script. The rule that lives only here: progress
goes to stderr, one line that moves on a terminal and a plain line now and then elsewhere; results
go to stdout.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from openbr.cli.options import add_config, add_json, load_config, print_json

if TYPE_CHECKING:
    from openbr.library import Library, ModelFile
    from openbr.library.download import Step

NAME = "models"
HELP = "pull, add, list and remove local models"

PULL_EXAMPLES = """\
examples:
  openbr models pull                     SmolLM2-135M-Instruct: Apache-2.0, 98 MB, English
  openbr models pull hf:Qwen/Qwen3-0.6B-GGUF/Qwen3-0.6B-Q8_0.gguf --name qwen3-0.6b

A pull that was interrupted goes on where it stopped.
"""
ADD_EXAMPLES = """\
examples:
  openbr models add ~/Downloads/phi.gguf --name phi
  openbr models add /data/big.gguf --link     the same bytes under a second name
"""
LIST_EXAMPLES = """\
examples:
  openbr models list
  openbr models list --json
"""
REMOVE_EXAMPLES = """\
examples:
  openbr models remove phi
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = PULL_EXAMPLES
    commands = parser.add_subparsers(metavar="ACTION", dest="action", required=True)
    pull = commands.add_parser(
        "pull",
        help="fetch a model, or go on fetching it",
        description="Fetch a model, check its digest and keep it.",
        epilog=PULL_EXAMPLES,
    )
    pull.add_argument(
        "source",
        nargs="?",
        metavar="SOURCE",
        help="smollm2-135m (the default), or hf:OWNER/REPO/FILE.gguf from a model hub",
    )
    pull.add_argument("--hub", metavar="URL", help="a mirror of the model hub")
    add = commands.add_parser(
        "add",
        help="take a GGUF file of this machine",
        description="Check a GGUF file and keep a copy of it.",
        epilog=ADD_EXAMPLES,
    )
    add.add_argument("file", type=Path, metavar="FILE.gguf")
    add.add_argument("--link", action="store_true", help="hard-link it instead of copying it")
    for command in (pull, add):
        command.add_argument("--name", help="what to call it here (default: after its file)")
    listing = commands.add_parser(
        "list", help="list every model", description="List every model.", epilog=LIST_EXAMPLES
    )
    remove = commands.add_parser(
        "remove",
        help="delete a model, or an unfinished download",
        description="Delete a model, or what an interrupted pull left.",
        epilog=REMOVE_EXAMPLES,
    )
    remove.add_argument("name", metavar="NAME")
    for command in (pull, add, listing, remove):
        add_config(command)
        add_json(command)


def run(args: argparse.Namespace) -> int:
    config = load_config(args)
    from openbr.library import Library

    action = {"pull": _pull, "add": _add, "list": _list, "remove": _remove}[args.action]
    return action(Library(config.models_path), args)


def _pull(library: Library, args: argparse.Namespace) -> int:
    progress = ProgressLine(sys.stderr)
    try:
        model = library.pull(args.source, progress, name=args.name, hub=args.hub)
    except KeyboardInterrupt:
        progress.end()
        print("openbr: stopped; the same command goes on from here", file=sys.stderr)
        raise
    finally:
        progress.end()
    return _show(model, args, "is already here" if progress.was_present else "is ready")


def _add(library: Library, args: argparse.Namespace) -> int:
    model = library.add(args.file.expanduser(), args.name, link=args.link)
    return _show(model, args, "is ready")


def _remove(library: Library, args: argparse.Namespace) -> int:
    freed = library.remove(args.name)
    if args.json:
        print_json({"name": args.name, "freed_bytes": freed})
    else:
        print(f"removed: {args.name} ({_megabytes(freed)})")
    return 0


def _list(library: Library, args: argparse.Namespace) -> int:
    models = library.list()
    if args.json:
        print_json([_json(model) for model in models])
        return 0
    if models:
        from openbr.cli.table import format_table

        headings = ("NAME", "SIZE", "CONTEXT", "SHA256", "ADDED", "SOURCE")
        print(format_table(headings, map(_row, models)))
    else:
        print(
            "no local model yet; `openbr models pull` fetches one (98 MB), "
            "`openbr models add FILE.gguf` takes a file that is here",
            file=sys.stderr,
        )
    for one in library.leftovers():
        print(
            f"unfinished: {one.name} ({_megabytes(one.size_bytes)}); the same pull goes on, "
            f"`openbr models remove {one.name}` deletes it",
            file=sys.stderr,
        )
    return 0


def _show(model: ModelFile, args: argparse.Namespace, how: str) -> int:
    if args.json:
        print_json(_json(model))
    else:
        print(f"{model.name} {how} ({_megabytes(model.size_bytes)})")
    return 0


def _json(model: ModelFile) -> dict[str, object]:
    return {
        "name": model.name,
        "size_bytes": model.size_bytes,
        "sha256": model.sha256,
        "source": model.source,
        "added_at": model.added_at,
        "context_tokens": model.context_tokens,
        "architecture": model.architecture,
        "path": str(model.path),
    }


def _row(model: ModelFile) -> tuple[str, ...]:
    return (
        model.name,
        _megabytes(model.size_bytes),
        str(model.context_tokens or "?"),
        (model.sha256 or "?")[:12],
        time.strftime("%Y-%m-%d %H:%M", time.localtime(model.added_at)),
        model.source,
    )


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"


class ProgressLine:
    """Shows the steps of a pull. `clock` is in seconds and monotonic."""

    _EVERY_S = 0.1
    _PLAIN_EVERY_S = 5.0
    _WINDOW_S = 5.0

    def __init__(self, out: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self.was_present = False
        self._out = out
        self._clock = clock
        self._moves = out.isatty()
        self._doing = ""
        self._shown = -1e9
        self._width = 0
        self._seen: deque[tuple[float, int]] = deque()

    def __call__(self, step: Step) -> None:
        if step.doing == "present":
            self.was_present = True
            return
        now = self._clock()
        if step.doing != self._doing:
            self.end()
            self._doing, self._shown = step.doing, -1e9
            self._seen.clear()
        self._seen.append((now, step.done))
        while now - self._seen[0][0] > self._WINDOW_S:
            self._seen.popleft()
        finished = step.total is not None and step.done >= step.total
        every = self._EVERY_S if self._moves else self._PLAIN_EVERY_S
        if now - self._shown >= every or (finished and self._moves):
            self._shown = now
            self._show(self._text(step))

    def end(self) -> None:
        """Leave the moving line as it is and go on below it."""
        if self._width:
            self._out.write("\n")
            self._width = 0
        self._out.flush()

    def _text(self, step: Step) -> str:
        if step.doing == "find":
            return f"looking for {step.what}"
        text = {"download": "downloading", "unpack": "unpacking"}.get(step.doing, step.doing)
        if step.total is None:
            return f"{text} {_megabytes(step.done)}"
        text += f" {step.done / 1e6:.1f} of {_megabytes(step.total)}"
        if step.total:
            text += f", {100 * step.done // step.total} %"
        (first_at, first), (last_at, last) = self._seen[0], self._seen[-1]
        if step.doing == "download" and last_at - first_at >= 0.5 and last > first:
            rate = (last - first) / (last_at - first_at)
            text += f", {rate / 1e6:.1f} MB/s, {_duration((step.total - step.done) / rate)} left"
        return text

    def _show(self, text: str) -> None:
        if self._moves:
            self._out.write("\r" + text.ljust(self._width))
            self._width = len(text)
        else:
            self._out.write(text + "\n")
        self._out.flush()


def _duration(seconds: float) -> str:
    whole = int(seconds + 0.5)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"
