"""A key's value: from TOML, or text of the environment, to what the rooms use.

In: what was written. Out: a value, or ValueError that says what is wanted. `parse_x` is a parser;
`whole`, `seconds` and `one_of` make one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from openbr.secret import Secret

_SIZE = re.compile(r"^\s*([0-9]+(?:\.[0-9]+)?)\s*([KMG]i?B|B)?\s*$")
_UNITS = {"B": 1, "KB": 1000, "MB": 1000**2, "GB": 1000**3}
_UNITS |= {"KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}
_HOST = re.compile(r"^(?:[a-z0-9_](?:[a-z0-9_.-]*[a-z0-9_])?|[0-9a-f:.]*:[0-9a-f:.]*)$")
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")


def parse_boolean(value: object) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in ("true", "false", "1", "0"):
        return value.lower() in ("true", "1")
    raise ValueError("must be true or false")


def parse_text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("must be a string")
    if any(c < " " or c == "\x7f" for c in value):
        raise ValueError("must not hold control characters")
    return value


def whole(low: int, high: int) -> Callable[[object], int]:
    def parse(value: object) -> int:
        if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,15}", value.strip()):
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"must be a whole number from {low} to {high}")
        return value

    return parse


def seconds(low: float, high: float) -> Callable[[object], float]:
    def parse(value: object) -> float:
        if isinstance(value, str):
            try:
                value = float(value)
            except ValueError:
                value = None
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not low <= value <= high
        ):
            raise ValueError(f"must be a number of seconds from {low:g} to {high:g}")
        return float(value)

    return parse


def parse_size(value: object) -> int:
    """Bytes from a number or a text such as "32 MiB" or "20 MB"."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    match = _SIZE.match(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError('must be a size, such as "32 MiB" or a number of bytes')
    return int(float(match[1]) * _UNITS[match[2] or "B"])


def one_of(*words: str) -> Callable[[object], str]:
    def parse(value: object) -> str:
        if value not in words:
            raise ValueError("must be one of " + ", ".join(f'"{w}"' for w in words))
        return str(value)

    return parse


def parse_texts(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    if not isinstance(value, list):
        raise ValueError("must be a list of strings")
    return tuple(parse_text(item) for item in value)


def parse_hosts(value: object) -> tuple[str, ...]:
    """Names or addresses as a Host header holds them, without port, in lower case."""
    hosts = tuple(host.strip("[]").lower().rstrip(".") for host in parse_texts(value))
    if not all(_HOST.match(host) for host in hosts):
        raise ValueError('must be host names or addresses without port, such as "ai.home.lan"')
    return hosts


def parse_bind(value: object) -> str:
    text = parse_text(value).strip("[]")
    if text in ("loopback", "lan"):
        return text
    import ipaddress

    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise ValueError('must be "loopback", "lan" or an IP address of this machine') from None


@dataclass(frozen=True, slots=True, kw_only=True)
class TLS:
    """`mode`: off, auto (a certificate of our own) or files."""

    mode: str = "off"
    cert: Path | None = None
    key: Path | None = None


def parse_tls(value: object) -> TLS:
    if isinstance(value, TLS):
        return value
    if value in ("off", "auto"):
        return TLS(mode=str(value))
    if isinstance(value, dict) and set(value) == {"cert", "key"}:
        return TLS(
            mode="files",
            cert=Path(parse_text(value["cert"])).expanduser(),
            key=Path(parse_text(value["key"])).expanduser(),
        )
    raise ValueError('must be "off", "auto" or { cert = "file", key = "file" }')


def parse_name(value: object) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ValueError("must be lower-case letters, digits, '-', '_' or '.', at most 64")
    return value


def parse_base_url(value: object) -> str:
    text = parse_text(value).rstrip("/")
    parts = urlsplit(text)
    try:
        port_ok = parts.port is None or parts.port > 0
    except ValueError:
        port_ok = False
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_ok:
        raise ValueError('must be an address such as "http://127.0.0.1:11434/v1"')
    if parts.username or parts.password:
        raise ValueError("must not hold a password: use api_key")
    if parts.query or parts.fragment:
        raise ValueError("must not have a query or a fragment")
    return text


def parse_secrets(value: object) -> tuple[Secret, ...]:
    keys = parse_texts([value] if isinstance(value, str) else value)
    if any(not key or not key.isascii() for key in keys):
        raise ValueError("must be one key, or a list of keys, in ASCII")
    return tuple(Secret(key) for key in keys)


class ModelPrice(NamedTuple):
    """US$ per million tokens. `cached`: input that the provider had kept; None costs as input.

    A NamedTuple, because making a dataclass costs eight times as much at start.
    """

    input: float
    output: float
    cached: float | None = None


def parse_prices(value: object) -> Mapping[str, ModelPrice]:
    """A table of models, "*" for all others; no number that was written is in a refusal."""
    if not isinstance(value, dict):
        raise ValueError('must be a table: { "model" = { input = 2.5, output = 10.0 } }')
    return {_model_id(model): _price(model, price) for model, price in value.items()}


def _model_id(model: str) -> str:
    if not model or model != model.strip() or not model.isprintable():
        raise ValueError(f"{model!r} is not a model's id")
    return model


def _price(model: str, table: object) -> ModelPrice:
    if not isinstance(table, dict):
        raise ValueError(f'"{model}" must be a table: {{ input = 2.5, output = 10.0 }}')
    for key in table:
        if key not in ModelPrice._fields:
            known = ", ".join(ModelPrice._fields)
            raise ValueError(f'"{model}" has a price named {key!r}; known: {known}')
    for key in ("input", "output"):
        if key not in table:
            raise ValueError(f'"{model}" has no {key}, in US$ per million tokens')
    return ModelPrice(**{key: _dollars(model, key, price) for key, price in table.items()})


def _dollars(model: str, key: str, price: object) -> float:
    # NaN is in no range. The upper end is a hundred times the dearest model: a slip, not a price.
    if isinstance(price, bool) or not isinstance(price, (int, float)) or not 0 <= price <= 100_000:
        raise ValueError(
            f'"{model}".{key} must be a number of US$ per million tokens, from 0 to 100000'
        )
    return float(price)


def parse_full_ids(value: object) -> tuple[str, ...]:
    ids = parse_texts(value)
    split = [one.partition("/") for one in ids]
    if not ids or not all(provider and model for provider, _, model in split):
        raise ValueError("must be a list of full ids, provider/model")
    if len(set(ids)) != len(ids):
        raise ValueError("names a deployment twice")
    return ids
