"""openbr keys: make, list and revoke the keys that callers use.

In: arguments. Out: a key, once, or a table. The key itself is on stdout alone when a program reads
it; everything said to people goes to stderr then.
"""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import closing
from typing import TYPE_CHECKING

from openbr.cli.options import add_config, add_json, load_config, print_json
from openbr.errors import InvalidRequestError
from openbr.secret import ADMIN, CHAT

if TYPE_CHECKING:
    from openbr.store import Store
    from openbr.store.keys import StoredKey

NAME = "keys"
HELP = "make, list and revoke keys"

ADD_EXAMPLES = """\
examples:
  openbr keys add laptop
  openbr keys add me --scope admin        may also choose models and change settings
  KEY=$(openbr keys add ci)               in a script only the key is printed
  openbr keys add phone --json
"""
LIST_EXAMPLES = """\
examples:
  openbr keys list
  openbr keys list --json
"""
REVOKE_EXAMPLES = """\
examples:
  openbr keys revoke laptop
  openbr keys revoke 3
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = ADD_EXAMPLES
    commands = parser.add_subparsers(metavar="ACTION", dest="action", required=True)
    add = commands.add_parser(
        "add", help="make a key and show it, once", description="Make a key.", epilog=ADD_EXAMPLES
    )
    add.add_argument("name", metavar="NAME", help="what the key is for")
    add.add_argument(
        "--scope",
        action="append",
        choices=[CHAT, ADMIN],
        help="chat: calls models (the default); admin: chat, and changes what openbr does",
    )
    listing = commands.add_parser(
        "list", help="list every key", description="List every key.", epilog=LIST_EXAMPLES
    )
    revoke = commands.add_parser(
        "revoke",
        help="end a key at once",
        description="End a key; a running gateway refuses it within a second.",
        epilog=REVOKE_EXAMPLES,
    )
    revoke.add_argument("key", metavar="NAME|ID", help="the key's name, or its id")
    for command in (add, listing, revoke):
        add_config(command)
        add_json(command)


def run(args: argparse.Namespace) -> int:
    config = load_config(args)
    from openbr.store import Store

    action = {"add": _add, "list": _list, "revoke": _revoke}[args.action]
    with closing(Store.open(config.store_path)) as store:
        return action(store, args)


def _add(store: Store, args: argparse.Namespace) -> int:
    from openbr.auth import generate_key, hash_key
    from openbr.store import keys

    scopes = frozenset([CHAT, *(args.scope or ())])
    key = generate_key()
    now = time.time()
    key_id = store.write(
        keys.add, name=args.name, digest=hash_key(key), last4=key[-4:], scopes=scopes, now=now
    )
    if args.json:
        print_json(
            {
                "id": key_id,
                "name": args.name,
                "key": key,
                "scopes": sorted(scopes),
                "created_at": now,
            }
        )
    elif sys.stdout.isatty():
        print(f"{key}\n\nThis is the only time it is shown. Send it as\n")
        print("  Authorization: Bearer <key>")
    else:
        print(key)
    return 0


def _list(store: Store, args: argparse.Namespace) -> int:
    from openbr.store import keys

    found = store.read(keys.list_all)
    if args.json:
        print_json([_json(key) for key in found])
    elif not found:
        print("no keys yet; `openbr keys add NAME` makes one", file=sys.stderr)
    else:
        from openbr.cli.table import format_table

        headings = ("ID", "NAME", "KEY", "SCOPES", "CREATED", "LAST USED", "STATE")
        print(format_table(headings, map(_row, found)))
    return 0


def _revoke(store: Store, args: argparse.Namespace) -> int:
    from openbr.store import keys

    revoked = store.write(keys.revoke, args.key, time.time())
    if revoked is None:
        from openbr.cli.parser import nearest

        live = [key.name for key in store.read(keys.list_all) if key.revoked_at is None]
        hint = nearest(args.key, live) or "; `openbr keys list` shows them"
        raise InvalidRequestError(f"no live key has the name or id {args.key!r}{hint}")
    if args.json:
        print_json(_json(revoked))
    else:
        print(f"revoked: {revoked.name} (id {revoked.id}, …{revoked.last4})")
    return 0


def _json(key: StoredKey) -> dict[str, object]:
    return {
        "id": key.id,
        "name": key.name,
        "last4": key.last4,
        "scopes": sorted(key.scopes),
        "created_at": key.created_at,
        "last_used_at": key.last_used_at,
        "revoked_at": key.revoked_at,
    }


def _row(key: StoredKey) -> tuple[str, ...]:
    return (
        str(key.id),
        key.name,
        f"…{key.last4}",
        " ".join(sorted(key.scopes)),
        _day(key.created_at),
        _day(key.last_used_at) if key.last_used_at else "never",
        f"revoked {_day(key.revoked_at)}" if key.revoked_at else "live",
    )


def _day(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at))
