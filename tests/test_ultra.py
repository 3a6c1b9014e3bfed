"""The public face of the native layer: JSON and hashes whichever library serves, and the truth."""

import hashlib
import json
import math
import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openbr import ultra


@pytest.fixture(params=["ujson", "json"])
def codec(request, monkeypatch):
    monkeypatch.delenv("USE_LEGACY_MODE", raising=False)
    monkeypatch.delenv("USE_ULTRA_PERFORMANCE", raising=False)
    monkeypatch.setenv("USE_UJSON", "true" if request.param == "ujson" else "false")
    ultra._codec.cache_clear()
    assert ultra._codec().name.startswith(request.param)
    yield request.param
    ultra._codec.cache_clear()


NOT_JSON = [
    *("", " ", "01", "-01", "1.", ".5", "+1", "-", "1e", "0x1", "1_0", "1 2", "NaN", "[NaN]"),
    *("Infinity", "-Infinity", "nul", "True", "[1,]", "[,1]", '{"a":1,}', '{"a"}', "{1:2}"),
    *("{'a':1}", "[1", '"a', '"a\nb"', '"\\x41"', '"\\u12g4"', '"\\ud800"', '"\\udc00\\ud800"'),
    *("// c\n1", "\ufeff1", "\x0c1", "\xa01", "[" * 100_000, '{"a":' * 100_000, "1" * 5000),
]


@pytest.mark.parametrize("text", NOT_JSON, ids=lambda text: ascii(text[:12]))
@pytest.mark.parametrize("as_bytes", [False, True], ids=["str", "bytes"])
def test_what_is_not_json_is_refused(codec, text, as_bytes):
    with pytest.raises(ValueError):
        ultra.parse_json(text.encode() if as_bytes else text)


@pytest.mark.parametrize(
    "data", [b'"\xff"', b'["\xc3"]', b'"\xed\xa0\x80"', b'"\xc0\x80"', b'\xff\xfe"\x00']
)
def test_what_is_not_utf8_is_refused(codec, data):
    with pytest.raises(ValueError):
        ultra.parse_json(data)


@pytest.mark.parametrize("data", [None, 1, [], "1".encode])
def test_what_is_not_text_is_refused(codec, data):
    with pytest.raises(TypeError):
        ultra.parse_json(data)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        (" [1 , 2]\n", [1, 2]),
        ('{"a":1,"a":2}', {"a": 2}),
        ("-0", 0),
        ("1E2", 100.0),
        ("1e999", math.inf),
        ("18446744073709551616", 2**64),
        ('"\\ud83d\\ude00\\/\\u0000"', "\U0001f600/\x00"),
        ('{"":[]}', {"": []}),
        ("[" * 500 + "]" * 500, None),
    ],
    ids=lambda value: str(value)[:20],
)
def test_json_is_read(codec, text, value):
    for data in (text, text.encode(), bytearray(text.encode()), memoryview(text.encode())):
        read = ultra.parse_json(data)
        if value is not None:
            assert read == value
            assert type(read) is type(value)


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=20,
)


def _both(call, *args):
    """What ujson and the json of Python give, or the type of what they raise."""
    answers = []
    for flag in ("true", "false"):
        os.environ["USE_UJSON"] = flag
        ultra._codec.cache_clear()
        try:
            answers.append(call(*args))
        except Exception as exc:
            answers.append(type(exc))
    return answers


