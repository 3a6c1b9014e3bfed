"""The command line as a whole, and what `run` makes of its flags."""

from __future__ import annotations

import logging
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cli.conftest import Openbr
from openbr import __version__
from openbr.cli import COMMANDS, logs
from openbr.cli.table import format_table, visible
from openbr.config import TLS, Config


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """The configs that `run` would have served."""
    found: list[Config] = []

    def serve(config: Config) -> int:
        found.append(config)
        return 0

    monkeypatch.setattr("openbr.server.serve", serve)
    monkeypatch.setattr("openbr.cli.logs.configure", lambda level: None)
    return found


# the command line


def test_version(openbr: Openbr) -> None:
    said = openbr("--version")
    assert (said.code, said.out) == (0, f"openbr {__version__}\n")


def test_help_lists_every_command_with_examples(openbr: Openbr) -> None:
    said = openbr("--help")
    assert said.code == 0 and "examples:" in said.out
    for name in COMMANDS:
        assert f"\n    {name} " in said.out


@pytest.mark.parametrize(
    "words",
    [(name,) for name in COMMANDS]
    + [("keys", one) for one in ("add", "list", "revoke")]
    + [("config", one) for one in ("check", "show", "path")]
    + [("models", one) for one in ("pull", "add", "list", "remove")],
    ids=" ".join,
)
def test_every_command_has_examples(openbr: Openbr, words: tuple[str, ...]) -> None:
    said = openbr(*words, "--help")
    assert said.code == 0 and "examples:\n  openbr " in said.out
    assert max(map(len, said.out.splitlines())) <= 100


def test_no_command_shows_the_help(openbr: Openbr) -> None:
    said = openbr()
    assert (said.code, said.out) == (2, "")
    assert "commands:" in said.err


@pytest.mark.parametrize(
    "words, said",
    [
        (("rnu",), "no such command: rnu; did you mean run?; see `openbr --help`"),
        (("quit",), "no such command: quit; known: run, models, keys, config; see `openbr --help`"),
        (("keys", "lst"), "no such command: lst; did you mean list?; see `openbr keys --help`"),
        (("run", "--prot", "1"), "no such flag: --prot; did you mean --port?; see `openbr run -"),
        (("run", "--prot=1"), "no such flag: --prot=1; did you mean --port?"),
        (("run", "--por", "1"), "no such flag: --por; did you mean --port?"),
        (("keys", "list", "--jsno"), "no such flag: --jsno; did you mean --json?"),
        (("run", "now"), "no such argument: now"),
        (("run", "a\nb"), "no such argument: a\\nb; see"),
        (("run", "--port"), "argument --port: expected one argument"),
        (("keys", "add"), "the following arguments are required: NAME; see `openbr keys add"),
        (("keys",), "the following arguments are required: ACTION; see `openbr keys --help`"),
        (("keys", "add", "x", "--scope", "amdin"), "no such --scope: amdin; did you mean admin?"),
    ],
)
def test_a_wrong_word_is_one_line(openbr: Openbr, words: tuple[str, ...], said: str) -> None:
    found = openbr(*words)
    assert (found.code, found.out) == (2, "")
    assert found.err.startswith(f"openbr: {said}")
    assert found.err.count("\n") == 1


