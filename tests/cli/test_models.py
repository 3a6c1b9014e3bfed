"""`openbr models`, as a person or a script sees it: words, JSON, exit codes, progress."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_hub import PIECE, FakeHub
from fake_upstream import Gate
from model_files import tiny_gguf

from openbr.cli import main
from openbr.cli.models import ProgressLine
from openbr.library.download import Step

DATA = tiny_gguf(weights=50_000)
SOURCE = "hf:owner/repo/Tiny.gguf"
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith("OPENBR_")]:
        monkeypatch.delenv(name)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("OPENBR_STATE", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture
def models(state: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run `openbr models ...`: its exit code, stdout and stderr."""

    def command(*arguments: str) -> tuple[int, str, str]:
        try:
            code = main(["models", *arguments])
        except SystemExit as exc:
            code = int(exc.code or 0)
        said = capsys.readouterr()
        return code, said.out, said.err

    return command


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "Tiny.gguf"
    path.write_bytes(DATA)
    return path


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub() as fake:
        fake.put("owner/repo/Tiny.gguf", DATA)
        yield fake


def test_an_empty_list_says_what_to_do(models: Command) -> None:
    code, out, err = models("list")
    assert (code, out) == (0, "")
    assert "`openbr models pull`" in err and "`openbr models add FILE.gguf`" in err
    assert models("list", "--json") == (0, "[]\n", "")


def test_add_list_remove(models: Command, file: Path, state: Path) -> None:
    assert models("add", str(file), "--name", "one") == (0, "one is ready (0.2 MB)\n", "")
    code, out, err = models("list")
    assert (code, err) == (0, "")
    head, row = out.splitlines()
    assert head.split() == ["NAME", "SIZE", "CONTEXT", "SHA256", "ADDED", "SOURCE"]
    assert row.startswith("one   0.2 MB  512") and row.endswith(f"file:{file}")
    code, out, _ = models("list", "--json")
    (model,) = json.loads(out)
    assert (model["name"], model["size_bytes"]) == ("one", len(DATA))
    assert model["path"] == str(state / "models" / "one.gguf")
    assert len(model["sha256"]) == 64 and model["added_at"] > 1e9
    assert models("remove", "one") == (0, "removed: one (0.2 MB)\n", "")
    assert models("list", "--json") == (0, "[]\n", "")


def test_a_name_that_moves_the_cursor_is_shown_not_obeyed(models: Command, tmp_path: Path) -> None:
    evil = tmp_path / "\x1b[2Jevil.gguf"
    evil.write_bytes(DATA)
    assert models("add", str(evil))[0] == 0
    assert "\x1b" not in models("list")[1]


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (["add", "{bad}"], 1, "not a GGUF file: it starts with b'not '"),
        (["add", "{cut}"], 1, "truncated or damaged"),
        (["add", "missing.gguf"], 2, "missing.gguf: no such file"),
        (["add", "{file}", "--name", "../x"], 2, "'../x' is a path"),
        (["remove", "../x"], 2, "'../x' is a path"),
        (["remove", "x"], 2, "there is no model x; there is none yet"),
        (["pull", "smollm"], 2, "did you mean smollm2-135m?"),
        (["pull", SOURCE, "--hub", "http://hub.example"], 2, "must be an https address"),
        (["pull", "--nmae", "x"], 2, "no such flag: --nmae; did you mean --name?"),
        (["pul"], 2, "did you mean pull?"),
        ([], 2, "ACTION"),
    ],
)
def test_what_goes_wrong_is_one_line(
    models: Command, tmp_path: Path, file: Path, arguments: list[str], code: int, reason: str
) -> None:
    bad, cut = tmp_path / "bad.gguf", tmp_path / "cut.gguf"
    bad.write_bytes(b"not a model")
    cut.write_bytes(DATA[:-1])
    paths = {"{bad}": str(bad), "{cut}": str(cut), "{file}": str(file)}
    found, out, err = models(*(paths.get(word, word) for word in arguments))
    assert (found, out) == (code, "")
    assert err.startswith("openbr: ") and reason in err
    assert err.count("\n") == 1


