"""One config file, read: text, environment and flags merged, each refusal with its line.

In: a path, an environment, overrides. Out: Config, or ConfigError. The rules that live only here:
flags win over the environment, which wins over the file; an unknown key is refused with the nearest
known one; what may hold a credential is in no message.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, NoReturn

from openbr.config import Config
from openbr.config.sections import SECTIONS, TABLES, ProviderConfig, RouteConfig
from openbr.errors import ConfigError

_ENV_KEY = re.compile(r"^OPENBR_([A-Z]+)__([A-Z_0-9]+)$")
_VARIABLE = re.compile(r"\$\{([^}]*)\}")
_IDENTITY = {"providers": "name", "routes": "model"}


def default_path(environ: Mapping[str, str]) -> Path:
    return _folder(environ, "XDG_CONFIG_HOME", ".config") / "config.toml"


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


class Reader:
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
                elif f.default is MISSING and f.default_factory is MISSING:
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

        The row-th [[section]] is meant; a key that is missing there gives the line of its head, and
        one that is a table of its own ([section.key]) the line of that head.
        """
        here, seen, inside, best = "", -1, False, ""
        outside = {f"{section}.{key}", section or key}  # as a key above all [heads]
        for number, line in enumerate(self.text.splitlines(), 1):
            if head := re.match(r"\s*\[\[?\s*([^\]\s]+)\s*\]", line):
                here, inside = head[1], False
                seen += here == section
                found = here == section and row in (None, seen) and not best
                if key and row in (None, seen) and f"{here}.".startswith(f"{section}.{key}."):
                    return f":{number}"
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