def least_cpu_s(compiled: Path, *words: str) -> float:
    """The processor time of a command with its modules compiled, whatever else the machine does."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    env["PYTHONPYCACHEPREFIX"] = str(compiled)
    times = []
    for _ in range(6):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *words], check=True, capture_output=True, env=env)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(times)


def test_help_is_quick(tmp_path: Path) -> None:
    """Little more than Python itself: nothing heavy is loaded for it."""
    python = least_cpu_s(tmp_path, "-c", "pass")
    assert least_cpu_s(tmp_path, "-m", "openbr", "--help") - python < 0.1


def test_help_loads_nothing_heavy() -> None:
    source = (
        "import sys\nfrom openbr.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "heavy = 'asyncio uvicorn starlette sqlite3 ssl logging json msgspec'.split()\n"
        "print([name for name in heavy if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    assert done.stderr == "[]\n"


def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    env = {**os.environ, "HOME": str(tmp_path)}
    command = [sys.executable, "-m", "openbr", "config", "show"]
    done = subprocess.run(command, env=env, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


def test_ctrl_c_is_no_traceback(openbr: Openbr, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(args: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("openbr.cli.config.run", interrupt)
    said = openbr("config", "path")
    assert (said.code, said.out, said.err) == (130, "", "")


# run


def test_run_serves_the_defaults(openbr: Openbr, served: list[Config]) -> None:
    assert openbr("run").code == 0
    server = served[0].server
    assert (server.bind, server.port, server.tls) == ("loopback", 18789, TLS())


def test_flags_go_over_file_and_environment(
    openbr: Openbr, served: list[Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "my.toml"
    file.write_text('[server]\nport = 1\nbind = "lan"\ndrain_s = 3\n')
    monkeypatch.setenv("OPENBR_SERVER__PORT", "2")
    assert openbr("run", "--config", str(file)).code == 0
    assert openbr("run", "--config", str(file), "--port", "3", "--bind", "::1").code == 0
    assert [(c.server.port, c.server.bind, c.server.drain_s) for c in served] == [
        (2, "lan", 3.0),
        (3, "::1", 3.0),
    ]


def test_tls_flags(openbr: Openbr, served: list[Config]) -> None:
    openbr("run", "--tls")
    openbr("run", "--tls-cert", "a.pem", "--tls-key", "b.pem")
    openbr("run", "--tls", "--tls-cert", "a.pem", "--tls-key", "b.pem")
    files = TLS(mode="files", cert=Path("a.pem"), key=Path("b.pem"))
    assert [c.server.tls for c in served] == [TLS(mode="auto"), files, files]


@pytest.mark.parametrize(
    "words, said",
    [
        (("--tls-cert", "a"), "--tls-cert needs --tls-key beside it"),
        (("--tls-key", "a"), "--tls-key needs --tls-cert beside it"),
        (("--port", "70000"), "--port = '70000': must be a whole number from 0 to 65535"),
        (("--bind", "x"), "--bind = 'x': must be"),
        (("--config", "missing.toml"), "missing.toml: no such config file"),
    ],
)
def test_flags_that_are_refused(
    openbr: Openbr, served: list[Config], words: tuple[str, ...], said: str
) -> None:
    found = openbr("run", *words)
    assert found.code == 2 and not served
    assert found.err.startswith(f"openbr: {said}") and found.err.count("\n") == 1


# what the commands share


def test_a_table_is_aligned_and_inert() -> None:
    text = format_table(
        ("NAME", "N"), [("a", "1"), ("日本", "22"), ("é", "3"), ("\x1b[31mred\n", "")]
    )
    assert text.splitlines() == [
        "NAME           N",
        "a              1",
        "日本           22",
        "é              3",
        "\\x1b[31mred\\n",
    ]


def test_visible_changes_only_what_cannot_be_seen() -> None:
    assert visible("São Paulo 🇧🇷") == "São Paulo 🇧🇷"
    assert visible("a\r\nb\x1b\u202e") == "a\\r\\nb\\x1b\\u202e"


def test_a_message_cannot_forge_a_line_of_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    others = {name: logging.getLogger(name).level for name in ("uvicorn", "asyncio")}
    root.handlers.clear()
    try:
        logs.configure("info")
        logging.getLogger("openbr.x").info("asked for %s", "/a\n2026-01-01 ERROR forged")
        logging.getLogger("openbr.x").debug("not shown")
        logging.getLogger("uvicorn.error").warning("not shown either")
        said = capsys.readouterr().err
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        for name, old in others.items():
            logging.getLogger(name).setLevel(old)
    assert said.count("\n") == 1
    assert "INFO    openbr.x: asked for /a\\n2026-01-01 ERROR forged" in said
