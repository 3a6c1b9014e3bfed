"""Other gateways on the same work: LiteLLM's proxy and Portkey's gateway.

In: a folder, and the network the first time. Out: a table of all that could be installed, beside
openbr. The rules that live only here: they are installed as their own pages say, into that folder
and nowhere else, and run with one process and nothing optional switched on; what cannot be
installed or does not answer is left out, with the reason.

    python bench/run.py --only gateway --peers      installs into build/bench-peers, then measures
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from load import make_ask
from rounds import Stand, measure, standing, tabulate
from scenarios import DIRECT, KB, OURS, PLAIN, Bound, Case, Scenario
from servers import ROOT, Server, Size, read_size, running
from table import Row, Table, divide

FOLDER = ROOT / "build" / "bench-peers"
INSTALL_S = 1200.0
# It does not start without a key, nor with one that looks like a word.
LITELLM_KEY = "sk-" + hashlib.sha256(b"bench").hexdigest()
LITELLM, PORTKEY = "LiteLLM proxy", "Portkey gateway"


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """`target`: how many times openbr's CPU a request it must take. `headers`: what it wants to be
    told with each request, given the port of the upstream."""

    name: str
    target: float
    install: Callable[[Path], None]
    server: Callable[[Path, int], Server]
    headers: Callable[[int], tuple[str, ...]]


def run_installer(*command: str) -> None:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=INSTALL_S, stdin=subprocess.DEVNULL
    )
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise OSError(f"{Path(command[0]).name} failed: {''.join(last)[:200]}")


# LiteLLM


def litellm_program(folder: Path) -> Path:
    return folder / "litellm" / "bin" / "litellm"


def install_litellm(folder: Path) -> None:
    if not litellm_program(folder).exists():
        place = str(folder / "litellm")
        run_installer(sys.executable, "-m", "venv", place)
        run_installer(f"{place}/bin/python", "-m", "pip", "install", "-q", "litellm[proxy]")


def litellm_server(folder: Path, upstream_port: int) -> Server:
    config = folder / "litellm.yaml"
    config.write_text(
        "model_list:\n"
        "  - model_name: bench/fast\n"
        "    litellm_params:\n"
        "      model: openai/fast\n"
        f"      api_base: http://127.0.0.1:{upstream_port}/v1\n"
        "      api_key: bench\n"
        "litellm_settings:\n"
        "  telemetry: false\n"
    )
    command = (str(litellm_program(folder)), "--config", str(config), "--host", "127.0.0.1")
    return Server(
        command=(*command, "--num_workers", "1", "--port"),
        environ={
            "LITELLM_MASTER_KEY": LITELLM_KEY,
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # no request to elsewhere at start
            "LITELLM_LOG": "ERROR",
        },
        path="/health/liveliness",
    )


# Portkey


def portkey_program(folder: Path) -> Path:
    return folder / "portkey/node_modules/@portkey-ai/gateway/build/start-server.js"


def install_portkey(folder: Path) -> None:
    if not portkey_program(folder).exists():
        npm = shutil.which("npm")
        if npm is None:
            raise OSError("there is no npm here")
        place = str(folder / "portkey")
        run_installer(npm, "install", "--prefix", place, "--no-audit", "@portkey-ai/gateway")


def portkey_server(folder: Path, upstream_port: int) -> Server:
    command = ("node", str(portkey_program(folder)), "--headless", "--port={port}")
    environ = {"TRUSTED_CUSTOM_HOSTS": "127.0.0.1,localhost", "NODE_ENV": "production"}
    return Server(command=command, environ=environ, path="/")


PEERS = (
    Peer(
        name=PORTKEY,
        target=20,
        install=install_portkey,
        server=portkey_server,
        headers=lambda port: (
            "authorization: Bearer bench",
            "x-portkey-provider: openai",
            f"x-portkey-custom-host: http://127.0.0.1:{port}/v1",
        ),
    ),
    Peer(
        name=LITELLM,
        target=150,
        install=install_litellm,
        server=litellm_server,
        headers=lambda port: (f"authorization: Bearer {LITELLM_KEY}",),
    ),
)


def install_all(folder: Path, say: Callable[[str], None]) -> tuple[list[Peer], list[str]]:
    """Those that are there now, and why the others are not."""
    folder.mkdir(parents=True, exist_ok=True)
    found, missing = [], []
    for peer in PEERS:
        say(f"gateway: installing {peer.name} into {folder}, once")
        try:
            peer.install(folder)
        except (OSError, subprocess.SubprocessError) as exc:
            missing.append(f"{peer.name} is left out: it could not be installed: {exc}")
        else:
            found.append(peer)
    return found, missing


def start_once(
    peers: list[Peer], folder: Path, say: Callable[[str], None]
) -> tuple[list[Peer], list[str]]:
    """Those that start, and why the others do not. The first start also writes what the next ones
    find ready, such as compiled Python, so that the one that is measured is a usual one."""
    found, missing = [], []
    for peer in peers:
        say(f"gateway: starting {peer.name}")
        try:
            with running(peer.server(folder, 9)):
                found.append(peer)
        except (OSError, RuntimeError) as exc:
            missing.append(f"{peer.name} is left out: it does not start: {exc}")
    return found, missing


def scenario(stand: Stand, peers: list[Peer]) -> Scenario:
    upstream = stand.port(DIRECT)
    usual = make_ask("bench/fast", KB)
    return Scenario(
        title="Other gateways, chat of 1 KB, 16 connections",
        seconds=2,
        rounds=3,
        quick_rounds=1,
        cases=(
            Case(name="pass-through", subject=PLAIN, ask=usual),
            Case(name="openbr", subject=OURS, ask=make_ask("bench/fast", KB, temperature=0)),
            *(
                Case(
                    name=peer.name,
                    subject=peer.name,
                    ask=make_ask("bench/fast", KB, headers=peer.headers(upstream)),
                )
                for peer in peers
            ),
        ),
        bounds=tuple(
            Bound(
                name=f"CPU a request of {peer.name}, to openbr's",
                above=peer.name,
                below="openbr",
                wish=">=",
                target=peer.target,
                is_guarded=False,  # it is not our doing when they become faster
            )
            for peer in peers
        ),
    )


def tabulate_processes(stand: Stand, before: dict[str, Size], notes: list[str]) -> Table:
    rows = []
    for name, one in stand.servers.items():
        if name in before:
            after = read_size(one.pid).rss_mb
            ours = before[OURS].rss_mb
            cells = (one.start_s, before[name].rss_mb, after, divide(before[name].rss_mb, ours))
            rows.append(Row(name=name, cells=cells))
    return Table(
        title="Other gateways as processes",
        unit="",
        columns=("exec -> first 200, s", "RSS ready, MB", "RSS after load, MB", "RSS, to openbr"),
        rows=rows,
        notes=notes,
    )


def measure_peers(quick: bool, say: Callable[[str], None]) -> list[Table]:
    """The tables of those that can be had here; at least one, which says why one is missing."""
    peers, notes = install_all(FOLDER, say)
    peers, not_started = start_once(peers, FOLDER, say)
    notes += not_started
    if not peers:
        return [Table(title="Other gateways", unit="", columns=(), rows=[], notes=notes)]

    def others(upstream_port: int) -> dict[str, Server]:
        return {peer.name: peer.server(FOLDER, upstream_port) for peer in peers}

    with tempfile.TemporaryDirectory() as folder, standing(Path(folder), others) as stand:
        names = [OURS, *(peer.name for peer in peers)]
        before = {name: read_size(stand.pid(name)) for name in names}
        what = scenario(stand, peers)
        found = measure(stand, what, what.quick_rounds if quick else what.rounds, say)
        return [tabulate(what, found), tabulate_processes(stand, before, notes)]
