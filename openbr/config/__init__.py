"""TOML file + environment + flags -> one frozen Config, read once.

In: a path, an environment, overrides from the command line. Out: Config, or ConfigError that
names file, line, key, value and reason. The rules that live only here: which name in the
environment means which key; no other module reads the environment (the native layer asks
`load_native_flags`). values.py parses one value, sections.py lists the keys, reader.py reads a
file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from openbr.config.sections import (
    PORT,
    SECTIONS,
    TABLES,
    AuthConfig,
    CacheConfig,
    LimitsConfig,
    LocalConfig,
    NativeFlags,
    ProviderConfig,
    RouteConfig,
    ServerConfig,
)
from openbr.config.values import TLS, ModelPrice, parse_size

__all__ = [
    "PORT",
    "SECTIONS",
    "TABLES",
    "TLS",
    "AuthConfig",
    "CacheConfig",
    "Config",
    "LimitsConfig",
    "LocalConfig",
    "ModelPrice",
    "NativeFlags",
    "ProviderConfig",
    "RouteConfig",
    "ServerConfig",
    "load_native_flags",
    "parse_size",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    server: ServerConfig = ServerConfig()
    auth: AuthConfig = AuthConfig()
    cache: CacheConfig = CacheConfig()
    local: LocalConfig = LocalConfig()
    limits: LimitsConfig = LimitsConfig()
    providers: tuple[ProviderConfig, ...] = ()
    routes: tuple[RouteConfig, ...] = ()
    path: Path
    found: bool = False
    state: Path
    proxies: Mapping[str, str] = field(default_factory=dict, repr=False)
    origins: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)
    """Where a section's key got its value: {"server.port": "OPENBR_SERVER__PORT"}; the file's
    path for the file, the flag for the command line; a key that is not here has its default."""

    @property
    def store_path(self) -> Path:
        return self.state / "openbr.sqlite3"

    @property
    def answers_path(self) -> Path:
        return self.state / "answers.db"

    @property
    def models_path(self) -> Path:
        return self.state / "models"

    @property
    def tls_path(self) -> Path:
        return self.state / "tls"

    @staticmethod
    def load(
        path: Path | None = None,
        environ: Mapping[str, str] | None = None,
        overrides: Mapping[str, object] | None = None,
    ) -> Config:
        """Read the file, the environment and the flags, the later over the earlier.

        `overrides`: {"server.port": 8080}, as the command line gives them.
        Raises: ConfigError; a path that was asked for and is missing is one too.
        """
        from openbr.config.reader import Reader, default_path

        environ = os.environ if environ is None else environ
        asked = path or (Path(environ["OPENBR_CONFIG"]) if environ.get("OPENBR_CONFIG") else None)
        place = asked or default_path(environ)
        return Reader(place, environ).read(bool(asked), overrides or {})


def load_native_flags(environ: Mapping[str, str] | None = None) -> NativeFlags:
    """The flags of the native layer. Unset or empty is the default; false, 0, no, off are false."""
    environ = os.environ if environ is None else environ
    values = {
        f.name: environ[f.name].strip().lower() not in ("false", "0", "no", "off")
        for f in fields(NativeFlags)
        if environ.get(f.name, "").strip()
    }
    return NativeFlags(**values)
