"""Every key from file, environment and flag; every refusal with file, line, key and reason."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import pytest

from openbr.config import (
    SECTIONS,
    TABLES,
    TLS,
    Config,
    ModelPrice,
    NativeFlags,
    load_native_flags,
    parse_size,
)
from openbr.errors import ConfigError
from openbr.secret import Secret

CANARY = "sk-canary-0123456789"

Load = Callable[..., Config]
Refusal = Callable[..., str]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.toml"


@pytest.fixture
def load(file: Path) -> Load:
    def load(
        text: str = "",
        environ: Mapping[str, str] | None = None,
        overrides: Mapping[str, object] | None = None,
    ) -> Config:
        file.write_text(text, encoding="utf-8")
        return Config.load(file, {"HOME": "/home/ana", **(environ or {})}, overrides)

    return load


@pytest.fixture
def refusal(load: Load) -> Refusal:
    """The message of a refused config: one line, and never a secret."""

    def refuse(
        text: str = "",
        environ: Mapping[str, str] | None = None,
        overrides: Mapping[str, object] | None = None,
    ) -> str:
        with pytest.raises(ConfigError) as caught:
            load(text, environ, overrides)
        message = str(caught.value)
        assert "\n" not in message
        assert CANARY not in message
        return message

    return refuse


PROVIDER = '[[providers]]\nname = "ollama"\nbase_url = "http://127.0.0.1:11434/v1"\n'


# where things are


def test_no_file_is_needed(tmp_path: Path) -> None:
    config = Config.load(None, {"HOME": str(tmp_path)})
    assert not config.found
    assert config.path == tmp_path / ".config/openbr/config.toml"
    assert config.state == tmp_path / ".local/state/openbr"
    assert config.store_path == config.state / "openbr.sqlite3"
    assert config.models_path == config.state / "models"
    assert config.tls_path == config.state / "tls"
    assert config.answers_path == config.state / "answers.db"
    assert (config.server.bind, config.server.port) == ("loopback", 18789)
    assert (config.providers, config.routes, config.proxies) == ((), (), {})


def test_xdg_folders(tmp_path: Path) -> None:
    config = Config.load(
        None, {"XDG_CONFIG_HOME": str(tmp_path / "c"), "XDG_STATE_HOME": str(tmp_path / "s")}
    )
    assert config.path == tmp_path / "c/openbr/config.toml"
    assert config.state == tmp_path / "s/openbr"


def test_openbr_config_and_openbr_state(file: Path, tmp_path: Path) -> None:
    file.write_text("[server]\nport = 1\n")
    environ = {"OPENBR_CONFIG": str(file), "OPENBR_STATE": str(tmp_path / "x")}
    config = Config.load(None, environ)
    assert config.found
    assert config.server.port == 1
    assert config.state == tmp_path / "x"


def test_the_flag_goes_before_openbr_config(file: Path) -> None:
    file.write_text("[server]\nport = 2\n")
    assert Config.load(file, {"OPENBR_CONFIG": "/nowhere", "HOME": "/"}).server.port == 2


@pytest.mark.parametrize("by", ["flag", "environment"])
def test_a_file_that_was_asked_for_must_be_there(tmp_path: Path, by: str) -> None:
    path = tmp_path / "missing.toml"
    with pytest.raises(ConfigError, match=r"missing\.toml: no such config file"):
        if by == "flag":
            Config.load(path, {"HOME": "/"})
        else:
            Config.load(None, {"HOME": "/", "OPENBR_CONFIG": str(path)})


def test_a_folder_instead_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        Config.load(tmp_path, {"HOME": "/"})


def test_a_file_that_is_not_utf_8(file: Path) -> None:
    file.write_bytes(b"# caf\xe9\n")
    with pytest.raises(ConfigError, match="not UTF-8"):
        Config.load(file, {"HOME": "/"})


def test_a_byte_order_mark_is_no_mistake(file: Path) -> None:
    file.write_bytes(b"\xef\xbb\xbf[server]\nport = 5\n")
    assert Config.load(file, {"HOME": "/"}).server.port == 5


def test_not_toml_says_where(refusal: Refusal) -> None:
    message = refusal(f'[[providers]]\napi_key = "{CANARY}" oops\n')
    assert "not valid TOML" in message and "line 2" in message


# values


def test_every_section_from_the_file(load: Load, file: Path) -> None:
    config = load(
        """
        [server]
        bind = "192.168.1.5"
        port = 8080
        tls = { cert = "/c.pem", key = "/k.pem" }
        public_hosts = ["AI.home.lan.", "[2001:DB8::1]", "10.0.0.1"]
        drain_s = 5
        [auth]
        mode = "required"
        [local]
        enabled = false
        threads = 2
        [limits]
        max_body = "32 MiB"
        idle_timeout_s = 1.5
        [[providers]]
        name = "ollama"
        base_url = "http://127.0.0.1:11434/v1/"
        [[providers]]
        name = "cloud"
        base_url = "https://api.example.com/v1"
        api_key = ["${ONE}", "plain-key-0123456789"]
        models = ["m1", "org/m2"]
        [[routes]]
        model = "fast"
        deployments = ["ollama/a", "cloud/org/m2", "local/b"]
        consent = true
        """,
        {"ONE": CANARY},
    )
    assert config.found and config.path == file
    assert config.server.tls == TLS(mode="files", cert=Path("/c.pem"), key=Path("/k.pem"))
    assert config.server.public_hosts == ("ai.home.lan", "2001:db8::1", "10.0.0.1")
    assert (config.server.bind, config.server.port, config.server.drain_s) == (
        "192.168.1.5",
        8080,
        5.0,
    )
    assert config.auth.mode == "required"
    assert (config.local.enabled, config.local.threads) == (False, 2)
    assert (config.limits.max_body, config.limits.idle_timeout_s) == (32 * 1024**2, 1.5)
    ollama, cloud = config.providers
    assert (ollama.base_url, ollama.kind, ollama.api_key) == (
        "http://127.0.0.1:11434/v1",
        "openai",
        (),
    )
    assert cloud.api_key == (Secret(CANARY), Secret("plain-key-0123456789"))
    assert cloud.models == ("m1", "org/m2")
    assert config.routes[0].deployments == ("ollama/a", "cloud/org/m2", "local/b")
    assert config.routes[0].consent


def test_the_cache_is_for_one_caller_in_memory_by_default(load: Load) -> None:
    cache = load().cache
    assert (cache.mode, cache.scope, cache.disk_bytes) == ("deterministic", "caller", 0)
    assert (cache.max_bytes, cache.ttl_s) == (32 * 1024**2, 3600.0)
    text = '[cache]\nmode = "all"\nscope = "shared"\nmax_bytes = "1 MiB"\ndisk_bytes = "1 GiB"'
    cache = load(text, {"OPENBR_CACHE__TTL_S": "60"}).cache
    assert (cache.mode, cache.scope, cache.disk_bytes) == ("all", "shared", 1024**3)
    assert (cache.max_bytes, cache.ttl_s) == (1024**2, 60.0)


def test_config_is_frozen(load: Load) -> None:
    config = load()
    with pytest.raises(FrozenInstanceError):
        config.server = config.server  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        config.server.port = 1  # type: ignore[misc]


def test_every_key_has_help_and_a_default_or_is_required() -> None:
    for kind in (*SECTIONS.values(), *TABLES.values()):
        for field in fields(kind):
            assert field.metadata["help"], field.name
            assert callable(field.metadata["parse"]), field.name


@pytest.mark.parametrize(
    "value, size",
    [
        (0, 0),
        (1000, 1000),
        ("1000", 1000),
        ("5 B", 5),
        ("20 MB", 20_000_000),
        ("32 MiB", 32 * 1024**2),
        ("1.5KiB", 1536),
        ("1 GiB", 1024**3),
        (" 2 KB ", 2000),
    ],
)
def test_sizes(value: object, size: int) -> None:
    assert parse_size(value) == size


@pytest.mark.parametrize("value", [-1, True, "", "MiB", "1 mb", "-1 MB", "1 TB", "1e3", 1.5, None])
def test_what_is_no_size(value: object) -> None:
    with pytest.raises(ValueError, match="must be a size"):
        parse_size(value)


@pytest.mark.parametrize("bind", ["loopback", "lan", "0.0.0.0", "::", "[::1]", "10.1.2.3"])
def test_binds(load: Load, bind: str) -> None:
    assert load(f'[server]\nbind = "{bind}"').server.bind == bind.strip("[]")


@pytest.mark.parametrize("mode", ["off", "auto"])
def test_tls_modes(load: Load, mode: str) -> None:
    assert load(f'[server]\ntls = "{mode}"').server.tls == TLS(mode=mode)


@pytest.mark.parametrize(
    "line, reason",
    [
        ("[server]\nport = -1", "whole number from 0 to 65535"),
        ("[server]\nport = 65536", "whole number from 0 to 65535"),
        ("[server]\nport = true", "whole number"),
        ("[server]\nport = 80.5", "whole number"),
        ('[server]\nport = ""', "whole number"),
        ('[server]\nbind = "localhost"', 'must be "loopback", "lan" or an IP address'),
        ('[server]\nbind = "1.2.3"', "an IP address"),
        ('[server]\nbind = ""', "an IP address"),
        ("[server]\nbind = 1", "must be a string"),
        ('[server]\ntls = "on"', 'must be "off", "auto" or'),
        ('[server]\ntls = { cert = "a" }', 'must be "off", "auto" or'),
        ("[server]\ntls = true", 'must be "off", "auto" or'),
        ('[server]\npublic_hosts = ["https://x"]', "host names or addresses"),
        ('[server]\npublic_hosts = ["x:80"]', "host names or addresses"),
        ('[server]\npublic_hosts = ["a b"]', "host names or addresses"),
        ("[server]\npublic_hosts = [1]", "must be a string"),
        ("[server]\npublic_hosts = 1", "must be a list of strings"),
        ("[server]\ndrain_s = nan", "number of seconds from 0 to 3600"),
        ("[server]\ndrain_s = inf", "number of seconds"),
        ("[server]\ndrain_s = -0.1", "number of seconds"),
        ('[server]\ndrain_s = "soon"', "number of seconds"),
        ('[auth]\nmode = "open"', 'one of "auto", "required"'),
        ("[auth]\nmode = 1", "one of"),
        ('[cache]\nmode = "some"', 'one of "deterministic", "all", "off"'),
        ('[cache]\nscope = "all"', 'one of "caller", "shared"'),
        ('[cache]\nmax_bytes = "many"', "must be a size"),
        ("[cache]\ndisk_bytes = -1", "must be a size"),
        ("[cache]\nttl_s = 0", "number of seconds from 1 to 604800"),
        ("[local]\nenabled = 1", "true or false"),
        ('[local]\nmodel = "Big Model"', "lower-case letters"),
        ('[limits]\nmax_body = "1 mb"', "must be a size"),
        ("[limits]\nidle_timeout_s = 0", "number of seconds"),
        ("[limits]\nconcurrent_requests = 0", "whole number from 1"),
        (PROVIDER + 'kind = "gopher"', 'one of "openai"'),
        (PROVIDER + 'models = "a\\nb"', "control characters"),
        (PROVIDER + "api_key = 5", "must be a list of strings"),
        (PROVIDER + 'api_key = ""', "one key, or a list of keys"),
        (PROVIDER + 'api_key = "chavê"', "ASCII"),
    ],
)
def test_refused_values(refusal: Refusal, file: Path, line: str, reason: str) -> None:
    message = refusal(line)
    number = line.count("\n") + 1
    key = line.splitlines()[-1].split(" = ")[0]
    assert message.startswith(f"{file}:{number}: ")
    assert f".{key}" in message
    assert reason in message


@pytest.mark.parametrize(
    "url, reason",
    [
        ("api.example.com", "must be an address such as"),
        ("ftp://x", "must be an address such as"),
        ("http://", "must be an address such as"),
        ("http://x:99999", "must be an address such as"),
        ("http://x:0", "must be an address such as"),
        ("http://ana:pw@x/v1", "use api_key"),
        ("http://x/v1?key=1", "must not have a query"),
        ("http://x/v1#a", "must not have a query or a fragment"),
    ],
)
def test_refused_addresses(refusal: Refusal, url: str, reason: str) -> None:
    assert reason in refusal(f'[[providers]]\nname = "a"\nbase_url = "{url}"')


# unknown keys


@pytest.mark.parametrize(
    "text, line, near",
    [
        ("[server]\nprot = 1\n", 2, 'did you mean "port"?'),
        ("# c\n\n[sever]\nport = 1\n", 3, 'did you mean "server"?'),
        ("[limits]\nmax_bdy = 1\n[server]\nport = 1\n", 2, 'did you mean "max_body"?'),
        (PROVIDER + 'apikey = "' + CANARY + '"\n', 4, 'did you mean "api_key"?'),
        (PROVIDER + '[[routes]]\nmodel = "a"\nmodle = "b"\n', 6, 'did you mean "model"?'),
        ("zzz = 1\n", 1, "known: server, auth, cache, local, limits, providers, routes"),
        ("server.prot = 1\n", 1, 'did you mean "port"?'),
        (PROVIDER + PROVIDER.replace("ollama", "b") + "x_key = 1\n", 7, "no such key"),
    ],
)
def test_an_unknown_key_is_refused_with_line_and_nearest(
    refusal: Refusal, file: Path, text: str, line: int, near: str
) -> None:
    message = refusal(text)
    assert message.startswith(f"{file}:{line}: ")
    assert "no such key" in message and near in message


def test_wrong_kinds_of_tables(refusal: Refusal, file: Path) -> None:
    assert refusal("server = 3").startswith(f"{file}:1: server: must be a table: [server]")
    assert "must be tables: [[providers]]" in refusal('[providers]\nname = "a"\n')
    assert "must be tables: [[routes]]" in refusal("routes = [1]")


# providers and routes


def test_a_missing_key_names_the_line_of_its_table(refusal: Refusal, file: Path) -> None:
    message = refusal(PROVIDER + '\n[[providers]]\nname = "b"\n')
    assert message == f"{file}:5: providers.base_url: is missing in this table"


def test_a_provider_is_there_once(refusal: Refusal, file: Path) -> None:
    message = refusal(PROVIDER + PROVIDER)
    assert message == f"{file}:5: providers.name = 'ollama': is there twice"


def test_local_is_the_name_of_the_local_models(refusal: Refusal) -> None:
    assert "built-in local models" in refusal(PROVIDER.replace("ollama", "local"))


def test_a_route_is_there_once(refusal: Refusal, file: Path) -> None:
    route = '[[routes]]\nmodel = "fast"\ndeployments = ["local/a"]\n'
    assert refusal(route + route) == f"{file}:5: routes.model = 'fast': is there twice"


def test_a_route_names_only_known_providers(refusal: Refusal, file: Path) -> None:
    route = '[[routes]]\nmodel = "{}"\ndeployments = [\n  "local/a",\n  "{}/m",\n]\n'
    message = refusal(PROVIDER + route.format("one", "ollama") + route.format("two", "olama"))
    assert message.startswith(f"{file}:14: routes.deployments = 'olama/m'")
    assert 'did you mean "ollama"?' in message


@pytest.mark.parametrize(
    "deployments, reason",
    [
        ("[]", "full ids"),
        ('["a"]', "full ids"),
        ('["/a"]', "full ids"),
        ('["a/"]', "full ids"),
        ('["local/a", "local/a"]', "twice"),
    ],
)
def test_refused_routes(refusal: Refusal, deployments: str, reason: str) -> None:
    assert reason in refusal(f'[[routes]]\nmodel = "r"\ndeployments = {deployments}\n')


# prices


def test_prices_of_a_provider(load: Load) -> None:
    config = load(
        PROVIDER + 'prices = { "gpt-4o" = { input = 2.5, output = 10, cached = 1.25 }, '
        '"*" = { input = 0, output = 0.5 } }\n'
    )
    assert config.providers[0].prices == {
        "gpt-4o": ModelPrice(2.5, 10.0, 1.25),
        "*": ModelPrice(0.0, 0.5, None),
    }
    assert load(PROVIDER).providers[0].prices == {}


def test_prices_in_tables_of_their_own(load: Load) -> None:
    config = load(PROVIDER + '[providers.prices]\n"org/m.1" = { input = 1, output = 2 }\n')
    assert config.providers[0].prices == {"org/m.1": ModelPrice(1.0, 2.0)}


@pytest.mark.parametrize(
    "prices, reason",
    [
        ("3", "must be a table"),
        ("[]", "must be a table"),
        ('"cheap"', "must be a table"),
        ('{ "m" = 3 }', '"m" must be a table: { input = 2.5, output = 10.0 }'),
        ('{ "" = { input = 1, output = 1 } }', "'' is not a model's id"),
        ('{ " m" = { input = 1, output = 1 } }', "' m' is not a model's id"),
        ('{ "a\\nb" = { input = 1, output = 1 } }', "'a\\nb' is not a model's id"),
        (
            '{ "m" = { input = 1, outptu = 1 } }',
            "\"m\" has a price named 'outptu'; known: input, output, cached",
        ),
        ('{ "m" = { input = 1 } }', '"m" has no output, in US$ per million tokens'),
        ('{ "m" = { output = 1 } }', '"m" has no input, in US$ per million tokens'),
        ('{ "m" = { input = -1, output = 1 } }', '"m".input must be a number of US$'),
        ('{ "m" = { input = 1, output = nan } }', '"m".output must be a number of US$'),
        ('{ "m" = { input = 1, output = inf } }', '"m".output must be a number of US$'),
        ('{ "m" = { input = 1, output = 100001 } }', "from 0 to 100000"),
        ('{ "m" = { input = true, output = 1 } }', '"m".input must be a number of US$'),
        (f'{{ "m" = {{ input = "{CANARY}", output = 1 }} }}', '"m".input must be a number'),
        ('{ "m" = { input = "${KEY}", output = 1 } }', '"m".input must be a number'),
        ('{ "m" = { input = 1, output = 1, cached = "x" } }', '"m".cached must be a number'),
    ],
)
def test_refused_prices_name_file_line_model_and_price(
    refusal: Refusal, file: Path, prices: str, reason: str
) -> None:
    second = PROVIDER.replace("ollama", "cloud")
    message = refusal(PROVIDER + second + f"prices = {prices}\n", {"KEY": CANARY})
    assert message.startswith(f"{file}:7: providers.prices")
    assert reason in message


@pytest.mark.parametrize(
    "table",
    ['[providers.prices]\n"m" = { input = -1, output = 1 }', "[providers.prices.m]\ninput = 1"],
)
def test_refused_prices_in_a_table_of_their_own(refusal: Refusal, file: Path, table: str) -> None:
    second = PROVIDER.replace("ollama", "cloud")
    message = refusal(f"{PROVIDER}{second}\n{table}\n")
    assert message.startswith(f'{file}:8: providers.prices: "m"')


# environment and flags


def test_the_environment_goes_over_the_file_and_flags_over_both(load: Load, file: Path) -> None:
    environ = {"OPENBR_SERVER__PORT": "2", "OPENBR_SERVER__BIND": "lan"}
    config = load("[server]\nport = 1\ndrain_s = 9\n", environ, {"server.port": 3})
    assert (config.server.port, config.server.bind, config.server.drain_s) == (3, "lan", 9.0)
    assert config.origins == {
        "server.port": "--port",
        "server.bind": "OPENBR_SERVER__BIND",
        "server.drain_s": str(file),
    }


def test_the_environment_in_every_type(load: Load) -> None:
    config = load(
        "",
        {
            "OPENBR_LOCAL__ENABLED": "FALSE",
            "OPENBR_SERVER__PUBLIC_HOSTS": "a.lan, b.lan",
            "OPENBR_SERVER__TLS": "auto",
            "OPENBR_LIMITS__MAX_BODY": "1 MiB",
            "OPENBR_LIMITS__CONNECT_TIMEOUT_S": "2.5",
            "OPENBR_AUTH__MODE": "required",
        },
    )
    assert not config.local.enabled
    assert config.server.public_hosts == ("a.lan", "b.lan")
    assert config.server.tls.mode == "auto"
    assert config.limits.max_body == 1024**2
    assert config.limits.connect_timeout_s == 2.5
    assert config.auth.mode == "required"


def test_refused_values_name_the_variable_or_the_flag(refusal: Refusal) -> None:
    assert refusal("", {"OPENBR_SERVER__PORT": "99999"}).startswith("OPENBR_SERVER__PORT = '99999'")
    assert refusal("", {}, {"server.port": "x"}).startswith("--port = 'x': must be a whole number")
    assert refusal("", {}, {"server.bind": "x"}).startswith("--bind = 'x': must be")


@pytest.mark.parametrize(
    "name", ["OPENBR_SERVER__PROT", "OPENBR_SERVER_PORT", "OPENBR_SEVER__PORT"]
)
def test_unknown_names_in_the_environment(refusal: Refusal, name: str) -> None:
    message = refusal("", {name: "1"})
    assert message.startswith(f"{name}: no such key in the environment")
    assert 'did you mean "OPENBR_SERVER__PORT"?' in message


def test_other_names_in_the_environment_are_left_alone(load: Load) -> None:
    load("", {"OPENBR_REQUIRE_NATIVE": "1", "OPENBR": "x", "openbr_server__prot": "1", "X__Y": "1"})


def test_variables_in_values(load: Load) -> None:
    config = load(
        '[server]\nbind = "${WHERE}"\ntls = { cert = "${D}/c", key = "${D}/k" }\n'
        '[[providers]]\nname = "a"\nbase_url = "http://${HOST}:${PORT}/v1"\napi_key = "${KEY}"\n',
        {"WHERE": "lan", "D": "/d", "HOST": "h", "PORT": "80", "KEY": "k-${NOT}-again"},
    )
    assert config.server.bind == "lan"
    assert config.server.tls == TLS(mode="files", cert=Path("/d/c"), key=Path("/d/k"))
    assert config.providers[0].base_url == "http://h:80/v1"
    assert config.providers[0].api_key == (Secret("k-${NOT}-again"),)


@pytest.mark.parametrize("environ", [{}, {"KEY": ""}])
def test_an_unset_variable_fails_loudly(
    refusal: Refusal, file: Path, environ: dict[str, str]
) -> None:
    message = refusal(PROVIDER + 'api_key = "${KEY}"\n', environ)
    assert message == (f"{file}:4: providers.api_key: the environment variable KEY is not set")


def test_proxies_as_curl_reads_them(load: Load) -> None:
    environ = {"HTTP_PROXY": "http://a", "https_proxy": "http://b", "HTTPS_PROXY": "http://c"}
    config = load("", environ | {"NO_PROXY": "x.lan"})
    assert config.proxies == {"http": "http://a", "https": "http://b", "no": "x.lan"}
    cgi = load("", environ | {"REQUEST_METHOD": "GET"})
    assert cgi.proxies == {"https": "http://b"}


# secrets


@pytest.mark.parametrize(
    "text",
    [
        f'[providers]\nname = "a"\napi_key = "{CANARY}"\n',
        f'providers = "{CANARY}"\n',
        f'providers = ["{CANARY}"]\n',
        f'[server]\napi_key = "{CANARY}"\n',
        f'server = "{CANARY}"\n',
        f'api_key = "{CANARY}"\n',
        PROVIDER + f'api_key = "{CANARY}\\n"\n',
        PROVIDER + f'api_key = ["{CANARY}", 5]\n',
        PROVIDER + f'api_key = {{ key = "{CANARY}" }}\n',
        f'[[providers]]\nname = {{ api_key = "{CANARY}" }}\nbase_url = "http://x"\n',
        f'[[providers]]\nname = "a"\nbase_url = "http://ana:{CANARY}@x/v1"\n',
        f'[[providers]]\nname = "a"\nbase_url = "http://x/v1?key={CANARY}"\n',
        '[[providers]]\nname = "a"\nbase_url = "gopher://${KEY}/"\n',
        '[[providers]]\nname = "${KEY} "\nbase_url = "http://x"\n',
        '[server]\npublic_hosts = ["${KEY}!"]\n',
        '[[routes]]\nmodel = "r"\ndeployments = ["${KEY}"]\n',
        '[limits]\nmax_body = "${KEY}"\n',
        f'[[providers]]\nname = "a"\napi_key = "{CANARY}"\n',
    ],
)
def test_no_message_shows_a_secret(refusal: Refusal, text: str) -> None:
    refusal(text, {"KEY": CANARY})  # the fixture looks for the canary


def test_no_repr_shows_a_secret(load: Load) -> None:
    config = load(
        PROVIDER + 'api_key = "${KEY}"\n',
        {"KEY": CANARY, "https_proxy": f"http://ana:{CANARY}@proxy"},
    )
    assert config.providers[0].api_key[0].reveal() == CANARY
    for text in (repr(config), str(config), f"{config.providers[0].api_key[0]}"):
        assert CANARY not in text
        assert CANARY[:-4] not in text


# native flags


def test_native_flags_by_default() -> None:
    assert load_native_flags({}) == NativeFlags()
    assert NativeFlags().USE_ULTRA_PERFORMANCE and not NativeFlags().USE_LEGACY_MODE


@pytest.mark.parametrize("word", ["false", "False", "0", "no", "OFF", " off "])
def test_native_flags_that_are_off(word: str) -> None:
    flags = load_native_flags({"USE_NATIVE_CACHE": word, "USE_UJSON": "true"})
    assert not flags.USE_NATIVE_CACHE and flags.USE_UJSON and flags.USE_NATIVE_POOL


@pytest.mark.parametrize("word, wished", [("true", True), ("1", True), ("", False)])
def test_legacy_mode_and_an_empty_variable(word: str, wished: bool) -> None:
    assert load_native_flags({"USE_LEGACY_MODE": word}).USE_LEGACY_MODE is wished