def test_a_bad_config_is_named(models: Command, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text("[locla]\n")
    code, out, err = models("list", "--config", str(config))
    assert code == 2 and str(config) in err and "did you mean" in err


def test_pull(models: Command, hub: FakeHub) -> None:
    code, out, err = models("pull", SOURCE, "--hub", hub.url)
    assert (code, out) == (0, "tiny is ready (0.2 MB)\n")
    assert err.splitlines() == [f"looking for {SOURCE}", "downloading 0.0 of 0.2 MB, 0 %"]
    assert models("pull", SOURCE, "--hub", hub.url) == (0, "tiny is already here (0.2 MB)\n", "")
    code, out, _ = models("pull", SOURCE, "--hub", hub.url, "--json")
    assert json.loads(out)["name"] == "tiny"


def test_an_unfinished_pull_is_shown_and_can_be_freed(models: Command, hub: FakeHub) -> None:
    hub.cuts = [70_000, 0]
    code, out, err = models("pull", SOURCE, "--hub", hub.url)
    assert (code, out) == (1, "")
    assert "openbr: 127.0.0.1: the connection was cut: 0.1 MB are here and kept" in err
    code, out, err = models("list")
    assert out == ""
    assert "unfinished: tiny (0.1 MB); the same pull goes on, `openbr models remove tiny`" in err
    assert models("remove", "tiny") == (0, "removed: tiny (0.1 MB)\n", "")
    assert "unfinished" not in models("list")[2]


def test_interrupted_by_the_keyboard(models: Command, state: Path, hub: FakeHub) -> None:
    hub.gate = Gate()
    hub.gate.release()
    command = [sys.executable, "-m", "openbr", "models", "pull", SOURCE, "--hub", hub.url]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    ) as pull:
        hub.wait(lambda h: any(c.sent_bytes >= PIECE for c in h.connections))
        pull.send_signal(signal.SIGINT)
        out, err = pull.communicate(timeout=20)
    assert (pull.returncode, out) == (130, "")
    assert err.endswith("openbr: stopped; the same command goes on from here\n")
    assert "Traceback" not in err
    hub.gate.open()
    assert models("pull", SOURCE, "--hub", hub.url)[0] == 0


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def steps(clock: Callable[[], float], tick: Callable[[float], None], out: io.StringIO) -> str:
    progress = ProgressLine(out, clock)
    progress(Step(doing="find", what="tiny"))
    for done in range(0, 101, 5):
        progress(Step(doing="download", done=done * 1_000_000, total=100_000_000))
        tick(0.5)
    progress(Step(doing="unpack", done=100_000_000, total=100_000_000))
    progress.end()
    return out.getvalue()


def test_progress_on_a_terminal(clock: Any) -> None:
    said = steps(clock, clock.tick, Terminal())
    assert said.startswith("\rlooking for tiny\n\rdownloading 0.0 of 100.0 MB, 0 %\r")
    assert "\rdownloading 50.0 of 100.0 MB, 50 %, 10.0 MB/s, 5 s left" in said
    assert "\rdownloading 100.0 of 100.0 MB, 100 %, 10.0 MB/s, 0 s left" in said
    assert said.endswith("\n\runpacking 100.0 of 100.0 MB, 100 %\n")
    lengths = [len(part) for part in said.split("\n")[1].split("\r")]
    assert lengths[1:] == sorted(lengths[1:]), "a shorter text would leave the end of a longer one"


def test_progress_in_a_log(clock: Any) -> None:
    said = steps(clock, clock.tick, io.StringIO())
    assert said.splitlines() == [
        "looking for tiny",
        "downloading 0.0 of 100.0 MB, 0 %",
        "downloading 50.0 of 100.0 MB, 50 %, 10.0 MB/s, 5 s left",
        "downloading 100.0 of 100.0 MB, 100 %, 10.0 MB/s, 0 s left",
        "unpacking 100.0 of 100.0 MB, 100 %",
    ]


@pytest.mark.parametrize(
    ("rate", "left"), [(100_000, "16 min 40 s left"), (10_000, "2 h 46 min left")]
)
def test_a_slow_line_says_how_long(clock: Any, rate: int, left: str) -> None:
    out = io.StringIO()
    progress = ProgressLine(out, clock)
    progress(Step(doing="download", done=0, total=100_000_000 + 6 * rate))
    clock.tick(5)
    progress(Step(doing="download", done=5 * rate, total=100_000_000 + 5 * rate))
    assert out.getvalue().endswith(left + "\n")


def test_an_unknown_length(clock: Any) -> None:
    out = io.StringIO()
    ProgressLine(out, clock)(Step(doing="download", done=1_500_000))
    assert out.getvalue() == "downloading 1.5 MB\n"


@pytest.mark.model
def test_the_default_model(local_model: Path, models: Command, state: Path) -> None:
    """What `openbr models pull` brings is what the rest of openbr expects."""
    state.mkdir()
    (state / "models").symlink_to(local_model)
    assert models("pull") == (0, "smollm2-135m is already here (98.4 MB)\n", "")
    (model,) = json.loads(models("list", "--json")[1])
    assert model["sha256"].startswith("b179c9523d0e6a0f")
    assert (model["size_bytes"], model["context_tokens"]) == (98_362_432, 8192)
