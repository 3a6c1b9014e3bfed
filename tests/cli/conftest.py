"""The command line in this process: arguments in, exit code and both outputs back."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from openbr.cli import main


@dataclass
class Said:
    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


Openbr = Callable[..., Said]


@pytest.fixture
def openbr(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Openbr:
    """`openbr("keys", "list")`, with config and state in the test's own folder."""
    for name in ("OPENBR_CONFIG", "OPENBR_STATE", "XDG_CONFIG_HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("OPENBR_STATE", str(tmp_path / "state"))

    def run(*words: str) -> Said:
        capsys.readouterr()
        try:
            code = main(list(words))
        except SystemExit as exc:
            code = int(exc.code or 0)
        said = capsys.readouterr()
        return Said(code, said.out, said.err)

    return run
