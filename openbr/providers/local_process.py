"""One child process for one model file: started, watched, ended.

In: a model file and where llama.cpp is installed. Out: an address that speaks OpenAI's API, or the
reason why there is none. The rules that live only here: the child gets an environment of its own
and a key that nobody else has; what it logged last is in memory, for the words of an error.

local_worker.py is the other side.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import secrets
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

from openbr.errors import UpstreamError, UpstreamTimeoutError, UpstreamUnavailableError
from openbr.library import ModelFile
from openbr.providers.base import Provider

LOCAL = "local"
_REAP_S = 1.0
_TAIL_BYTES = 4096
_SCRIPT = Path(__file__).with_name("local_worker.py")
# What a request leaves open. Its makers advise these for SmolLM2-135M (model card, "How to use"):
# it names the capital of Brazil 17 times of 20, with llama.cpp's 0.8 and 0.95 12 times.
_SAMPLING: Mapping[str, Mapping[str, float]] = {"smollm2-135m": {"temp": 0.2, "top_p": 0.9}}
_LOG_LINE = re.compile(r" E +\S* *(?:\w+: )?(.*\S)")


class Worker:
    """One child process for one model file. Made, started once, killed once."""

    adapter: Provider

    def __init__(self, file: ModelFile, packages: str, environment: Mapping[str, str]) -> None:
        self.file = file
        self.key = secrets.token_hex(32)
        self.pid: int | None = None
        self.is_ready = False
        self.unused = asyncio.Event()
        self.unused.set()
        self._leases = 0
        self._packages = packages
        self._environment = environment
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._tail = b""
        self._killed = False

    @property
    def is_alive(self) -> bool:
        """Also true before it started: then it is about to."""
        if self._killed:
            return False
        return self._process is None or self._process.returncode is None

    def take(self) -> None:
        self._leases += 1
        self.unused.clear()

    def give_back(self) -> None:
        self._leases -= 1
        if not self._leases:
            self.unused.set()

    async def start(self, context: int, threads: int) -> str:
        """Start it and wait until it serves; returns its base_url. Raises: UpstreamError."""
        order = {
            "model": str(self.file.path.absolute()),
            "alias": self.file.name,
            "context": context,
            "threads": threads,
            "key": self.key,
            "parent": os.getpid(),
            "packages": self._packages,
            "sampling": _SAMPLING.get(self.file.name, {}),
        }
        pipe = asyncio.subprocess.PIPE
        try:
            self._process = process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", str(_SCRIPT)),
                stdin=pipe,
                stdout=pipe,
                stderr=pipe,
                env=dict(self._environment),
                start_new_session=True,
            )
        except OSError as exc:
            raise unavailable(f"the local model's process cannot be started: {exc}") from exc
        self.pid = process.pid
        self._reader = asyncio.get_running_loop().create_task(self._keep_tail(process))
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps(order).encode() + b"\n")
        said = await process.stdout.readline()
        answer = json.loads(said) if said.endswith(b"\n") else {}
        if "port" not in answer:
            await self.kill()
            raise UpstreamUnavailableError(
                f"the local model {self.file.name} could not be loaded: "
                f"{self._last_error() or answer.get('error') or self._end()}",
                provider=LOCAL,
            )
        return f"http://127.0.0.1:{int(answer['port'])}/v1"

    async def kill(self) -> None:
        """End it at once; it holds nothing that would be lost. Idempotent."""
        self._killed = True
        process = self._process
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        assert process.stdin is not None
        process.stdin.close()
        if self._reader is not None:
            await self._reader

    async def outlived(self, error: UpstreamError) -> bool:
        """Whether it lives. A broken conversation may be the first sign that it does not."""
        refused = (error.upstream_status or 200) >= 400 or isinstance(error, UpstreamTimeoutError)
        if not refused and self._process is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_REAP_S):
                    await self._process.wait()
        return self.is_alive

    def epitaph(self) -> str:
        error = self._last_error()
        because = f": {error}" if error else ""
        return (
            f"the local model {self.file.name} stopped unexpectedly ({self._end()}){because}; "
            "the next request starts it again"
        )

    def _end(self) -> str:
        code = self._process.returncode if self._process is not None else None
        if code is None or code >= 0:
            return f"exit code {code}"
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        return name + (", out of memory?" if name == "SIGKILL" else "")

    def _last_error(self) -> str:
        """The first of the last errors that llama.cpp logged: the others follow from it."""
        found = _LOG_LINE.search(self._tail.decode("utf-8", "replace"))
        return found[1][:300] if found else ""

    async def _keep_tail(self, process: asyncio.subprocess.Process) -> None:
        """What llama.cpp logs: the last of it, in memory, for the words of an error."""
        assert process.stderr is not None
        while data := await process.stderr.read(_TAIL_BYTES):
            self._tail = (self._tail + data)[-_TAIL_BYTES:]


def unavailable(message: str) -> UpstreamUnavailableError:
    return UpstreamUnavailableError(message, provider=LOCAL, reason="disabled")
