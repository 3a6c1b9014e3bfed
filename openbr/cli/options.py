"""Arguments that many commands share.

In: a parser; parsed arguments. Out: Config.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from openbr.config import Config


def add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="config file (default: $OPENBR_CONFIG, else config.toml in the config folder)",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON, for scripts")


def load_config(args: argparse.Namespace, overrides: Mapping[str, object] | None = None) -> Config:
    from openbr.config import Config

    config: Path | None = args.config
    return Config.load(config.expanduser() if config else None, overrides=overrides)


def print_json(value: object) -> None:
    import json

    print(json.dumps(value, ensure_ascii=False, indent=2))
