"""openbr config: the same reader as `run`, secrets masked."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from cli.conftest import Openbr

CANARY = "sk-canary-0123456789"
TOML = """
[server]
port = 8080
tls = { cert = "/c.pem", key = "/k.pem" }

[[providers]]
name = "cloud"
base_url = "https://api.example.com/v1"
api_key = "${CLOUD_KEY}"

[[routes]]
model = "fast"
deployments = ["cloud/m", "local/s"]
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CLOUD_KEY", CANARY)
    monkeypatch.setenv("OPENBR_LOCAL__THREADS", "3")
    monkeypatch.setenv("HTTPS_PROXY", f"http://ana:{CANARY}@proxy:1")
    path = tmp_path / "my.toml"
    path.write_text(TOML)
    return path


def test_check_without_a_file(openbr: Openbr, tmp_path: Path) -> None:
    said = openbr("config", "check")
    assert (said.code, said.err) == (0, "")
    place = tmp_path / ".config" / "openbr" / "config.toml"
    assert said.out == f"fine: no {place}, so the defaults (0 providers, 0 routes)\n"


def test_check_with_a_file(openbr: Openbr, file: Path) -> None:
    said = openbr("config", "check", "--config", str(file))
    assert (said.code, said.out) == (0, f"fine: {file} (1 providers, 1 routes)\n")
    assert openbr("config", "check", "--config", str(file), "--json").json() == {
        "ok": True,
        "path": str(file),
        "found": True,
        "providers": 1,
        "routes": 1,
    }


def test_check_says_what_is_wrong_as_run_does(openbr: Openbr, file: Path) -> None:
    file.write_text("[server]\nprot = 1\n")
    said = openbr("config", "check", "--config", str(file))
    assert said.code == 2 and said.out == ""
    assert said.err.startswith(f'openbr: {file}:2: server.prot: no such key; did you mean "port"')
    assert said.err == openbr("run", "--config", str(file)).err
    in_json = openbr("config", "check", "--config", str(file), "--json")
    assert (in_json.code, in_json.err) == (2, "")
    assert in_json.json() == {"ok": False, "error": said.err.removeprefix("openbr: ").strip()}


def test_path(openbr: Openbr, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert openbr("config", "path", "--config", str(file)).out == f"{file}\n"
    monkeypatch.setenv("OPENBR_CONFIG", str(file))
    assert openbr("config", "path").out == f"{file}\n"


def test_show_is_toml_that_says_where_each_value_came_from(openbr: Openbr, file: Path) -> None:
    text = openbr("config", "show", "--config", str(file)).out
    tree = tomllib.loads(text)
    assert tree["server"]["port"] == 8080
    assert tree["server"]["tls"] == {"cert": "/c.pem", "key": "/k.pem"}
    assert tree["local"]["threads"] == 3
    assert tree["providers"][0]["api_key"] == ["…6789"]
    assert tree["routes"][0]["deployments"] == ["cloud/m", "local/s"]
    origins = {
        line.partition(" ")[0]: line.partition("# ")[2]
        for line in text.splitlines()
        if " = " in line
    }
    assert origins["port"] == "file"
    assert origins["threads"] == "OPENBR_LOCAL__THREADS"
    assert origins["drain_s"] == "default"


def test_show_in_json(openbr: Openbr, file: Path, tmp_path: Path) -> None:
    tree = openbr("config", "show", "--config", str(file), "--json").json()
    assert tree["path"] == str(file) and tree["state"] == str(tmp_path / "state")
    assert tree["server"]["port"] == 8080
    assert tree["origins"]["server.port"] == str(file)
    assert tree["providers"][0]["name"] == "cloud"


def test_prices_are_shown_as_they_are_written(openbr: Openbr, file: Path) -> None:
    prices = (
        '{ "gpt-4.1" = { input = 2.5, output = 10, cached = 1.25 },'
        " m = { input = 0.0375, output = 1 } }"
    )
    file.write_text(
        '[[providers]]\nname = "a"\nbase_url = "http://a/v1"\n'
        f'prices = {prices}\n[[providers]]\nname = "b"\nbase_url = "http://b/v1"\n'
    )
    expected = tomllib.loads(f"prices = {prices}")["prices"]
    shown = tomllib.loads(openbr("config", "show", "--config", str(file)).out)["providers"]
    tree = openbr("config", "show", "--config", str(file), "--json").json()["providers"]
    for rows in (shown, tree):
        assert [row["prices"] for row in rows] == [expected, {}]


def test_show_without_a_file(openbr: Openbr) -> None:
    text = openbr("config", "show").out
    assert "(not there: defaults)" in text
    assert tomllib.loads(text)["server"] == {
        "bind": "loopback",
        "port": 18789,
        "tls": "off",
        "public_hosts": [],
        "drain_s": 30,
    }


def test_no_secret_is_shown(openbr: Openbr, file: Path) -> None:
    for words in (("show",), ("show", "--json"), ("check",), ("check", "--json"), ("path",)):
        said = openbr("config", *words, "--config", str(file))
        assert CANARY not in said.out + said.err
        assert CANARY[:-4] not in said.out + said.err
