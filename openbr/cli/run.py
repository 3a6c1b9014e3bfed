"""openbr run: start the gateway in the foreground.

In: flags, over the environment, over the file. Out: the exit code of the server.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from openbr.cli.options import add_config, load_config
from openbr.errors import ConfigError

NAME = "run"
HELP = "start the gateway"

EXAMPLES = """\
examples:
  openbr run                              on http://127.0.0.1:18789, for this machine only
  openbr run --port 8080
  openbr run --tls                        https, with a certificate of its own
  openbr run --bind lan --tls             for other machines too; they need a key
  openbr run --tls-cert cert.pem --tls-key key.pem

Ctrl-C or SIGTERM lets running answers finish, then ends; a second Ctrl-C ends at once.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    add_config(parser)
    parser.add_argument(
        "--bind",
        metavar="loopback|lan|ADDRESS",
        help="who can reach it: this machine (the default), every network, or one address",
    )
    parser.add_argument("--port", metavar="N", help="TCP port (default: 18789; 0: any free one)")
    parser.add_argument(
        "--tls", action="store_true", help="https with a certificate made and kept by openbr"
    )
    parser.add_argument("--tls-cert", type=Path, metavar="FILE", help="your own certificate, PEM")
    parser.add_argument("--tls-key", type=Path, metavar="FILE", help="its private key, PEM")
    parser.add_argument(
        "--log-level",
        default="info",
        choices=["debug", "info", "warning", "error"],
        metavar="LEVEL",
        help="debug, info (the default), warning or error",
    )


def run(args: argparse.Namespace) -> int:
    config = load_config(args, _overrides(args))
    from openbr.cli import logs
    from openbr.server import serve

    logs.configure(args.log_level)
    return serve(config)


def _overrides(args: argparse.Namespace) -> dict[str, object]:
    overrides: dict[str, object] = {}
    if args.bind is not None:
        overrides["server.bind"] = args.bind
    if args.port is not None:
        overrides["server.port"] = args.port
    if args.tls:
        overrides["server.tls"] = "auto"
    if (args.tls_cert is None) != (args.tls_key is None):
        given, missing = "--tls-cert", "--tls-key"
        if args.tls_cert is None:
            given, missing = missing, given
        raise ConfigError(f"{given} needs {missing} beside it")
    if args.tls_cert is not None:
        overrides["server.tls"] = {"cert": str(args.tls_cert), "key": str(args.tls_key)}
    return overrides