@pytest.fixture
def clean_flags(monkeypatch):
    for name in ("USE_LEGACY_MODE", "USE_ULTRA_PERFORMANCE", "USE_UJSON"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("USE_UJSON", "true")
    yield
    ultra._codec.cache_clear()


def test_both_write_the_same(clean_flags):
    @given(values)
    @settings(max_examples=300, deadline=None)
    def check(value):
        native, pure = _both(ultra.stringify_json, value)
        assert native == pure
        assert _both(ultra.parse_json, native) == [json.loads(native)] * 2

    check()


def test_both_read_the_same(clean_flags):
    pieces = list('[]{}:,"\\ \n0123456789.-+eE') + [
        "true",
        "null",
        "NaN",
        "\\u",
        "d800",
        "é",
        "1e5",
    ]

    @given(st.lists(st.sampled_from(pieces), max_size=12).map("".join))
    @settings(max_examples=500, deadline=None)
    def check(text):
        native, pure = _both(ultra.parse_json, text)
        assert native == pure
        assert type(native) is type(pure)

    check()


@pytest.mark.parametrize("value", [math.nan, math.inf, [-math.inf], {"a": math.nan}])
def test_numbers_that_json_lacks_are_refused(codec, value):
    with pytest.raises(ValueError):
        ultra.stringify_json(value)


def test_nests_without_end_are_refused(codec):
    endless = []
    endless.append(endless)
    deep = []
    for _ in range(100_000):
        deep = [deep]
    for value in (endless, deep):
        with pytest.raises(ValueError):
            ultra.stringify_json(value)


@pytest.mark.parametrize("value", [b"x", {1, 2}, object(), 1j, [bytearray()], {"a": iter([])}])
def test_other_types_are_refused(codec, value):
    with pytest.raises(TypeError):
        ultra.stringify_json(value)


def test_json_is_written_without_white_space_and_beyond_ascii(codec):
    value = {"a": [1, 2.5, 1e-7, 1e22], "é/": '</"\n\x00'}
    assert ultra.stringify_json(value) == '{"a":[1,2.5,1e-07,1e+22],"é/":"</\\"\\n\\u0000"}'
    assert ultra.stringify_json("not a number: 1e-7") == '"not a number: 1e-7"'


class TestHashes:
    EMPTY_BLAKE3 = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
    EMPTY_XXH3 = "99aa06d3014798d86001c324468d497f"

    def test_known_digests(self):
        assert ultra.blake3_hash(b"").hex() == self.EMPTY_BLAKE3
        assert ultra.xxh3_hash(b"").hex() == self.EMPTY_XXH3

    @pytest.mark.parametrize("function", [ultra.blake3_hash, ultra.xxh3_hash])
    def test_bytes_like_only(self, function):
        assert function(b"abc") == function(bytearray(b"abc")) == function(memoryview(b"abc"))
        assert function(b"abc") != function(b"abd")
        for data in ("abc", None, 1, [1]):
            with pytest.raises(TypeError):
                function(data)

    def test_batch_is_one_after_the_other(self):
        items = [b"", b"a", b"b" * 100_000]
        assert ultra.hash_batch(items) == [ultra.blake3_hash(item) for item in items]
        assert ultra.hash_batch(iter(())) == []
        with pytest.raises(TypeError):
            ultra.hash_batch(["a"])

    def test_in_pieces(self):
        data = hashlib.sha256(b"seed").digest() * 5000
        hasher = ultra.create_blake3_hasher()
        for start in range(0, len(data), 777):
            hasher.update(data[start : start + 777])
        assert hasher.digest() == ultra.blake3_hash(data)


class TestCache:
    def test_the_defaults(self):
        cache = ultra.create_cache()
        assert (cache.max_entries, cache.ttl_s, cache.max_bytes) == (1000, 3600, None)
        assert cache.policy == "lru"

    def test_everything_is_passed_on(self):
        told = []
        cache = ultra.create_cache(
            2,
            5,
            max_bytes=10,
            policy="sieve",
            size_of=lambda key, value: value,
            on_evict=lambda *call: told.append(call),
            clock=lambda: 0.0,
        )
        cache.set("a", 6), cache.set("b", 6)
        assert told == [("a", 6, "full")]
        assert (cache.ttl_s, cache.max_bytes, cache.policy) == (5, 10, "sieve")


class TestInfo:
    def test_every_part_is_named_and_pure_ones_have_a_reason(self):
        parts = ultra.info().parts
        assert {"cache", "json", "blake3", "xxh3"} <= {part.name for part in parts}
        for part in parts:
            assert part.kind in ("native", "pure")
            assert (part.reason is None) == (part.kind == "native")
        assert ultra.info().find("cache") in parts
        assert ultra.info().find("nothing") is None

    def test_says_what_serves(self, codec):
        part = ultra.info().find("json")
        assert part.kind == ("native" if codec == "ujson" else "pure")
        assert part.library.startswith(codec)
        assert part.loaded

    def test_a_ujson_that_does_not_load_is_heard(self, clean_flags, monkeypatch, caplog):
        monkeypatch.setitem(sys.modules, "ujson", None)
        monkeypatch.setattr(ultra, "find_spec", lambda name: object())
        ultra._codec.cache_clear()
        assert ultra.parse_json("[1]") == [1]
        part = ultra.info().find("json")
        assert part.kind == "pure"
        assert "ujson does not load" in part.reason
        assert "ujson does not load" in caplog.text
        assert ultra.features().USE_UJSON is False

    def test_without_ujson(self, clean_flags, monkeypatch):
        monkeypatch.setattr(ultra, "find_spec", lambda name: None)
        ultra._codec.cache_clear()
        assert ultra.parse_json("[1]") == [1]
        assert ultra.info().find("json").reason == "ujson is not installed"
        assert ultra.info().find("blake3").kind == "missing"

    def test_import_loads_nothing_that_can_wait(self):
        code = (
            "import sys, openbr.ultra as u; str(u.info()), u.features(), u.create_cache();"
            "print([m for m in ('ujson', 'blake3', 'xxhash') if m in sys.modules])"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.stdout.strip() == "[]", done.stderr
