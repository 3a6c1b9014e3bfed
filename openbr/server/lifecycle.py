"""From an open socket to the last answer: uvicorn's server without its tick.

In: an app, listening sockets, a TLS context. Out: nothing; it returns when the server has ended.
The rules that live only here: between two events nothing runs (uvicorn wakes ten times a second);
at the first signal the app is told at once that it drains, listeners close, running answers
finish within `drain_s`; the second Ctrl-C cuts them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import ssl
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from typing import Any

import uvicorn

from openbr.errors import OpenbrError
from openbr.server.connection import Connection
from openbr.server.memory import IdleTrim, trim
from openbr.server.sockets import BACKLOG
from openbr.server.state import Limits, State
from openbr.ultra import trim_heap

logger = logging.getLogger(__name__)

APP_CLOSE_S = 10.0
_CUT_S = 2.0
_GOODBYE_S = 1.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Lifespan:
    """The app's start and end, one task as ASGI wants it. What the app raises, the caller gets."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._messages: asyncio.Queue[dict[str, str]] = asyncio.Queue()
        self._answers: asyncio.Queue[dict[str, str]] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self.state: dict[str, Any] = {}

    async def startup(self) -> None:
        scope = {
            "type": "lifespan",
            "asgi": {"version": "3.0", "spec_version": "2.0"},
            "state": self.state,
        }
        self._task = asyncio.create_task(
            self._app(scope, self._messages.get, self._answers.put), name="lifespan"
        )
        await self._ask("startup")

    async def shutdown(self) -> None:
        await self._ask("shutdown")

    async def _ask(self, what: str) -> None:
        """Tell the app, and wait for its word or its end. Raises: what it raised."""
        assert self._task is not None
        self._messages.put_nowait({"type": f"lifespan.{what}"})
        answer = asyncio.ensure_future(self._answers.get())
        await asyncio.wait({answer, self._task}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            answer.cancel()
            self._task.result()
            raise OpenbrError(f"the app ended before its {what}")
        message = answer.result()
        if message["type"] != f"lifespan.{what}.complete":
            raise OpenbrError(message.get("message") or f"the app's {what} failed")


class Server(uvicorn.Server):
    """`give_back`: called once when no request has come for a while, to give memory back. `spare`:
    whether a request is to go on although its client left.

    Threads: the main one, where signals arrive.
    """

    server_state: State

    def __init__(
        self,
        app: Any,
        *,
        drain_s: float,
        limits: Limits | None = None,
        ssl_context: ssl.SSLContext | None = None,
        is_verbose: bool = False,
        on_started: Callable[[], None] = lambda: None,
        on_drain: Callable[[], None] = lambda: None,
        give_back: Callable[[], object] = trim_heap,
        spare: Callable[[asyncio.Task[None]], bool] = lambda _: False,
    ) -> None:
        limits = limits or Limits()
        super().__init__(
            uvicorn.Config(
                app,
                interface="asgi3",
                http=Connection,
                ws="none",
                lifespan="off",  # ours, above: it lets failures through
                loop="none",  # the caller's
                log_config=None,
                access_log=is_verbose,
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=limits.keep_alive_s,  # type: ignore[arg-type]  # call_later's
            )
        )
        self.server_state = State(limits, spare=spare)
        self.servers: list[asyncio.base_events.Server] = []
        self._app_life = Lifespan(app)
        self._ssl_context = ssl_context
        self._drain_s = drain_s
        self._on_started = on_started
        self._on_drain = on_drain
        self._give_back = give_back
        self._stop = asyncio.Event()
        self._force = asyncio.Event()

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until stopped. Raises: what the app raised at its start."""
        self.config.load()
        with self._catch_signals():
            await self.startup(sockets)
            await self.main_loop()
            await self.shutdown(sockets)

    def stop(self) -> None:
        """Begin to drain: now for the app, at its next turn for the loop."""
        if not self._stop.is_set():
            self.should_exit = True
            self._on_drain()
            self.server_state.draining = True
            self._stop.set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await self._app_life.startup()
        loop = asyncio.get_running_loop()
        state = self.server_state
        self._trim = IdleTrim(loop, lambda: bool(state.tasks), partial(trim, self._give_back))
        state.on_rest = self._trim.rest

        def connect() -> Connection:
            return Connection(
                config=self.config,
                server_state=state,
                app_state=self._app_life.state,
                _loop=loop,
            )

        context = self._ssl_context
        for one in sockets or ():
            server = await loop.create_server(
                connect,
                sock=one,
                ssl=context,
                backlog=BACKLOG,
                ssl_handshake_timeout=state.limits.head_s if context else None,
                # A client that is idle does not answer our goodbye, and must not hold up the end.
                ssl_shutdown_timeout=_GOODBYE_S if context else None,
            )
            self.servers.append(server)
        self.started = True
        self._trim.rest()
        self._on_started()

    async def main_loop(self) -> None:
        await self._stop.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        state = self.server_state
        for connection in list(state.connections):
            connection.shutdown()
        if state.tasks:
            logger.info("finishing %d answers, for %g s at most", len(state.tasks), self._drain_s)
        force = asyncio.ensure_future(self._force.wait())
        if not await _finish(self._drain(), self._drain_s, unless=force):
            await self._cut()
        self._trim.close()
        limit_s = _CUT_S if self.force_exit else APP_CLOSE_S
        if not await _finish(self._app_life.shutdown(), limit_s):
            logger.error("the app did not close within %g s", limit_s)

    async def _drain(self) -> None:
        await self.server_state.wait_for_requests()
        for connection in list(self.server_state.connections):
            connection.close()  # type: ignore[union-attr]  # all of them are ours
        await self.server_state.wait_for_connections()

    async def _cut(self) -> None:
        """End what is left: the connections, then the requests behind them."""
        state = self.server_state
        if state.tasks:
            logger.warning("cutting %d answers that did not finish", len(state.tasks))
        for connection in list(state.connections):
            connection.abort()  # type: ignore[union-attr]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CUT_S):
                await state.wait_for_connections()
                for task in tuple(state.tasks):
                    state.cancel(task)
                await state.wait_for_requests()

    # Signals

    @contextlib.contextmanager
    def _catch_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        before = {}
        for number in _SIGNALS:
            try:
                before[number] = signal.getsignal(number)
                loop.add_signal_handler(number, self._on_signal, number)
            except NotImplementedError:  # a loop without them, as on Windows
                signal.signal(
                    number,
                    lambda n, _: loop.call_soon_threadsafe(self._on_signal, n) and None,
                )
            except (ValueError, RuntimeError):  # not the main thread: its owner calls stop()
                before.pop(number, None)
        try:
            yield
        finally:
            for number, handler in before.items():
                with contextlib.suppress(NotImplementedError):
                    loop.remove_signal_handler(number)
                signal.signal(number, handler)

    def _on_signal(self, number: int) -> None:
        if self._stop.is_set() and number == signal.SIGINT:
            self.force_exit = True
            self._force.set()
        self.stop()


async def _finish(
    work: Coroutine[Any, Any, None], limit_s: float, unless: asyncio.Future[Any] | None = None
) -> bool:
    """Do the work: False when it took longer, or `unless` came first. Raises what it raised."""
    task = asyncio.ensure_future(work)
    both: set[asyncio.Future[Any]] = {task} if unless is None else {task, unless}
    await asyncio.wait(both, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
    if unless is not None:
        unless.cancel()
    if task.done():
        task.result()
        return True
    task.cancel()
    return False
