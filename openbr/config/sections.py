"""Every key of the file: its section, default, parser and help. A new key is a new line.

In: nothing. Out: one frozen record a section, and the tables that name them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from openbr.config.values import (
    TLS,
    ModelPrice,
    one_of,
    parse_base_url,
    parse_bind,
    parse_boolean,
    parse_full_ids,
    parse_hosts,
    parse_name,
    parse_prices,
    parse_secrets,
    parse_size,
    parse_texts,
    parse_tls,
    seconds,
    whole,
)
from openbr.secret import Secret

PORT = 18789


def _key(default: Any, parse: Callable[[object], Any], help: str) -> Any:
    return field(default=default, metadata={"parse": parse, "help": help})


def _table(parse: Callable[[object], Any], help: str) -> Any:
    return field(default_factory=dict, metadata={"parse": parse, "help": help})


def _required(parse: Callable[[object], Any], help: str) -> Any:
    return field(metadata={"parse": parse, "help": help})


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    bind: str = _key("loopback", parse_bind, '"loopback", "lan" (every address) or one IP address')
    port: int = _key(PORT, whole(0, 65535), "TCP port; 0 takes any free one")
    tls: TLS = _key(TLS(), parse_tls, '"off", "auto" (own certificate) or { cert, key } files')
    public_hosts: tuple[str, ...] = _key((), parse_hosts, "further Host names to answer to")
    drain_s: float = _key(30.0, seconds(0, 3600), "how long running answers may finish at stop")


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthConfig:
    mode: str = _key(
        "auto",
        one_of("auto", "required"),
        '"auto" (open on loopback, a key elsewhere) or "required"',
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheConfig:
    mode: str = _key(
        "deterministic",
        one_of("deterministic", "all", "off"),
        'which answers are kept: "deterministic" (temperature 0 or a seed), "all" or "off"',
    )
    max_bytes: int = _key(32 * 1024**2, parse_size, "memory for kept answers")
    ttl_s: float = _key(3600.0, seconds(1, 7 * 86400), "how long an answer is kept")
    scope: str = _key(
        "caller",
        one_of("caller", "shared"),
        '"caller" (each key sees only its own) or "shared" (every caller sees all)',
    )
    disk_bytes: int = _key(0, parse_size, "disk for kept answers, to outlive a restart; 0 is none")


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalConfig:
    enabled: bool = _key(True, parse_boolean, "offer the local models")
    model: str = _key(
        "smollm2-135m", parse_name, "the local model that answers when none is chosen"
    )
    threads: int = _key(0, whole(0, 256), "threads of the worker; 0 is cores minus one")
    context: int = _key(2048, whole(256, 1 << 20), "context of the worker, in tokens")
    idle_unload_s: float = _key(300.0, seconds(1, 86400), "stop the worker after so long unused")


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitsConfig:
    max_body: int = _key(20 * 1024**2, parse_size, "largest request body")
    max_answer: int = _key(64 * 1024**2, parse_size, "largest answer of an upstream, not streamed")
    max_event: int = _key(16 * 1024**2, parse_size, "largest single event of a stream")
    concurrent_requests: int = _key(1000, whole(1, 100_000), "requests served at one time")
    body_timeout_s: float = _key(30.0, seconds(1, 3600), "longest silence inside a request body")
    connect_timeout_s: float = _key(5.0, seconds(0.1, 300), "time to reach an upstream")
    first_token_timeout_s: float = _key(60.0, seconds(0.1, 3600), "time to the first event")
    idle_timeout_s: float = _key(60.0, seconds(0.1, 3600), "longest silence inside a stream")
    total_timeout_s: float = _key(600.0, seconds(1, 86400), "longest whole answer")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderConfig:
    name: str = _required(parse_name, "its name, the first half of a model's full id")
    base_url: str = _required(parse_base_url, "address of its API, with /v1 where it has one")
    kind: str = _key("openai", one_of("openai"), "wire format")
    api_key: tuple[Secret, ...] = _key((), parse_secrets, "its key, best as ${NAME}")
    models: tuple[str, ...] = _key((), parse_texts, "models it has, where it cannot list them")
    prices: Mapping[str, ModelPrice] = _table(
        parse_prices,
        'US$ per million tokens: `{ "model" = { input = 2.5, output = 10, cached = 1.25 } }`,'
        ' `"*"` for every other model',
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteConfig:
    model: str = _required(parse_name, "the name that callers send")
    deployments: tuple[str, ...] = _required(parse_full_ids, "full ids, best first")
    consent: bool = _key(False, parse_boolean, "may fall back from this machine to a cloud")


@dataclass(frozen=True, slots=True, kw_only=True)
class NativeFlags:
    """Which accelerations are wished for. Whether they are active is `ultra.features()`."""

    USE_ULTRA_PERFORMANCE: bool = True
    USE_NATIVE_CACHE: bool = True
    USE_NATIVE_ARENA: bool = True
    USE_NATIVE_POOL: bool = True
    USE_UJSON: bool = True
    USE_LEGACY_MODE: bool = False


SECTIONS: Mapping[str, type] = {
    "server": ServerConfig,
    "auth": AuthConfig,
    "cache": CacheConfig,
    "local": LocalConfig,
    "limits": LimitsConfig,
}
TABLES: Mapping[str, type] = {"providers": ProviderConfig, "routes": RouteConfig}
