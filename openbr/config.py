"""TOML file + environment + flags -> one frozen Config, read once.

In: a path, an environment, overrides from the command line. Out: Config, or ConfigError that
names file, line, key, value and reason. The rules that live only here: every key, its default
and its help; which name in the environment means which key; no other module reads the environment
(the native layer asks `load_native_flags`).

A key's whole truth is its field below: default, parser, help. A new key is a new line.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

from openbr.errors import ConfigError
from openbr.records import Secret

PORT = 18789
_ENV_KEY = re.compile(r"^OPENBR_([A-Z]+)__([A-Z_0-9]+)$")
_VARIABLE = re.compile(r"\$\{([^}]*)\}")
_SIZE = re.compile(r"^\s*([0-9]+(?:\.[0-9]+)?)\s*([KMG]i?B|B)?\s*$")
_UNITS = {"B": 1, "KB": 1000, "MB": 1000**2, "GB": 1000**3}
_UNITS |= {"KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}
_HOST = re.compile(r"^(?:[a-z0-9_](?:[a-z0-9_.-]*[a-z0-9_])?|[0-9a-f:.]*:[0-9a-f:.]*)$")
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")


# Parsers: value from TOML, or text from the environment -> value; ValueError says what is wanted.


def _boolean(value: object) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in ("true", "false", "1", "0"):
        return value.lower() in ("true", "1")
    raise ValueError("must be true or false")


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("must be a string")
    if any(c < " " or c == "\x7f" for c in value):
        raise ValueError("must not hold control characters")
    return value


def _whole(low: int, high: int) -> Callable[[object], int]:
    def parse(value: object) -> int:
        if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,15}", value.strip()):
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"must be a whole number from {low} to {high}")
        return value

    return parse


def _seconds(low: float, high: float) -> Callable[[object], float]:
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


def _one_of(*words: str) -> Callable[[object], str]:
    def parse(value: object) -> str:
        if value not in words:
            raise ValueError("must be one of " + ", ".join(f'"{w}"' for w in words))
        return str(value)

    return parse


def _texts(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    if not isinstance(value, list):
        raise ValueError("must be a list of strings")
    return tuple(_text(item) for item in value)


def _hosts(value: object) -> tuple[str, ...]:
    """Names or addresses as a Host header holds them, without port, in lower case."""
    hosts = tuple(host.strip("[]").lower().rstrip(".") for host in _texts(value))
    if not all(_HOST.match(host) for host in hosts):
        raise ValueError('must be host names or addresses without port, such as "ai.home.lan"')
    return hosts


def _bind(value: object) -> str:
    text = _text(value).strip("[]")
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


def _tls(value: object) -> TLS:
    if isinstance(value, TLS):
        return value
    if value in ("off", "auto"):
        return TLS(mode=str(value))
    if isinstance(value, dict) and set(value) == {"cert", "key"}:
        return TLS(
            mode="files",
            cert=Path(_text(value["cert"])).expanduser(),
            key=Path(_text(value["key"])).expanduser(),
        )
    raise ValueError('must be "off", "auto" or { cert = "file", key = "file" }')


def _name(value: object) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ValueError("must be lower-case letters, digits, '-', '_' or '.', at most 64")
    return value


def _base_url(value: object) -> str:
    text = _text(value).rstrip("/")
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


def _secrets(value: object) -> tuple[Secret, ...]:
    keys = _texts([value] if isinstance(value, str) else value)
    if any(not key or not key.isascii() for key in keys):
        raise ValueError("must be one key, or a list of keys, in ASCII")
    return tuple(Secret(key) for key in keys)


def _full_ids(value: object) -> tuple[str, ...]:
    ids = _texts(value)
    split = [one.partition("/") for one in ids]
    if not ids or not all(provider and model for provider, _, model in split):
        raise ValueError("must be a list of full ids, provider/model")
    if len(set(ids)) != len(ids):
        raise ValueError("names a deployment twice")
    return ids


def _key(default: Any, parse: Callable[[object], Any], help: str) -> Any:
    return field(default=default, metadata={"parse": parse, "help": help})


def _required(parse: Callable[[object], Any], help: str) -> Any:
    return field(metadata={"parse": parse, "help": help})


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    bind: str = _key("loopback", _bind, '"loopback", "lan" (every address) or one IP address')
    port: int = _key(PORT, _whole(0, 65535), "TCP port; 0 takes any free one")
    tls: TLS = _key(TLS(), _tls, '"off", "auto" (own certificate) or { cert, key } files')
    public_hosts: tuple[str, ...] = _key((), _hosts, "further Host names to answer to")
    drain_s: float = _key(30.0, _seconds(0, 3600), "how long running answers may finish at stop")


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthConfig:
    mode: str = _key(
        "auto",
        _one_of("auto", "required"),
        '"auto" (open on loopback, a key elsewhere) or "required"',
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalConfig:
    enabled: bool = _key(True, _boolean, "offer the local models")
    model: str = _key("smollm2-135m", _name, "the local model that answers when none is chosen")
    threads: int = _key(0, _whole(0, 256), "threads of the worker; 0 is cores minus one")
    context: int = _key(2048, _whole(256, 1 << 20), "context of the worker, in tokens")
    idle_unload_s: float = _key(300.0, _seconds(1, 86400), "stop the worker after so long unused")


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitsConfig:
    max_body: int = _key(20 * 1024**2, parse_size, "largest request body")
    max_answer: int = _key(64 * 1024**2, parse_size, "largest answer of an upstream, not streamed")
    max_event: int = _key(16 * 1024**2, parse_size, "largest single event of a stream")
    concurrent_requests: int = _key(1000, _whole(1, 100_000), "requests served at one time")
    body_timeout_s: float = _key(30.0, _seconds(1, 3600), "longest silence inside a request body")
    connect_timeout_s: float = _key(5.0, _seconds(0.1, 300), "time to reach an upstream")
    first_token_timeout_s: float = _key(60.0, _seconds(0.1, 3600), "time to the first event")
    idle_timeout_s: float = _key(60.0, _seconds(0.1, 3600), "longest silence inside a stream")
    total_timeout_s: float = _key(600.0, _seconds(1, 86400), "longest whole answer")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderConfig:
    name: str = _required(_name, "its name, the first half of a model's full id")
    base_url: str = _required(_base_url, "address of its API, with /v1 where it has one")
    kind: str = _key("openai", _one_of("openai"), "wire format")
    api_key: tuple[Secret, ...] = _key((), _secrets, "its key, best as ${NAME}")
    models: tuple[str, ...] = _key((), _texts, "models it has, where it cannot list them")


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteConfig:
    model: str = _required(_name, "the name that callers send")
    deployments: tuple[str, ...] = _required(_full_ids, "full ids, best first")
    consent: bool = _key(False, _boolean, "may fall back from this machine to a cloud")


@dataclass(frozen=True, slots=True, kw_only=True)
class NativeFlags:
    """Which accelerations are wished for. Whether they are active is `ultra.features()`."""

    USE_ULTRA_PERFORMANCE: bool = True
    USE_NATIVE_CACHE: bool = True
    USE_NATIVE_ARENA: bool = True
    USE_NATIVE_POOL: bool = True
    USE_UJSON: bool = True
    USE_LEGACY_MODE: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    server: ServerConfig = ServerConfig()
    auth: AuthConfig = AuthConfig()
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
        environ = os.environ if environ is None else environ
        asked = path or (Path(environ["OPENBR_CONFIG"]) if environ.get("OPENBR_CONFIG") else None)
        place = asked or _folder(environ, "XDG_CONFIG_HOME", ".config") / "config.toml"
        return _Reader(place, environ).read(bool(asked), overrides or {})


SECTIONS: Mapping[str, type] = {
    "server": ServerConfig,
    "auth": AuthConfig,
    "local": LocalConfig,
    "limits": LimitsConfig,
}
TABLES: Mapping[str, type] = {"providers": ProviderConfig, "routes": RouteConfig}
_IDENTITY = {"providers": "name", "routes": "model"}


def _folder(environ: Mapping[str, str], variable: str, fallback: str) -> Path:
    if base := environ.get(variable):
        return Path(base).absolute() / "openbr"
    try:
        home = Path(environ.get("HOME") or Path.home())
    except RuntimeError as exc:  # no HOME, and no such user in the user database
        raise ConfigError(
            "this user has no home folder; set OPENBR_CONFIG to a file and OPENBR_STATE to a folder"
        ) from exc
    return home.absolute() / fallback / "openbr"


class _Reader:
    """One reading of one file. Keeps the text, so that an error can name its line."""

    def __init__(self, path: Path, environ: Mapping[str, str]) -> None:
        self.path = path
        self.environ = environ
        self.text = ""
        self.origins: dict[str, str] = {}

    def read(self, asked: bool, overrides: Mapping[str, object]) -> Config:
        found = True
        try:
            self.text = self.path.read_text(encoding="utf-8-sig")
        except FileNotFoundError:
            found = False
            if asked:
                raise ConfigError(f"{self.path}: no such config file") from None
        except OSError as exc:
            raise ConfigError(f"{self.path}: cannot be read: {exc.strerror}") from exc
        except UnicodeDecodeError as exc:
            raise ConfigError(f"{self.path}: cannot be read: not UTF-8 ({exc.reason})") from exc
        tree = self._parse_text()
        self._refuse_unknown(tree, [*SECTIONS, *TABLES], "")
        sections = {name: self._section(name, tree.get(name, {}), overrides) for name in SECTIONS}
        tables = {name: self._tables(name, tree.get(name, [])) for name in TABLES}
        self._check_environment()
        self._check_routes(tables["providers"], tables["routes"])
        state = self.environ.get("OPENBR_STATE")
        return Config(
            **sections,
            **tables,  # type: ignore[arg-type]  # the tables above pair names and types
            path=self.path,
            found=found,
            state=Path(state).absolute()
            if state
            else _folder(self.environ, "XDG_STATE_HOME", ".local/state"),
            proxies=_proxies(self.environ),
            origins=self.origins,
        )

    def _parse_text(self) -> dict[str, Any]:
        if not self.text:
            return {}
        import tomllib

        try:
            return tomllib.loads(self.text)
        except tomllib.TOMLDecodeError as exc:
            raise ConfigError(f"{self.path}: not valid TOML: {exc}") from exc

    def _section(self, name: str, table: object, overrides: Mapping[str, object]) -> Any:
        if not isinstance(table, dict):
            self._fail(name, None, table, f"must be a table: [{name}]")
        kind = SECTIONS[name]
        self._refuse_unknown(table, [f.name for f in fields(kind)], name)
        values = {}
        for f in fields(kind):
            parse = f.metadata["parse"]
            variable = f"OPENBR_{name}__{f.name}".upper()
            if f"{name}.{f.name}" in overrides:
                value = overrides[f"{name}.{f.name}"]
                origin = "--" + f.name.replace("_", "-")
                values[f.name] = self._parse(parse, value, origin)
            elif variable in self.environ:
                origin = variable
                values[f.name] = self._parse(parse, self.environ[variable], origin)
            elif f.name in table:
                origin = str(self.path)
                values[f.name] = self._value(parse, table[f.name], name, f.name)
            else:
                continue
            self.origins[f"{name}.{f.name}"] = origin
        return kind(**values)

    def _tables(self, name: str, rows: object) -> tuple[Any, ...]:
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            self._fail(name, None, rows, f"must be tables: [[{name}]]")
        kind, identity = TABLES[name], _IDENTITY[name]
        made: list[Any] = []
        for number, row in enumerate(rows):
            self._refuse_unknown(row, [f.name for f in fields(kind)], name, number)
            values = {}
            for f in fields(kind):
                if f.name in row:
                    parse, value = f.metadata["parse"], row[f.name]
                    values[f.name] = self._value(parse, value, name, f.name, number)
                elif f.default is MISSING:
                    self._fail(name, f.name, None, "is missing in this table", number)
            record = kind(**values)
            key = getattr(record, identity)
            if any(getattr(other, identity) == key for other in made):
                self._fail(name, identity, key, "is there twice", number)
            if name == "providers" and key == "local":
                reason = "is the name of the built-in local models"
                self._fail(name, identity, key, reason, number)
            made.append(record)
        return tuple(made)

    def _check_routes(
        self, providers: tuple[ProviderConfig, ...], routes: tuple[RouteConfig, ...]
    ) -> None:
        names = ["local", *(p.name for p in providers)]
        for number, route in enumerate(routes):
            for deployment in route.deployments:
                provider = deployment.partition("/")[0]
                if provider not in names:
                    reason = f"names no provider of this file{_nearest(provider, names)}"
                    self._fail("routes", "deployments", deployment, reason, number)

    def _value(
        self,
        parse: Callable[[object], Any],
        value: object,
        section: str,
        key: str,
        row: int | None = None,
    ) -> Any:
        try:
            return parse(self._expand(value))
        except ValueError as exc:
            self._fail(section, key, value, str(exc), row)

    def _parse(self, parse: Callable[[object], Any], value: object, origin: str) -> Any:
        try:
            return parse(value)
        except ValueError as exc:
            raise ConfigError(f"{origin} = {value!r}: {exc}") from exc

    def _expand(self, value: object) -> object:
        if isinstance(value, list):
            return [self._expand(item) for item in value]
        if isinstance(value, dict):
            return {key: self._expand(item) for key, item in value.items()}
        if not isinstance(value, str):
            return value

        def one(match: re.Match[str]) -> str:
            found = self.environ.get(match[1])
            if not found:
                raise ValueError(f"the environment variable {match[1]} is not set")
            return found

        return _VARIABLE.sub(one, value)

    def _check_environment(self) -> None:
        known = {
            f"OPENBR_{s}__{f.name}".upper() for s, kind in SECTIONS.items() for f in fields(kind)
        }
        slips = {name.replace("__", "_") for name in known}
        for name in self.environ:
            if name in slips or (_ENV_KEY.match(name) and name not in known):
                raise ConfigError(
                    f"{name}: no such key in the environment{_nearest(name, sorted(known))}"
                )

    def _refuse_unknown(
        self, table: Mapping[str, object], known: list[str], section: str, row: int | None = None
    ) -> None:
        for key in table:
            if key not in known:
                self._fail(section, key, None, f"no such key{_nearest(key, known)}", row)

    def _fail(
        self, section: str, key: str | None, value: object, reason: str, row: int | None = None
    ) -> NoReturn:
        dotted = ".".join(part for part in (section, key) if part)
        shown = f" = {value!r}" if _is_showable(key, value) else ""
        line = self._line(section, key, value, row)
        raise ConfigError(f"{self.path}{line}: {dotted}{shown}: {reason}")

    def _line(self, section: str, key: str | None, value: object, row: int | None) -> str:
        """ ":12" when the key can be found by reading the text again, else nothing.

        The row-th [[section]] is meant; a key that is missing there gives the line of its head.
        """
        here, seen, inside, best = "", -1, False, ""
        outside = {f"{section}.{key}", section or key}  # as a key above all [heads]
        for number, line in enumerate(self.text.splitlines(), 1):
            if head := re.match(r"\s*\[\[?\s*([^\]\s]+)\s*\]", line):
                here, inside = head[1], False
                seen += here == section
                found = here == section and row in (None, seen) and not best
                if found or (not section and here == key):
                    best = f":{number}"
                    if key is None or not section:
                        return best
            elif start := re.match(r"\s*([\w.\"' -]+?)\s*=", line):
                name = re.sub(r"[\"' ]", "", start[1])
                in_table = here == section and row in (None, seen)
                inside = name == key if in_table and here else not here and name in outside
                best = f":{number}" if inside else best
            if inside and (not isinstance(value, str) or value in line):
                return f":{number}"
        return best


def _is_showable(key: str | None, value: object) -> bool:
    """Whether a refused value may stand in a message, as written, before ${NAME} is replaced.

    Not if it may hold a credential: an api_key, a whole table that may hold one, an address with a
    password or a query.
    """
    if key is None or key == "api_key":
        return False
    if isinstance(value, list):
        return all(isinstance(item, str) and _is_showable(key, item) for item in value)
    if isinstance(value, str):
        return not ("://" in value and any(c in value for c in "@?#"))
    return isinstance(value, (int, float))


def _nearest(name: str, known: list[str]) -> str:
    import difflib

    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f'; did you mean "{near[0]}"?' if near else "; known: " + ", ".join(known[:12])


def _proxies(environ: Mapping[str, str]) -> dict[str, str]:
    """HTTP_PROXY, HTTPS_PROXY and NO_PROXY as curl reads them: lower case first, and HTTP_PROXY
    never in capitals under CGI (REQUEST_METHOD set), where a request could have set it."""
    found = {}
    for scheme in ("http", "https", "all", "no"):
        value = environ.get(f"{scheme}_proxy")
        if value is None and not (scheme == "http" and "REQUEST_METHOD" in environ):
            value = environ.get(f"{scheme}_proxy".upper())
        if value:
            found[scheme] = value
    return found


def load_native_flags(environ: Mapping[str, str] | None = None) -> NativeFlags:
    """The flags of the native layer. Unset or empty is the default; false, 0, no, off are false."""
    environ = os.environ if environ is None else environ
    values = {
        f.name: environ[f.name].strip().lower() not in ("false", "0", "no", "off")
        for f in fields(NativeFlags)
        if environ.get(f.name, "").strip()
    }
    return NativeFlags(**values)
