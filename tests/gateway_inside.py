"""What a gateway's process holds: modules and tasks, told by itself; memory and descriptors.

In: a folder for the code that the interpreter loads at its start (sitecustomize). Out: facts, when
they are asked for. A signal asks, so that nothing of openbr takes part in it.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
from dataclasses import dataclass
from pathlib import Path

from gateway_process import GatewayProcess

DEADLINE_S = 10.0
PIPE = "inside"

_SITE = """
import os, signal

def tell(number, frame):
    import sys
    modules = sorted(sys.modules)
    import json
    asyncio = sys.modules.get("asyncio")
    loop = asyncio and asyncio._get_running_loop()
    tasks = [repr(task) for task in asyncio.all_tasks(loop)] if loop else []
    with open(os.environ["INSIDE_PIPE"], "w") as pipe:
        json.dump({"modules": modules, "tasks": tasks}, pipe)
        pipe.write("\\n")

signal.signal(signal.SIGUSR1, tell)
"""


@dataclass
class Told:
    modules: list[str]
    tasks: list[str]


class Inside:
    """`GatewayProcess(folder, toml, **inside.environ)`, then `inside.ask(gateway)`."""

    def __init__(self, folder: Path) -> None:
        site = folder / "site"
        site.mkdir()
        (site / "sitecustomize.py").write_text(_SITE)
        pipe = folder / PIPE
        os.mkfifo(pipe)
        # Open for both, so that neither side waits for the other one to open it.
        self._pipe = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)
        others = [os.environ["PYTHONPATH"]] if "PYTHONPATH" in os.environ else []
        self.environ = {
            "PYTHONPATH": os.pathsep.join([str(site), *others]),
            "INSIDE_PIPE": str(pipe),
        }

    def ask(self, gateway: GatewayProcess) -> Told:
        """What the process tells of itself."""
        assert gateway.process is not None
        gateway.process.send_signal(signal.SIGUSR1)
        said = b""
        while not said.endswith(b"\n"):
            ready, _, _ = select.select([self._pipe], [], [], DEADLINE_S)
            assert ready, "the gateway does not answer a signal"
            said += os.read(self._pipe, 65536)
        return Told(**json.loads(said))

    def close(self) -> None:
        os.close(self._pipe)


def descriptors(gateway: GatewayProcess) -> int:
    """Open ones, without that of a pipe which it may still be telling something through."""
    assert gateway.process is not None
    count = 0
    for one in Path(f"/proc/{gateway.process.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it was closed while we looked
            count += one.readlink().name != PIPE
    return count


def threads(gateway: GatewayProcess) -> int:
    assert gateway.process is not None
    return len(os.listdir(f"/proc/{gateway.process.pid}/task"))


def resident_bytes(gateway: GatewayProcess) -> int:
    assert gateway.process is not None
    fields = Path(f"/proc/{gateway.process.pid}/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")
