"""A gateway in a process of its own, as a user starts it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Self

DEADLINE_S = 30.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class GatewayProcess:
    """`with GatewayProcess(folder, toml) as gateway:` runs until the block ends.

    Its config and state live in `folder`; its output is in `.log()`.
    """

    def __init__(
        self, folder: Path, toml: str = "", *flags: str, python: str = sys.executable, **env: str
    ) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.base_url = self.url + "/v1"
        config = folder / "config.toml"
        config.write_text(toml)
        self.state = folder / "state"
        command = [python, "-m", "openbr", "run", "--port", str(self.port)]
        self._command = [*command, "--config", str(config), *flags]
        inherited = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
        self._env = {**inherited, "OPENBR_STATE": str(self.state), "HOME": str(folder), **env}
        self._log = folder / "gateway.log"
        self.process: subprocess.Popen[bytes] | None = None

    def log(self) -> str:
        return self._log.read_text()

    def start(self) -> Self:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command, env=self._env, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self._wait_ready()
        return self

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait for the end. Returns the exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(DEADLINE_S)

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + DEADLINE_S
        assert self.process is not None
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise AssertionError(f"the gateway ended: {self.log()}")
            try:
                with urllib.request.urlopen(self.url + "/readyz", timeout=1):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.01)
        raise AssertionError(f"the gateway did not become ready: {self.log()}")

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
