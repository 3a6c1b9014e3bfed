"""The gateway as a process: sockets first, then the app, then nothing until somebody calls.

In: a Config. Out: an exit code. The rules that live only here: other machines are let in only when
a key exists; one heap for all threads; signals end it with 0.

sockets.py listens, connection.py guards one client, state.py is what clients share, lifecycle.py
starts and drains, memory.py gives the heap back, banner.py says what runs.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import sys
from collections.abc import Callable
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

from openbr.config import Config
from openbr.errors import ConfigError
from openbr.server import memory, sockets

if TYPE_CHECKING:
    from openbr.server.state import Limits
    from openbr.tls import Certificate

logger = logging.getLogger(__name__)


def serve(config: Config) -> int:
    """Run the gateway until a signal ends it. Raises: ConfigError when it cannot start."""
    memory.keep_one_arena()
    _require_key(config)
    with ExitStack() as stack:
        listening = sockets.open_sockets(config.server.bind, config.server.port)
        for one in listening:
            stack.callback(one.close)
        certificate, context = _certificate(config)
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_serve(config, listening, certificate, context))
    logger.info("openbr has ended")
    return 0


async def _serve(
    config: Config,
    listening: list[socket.socket],
    certificate: Certificate | None,
    context: ssl.SSLContext | None,
) -> None:
    from openbr.app import create_app, needs_key
    from openbr.server.lifecycle import Server

    app = create_app(config)

    def started() -> None:
        memory.spare_what_stays()
        _announce(config, listening, certificate, needs_key(config))

    def drain() -> None:
        app.draining = True

    server = Server(
        app,
        drain_s=config.server.drain_s,
        limits=_limits(config, sockets.allow_descriptors()),
        ssl_context=context,
        is_verbose=logger.isEnabledFor(logging.DEBUG),
        on_started=started,
        on_drain=drain,
        give_back=app.memory.trim,
        spare=app.spare,
    )
    await server.serve(listening)


def _limits(config: Config, descriptors: int) -> Limits:
    from openbr.server.state import Limits

    # A request needs two descriptors, its client's and its upstream's.
    most = min(4 * config.limits.concurrent_requests, descriptors // 2 - 128)
    return Limits(max_connections=max(16, most), body_s=config.limits.body_timeout_s)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop


def _require_key(config: Config) -> None:
    """Raises: ConfigError if other machines could come in and nobody has made a key."""
    if sockets.is_loopback(config.server.bind):
        return
    from openbr.store import Store, keys

    with closing(Store.open(config.store_path)) as store:
        if store.read(keys.has_live):
            return
    raise ConfigError(
        f"other machines can reach {config.server.bind!r}, so callers need a key, and there is "
        "none yet; make one with `openbr keys add NAME` and start again"
    )


def _certificate(config: Config) -> tuple[Certificate | None, ssl.SSLContext | None]:
    if config.server.tls.mode == "off":
        return None, None
    from openbr import tls

    names = {"localhost", "127.0.0.1", "::1", *config.server.public_hosts}
    host = socket.gethostname()
    if host and host.isascii():
        names.add(host)
    if config.server.bind == "lan":
        names |= {f"{name}.local" for name in names & {host}} | set(sockets.lan_addresses())
    elif config.server.bind != "loopback":
        names.add(config.server.bind.partition("%")[0])
    return tls.prepare(config.server.tls, config.tls_path, names)


def _announce(
    config: Config,
    listening: list[socket.socket],
    certificate: Certificate | None,
    needs_key: bool,
) -> None:
    from openbr import ultra
    from openbr.server import banner

    urls = _urls(config, listening[0].getsockname()[1])
    say = banner.format_banner if sys.stderr.isatty() else banner.format_line
    text = say(config, urls, ultra.info(), certificate, needs_key=needs_key)
    if sys.stderr.isatty():
        print(text, file=sys.stderr)
    else:
        logger.info("%s", text)


def _urls(config: Config, port: int) -> list[str]:
    """Addresses to open, the best one first."""
    scheme = "http" if config.server.tls.mode == "off" else "https"
    if config.server.bind == "loopback":
        hosts = ["127.0.0.1"]
    elif config.server.bind == "lan":
        hosts = ["127.0.0.1", *sockets.lan_addresses()]
    else:
        hosts = [config.server.bind]
    hosts += [host for host in config.server.public_hosts if host not in hosts]
    return [f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}" for host in hosts]
