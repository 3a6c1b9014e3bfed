"""Which requests are the same, by properties: what may differ, and what must not."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openbr.api.chat import parse_request
from openbr.cache.control import find_max_age
from openbr.cache.key import LEFT_OUT, request_key
from tests.cache.fakes import ANA, BIA, ELSEWHERE, HERE, NOBODY, make_cache, make_request

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts
)
trees = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4)
)
bodies = st.dictionaries(texts, trees, max_size=6)

decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def key_of(text: str | bytes, scope: int | str | None = 1, model: str = "p/m") -> bytes | None:
    return request_key("openai-chat", model, scope, decode_fields(text))


def shuffled(value: Any, draw: Any) -> Any:
    if isinstance(value, dict):
        names = draw(st.permutations(sorted(value)))
        return {name: shuffled(value[name], draw) for name in names}
    return [shuffled(one, draw) for one in value] if isinstance(value, list) else value


def respelled(value: Any, draw: Any) -> str:
    """The same JSON with other white space and other escapes."""
    space = draw(st.sampled_from(["", " ", "\n\t", "\r\n  "]))
    if isinstance(value, dict):
        inner = [f"{spell(name, draw)}{space}:{respelled(v, draw)}" for name, v in value.items()]
        return space + "{" + space + ",".join(inner) + "}" + space
    if isinstance(value, list):
        return "[" + space + ",".join(respelled(one, draw) for one in value) + "]" + space
    if isinstance(value, str):
        return space + spell(value, draw) + space
    return space + json.dumps(value) + space


def spell(text: str, draw: Any) -> str:
    how = draw(st.sampled_from(["plain", "ascii", "slash", "all"]))
    if how == "all":
        utf16 = text.encode("utf-16-be")
        pairs = [utf16[n : n + 2].hex() for n in range(0, len(utf16), 2)]
        return '"' + "".join(f"\\u{pair}" for pair in pairs) + '"'
    spelled = json.dumps(text, ensure_ascii=how == "ascii")
    return spelled.replace("/", "\\/") if how == "slash" else spelled


@given(body=bodies, data=st.data())
def test_order_space_and_escapes_do_not_matter(body: dict[str, Any], data: Any) -> None:
    plain = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    assert key_of(plain) is not None
    assert key_of(respelled(shuffled(body, data.draw), data.draw)) == key_of(plain)


@given(one=bodies, other=bodies)
def test_another_body_has_another_key(one: dict[str, Any], other: dict[str, Any]) -> None:
    def shaping(body: dict[str, Any]) -> str:
        left = {name: value for name, value in body.items() if name not in LEFT_OUT}
        return json.dumps(left, sort_keys=True)

    same = shaping(one) == shaping(other)
    assert (key_of(json.dumps(one)) == key_of(json.dumps(other))) == same


@given(body=bodies, name=texts, value=trees, data=st.data())
def test_every_field_shapes_the_answer(
    body: dict[str, Any], name: str, value: Any, data: Any
) -> None:
    body.pop(name, None)
    changed = key_of(json.dumps({**body, name: value})) != key_of(json.dumps(body))
    assert changed == (name not in LEFT_OUT)


@pytest.mark.parametrize("name", sorted(LEFT_OUT))
def test_fields_that_do_not_shape_it(name: str) -> None:
    assert key_of(json.dumps({"a": 1, name: "x"})) == key_of(json.dumps({"a": 1, name: ["y"]}))


def nested(value: Any, depth: int) -> Any:
    for _ in range(depth):
        value = {"in": [value]}
    return value


@given(value=trees, depth=st.integers(0, 20))
def test_depth_matters_and_is_seen_through(value: Any, depth: int) -> None:
    here = key_of(json.dumps({"tools": nested(value, depth)}))
    assert here == key_of(json.dumps({"tools": nested(value, depth)}, indent=1))
    assert here != key_of(json.dumps({"tools": nested(value, depth + 1)}))
    assert here != key_of(json.dumps({"tools": nested([value, None], depth)}))


@pytest.mark.parametrize("depth", [0, 1, 7])
def test_the_last_of_equal_names_wins(depth: int) -> None:
    def text(inner: str) -> str:
        return '{"a":' + '{"in":[' * depth + inner + "]}" * depth + "}"

    twice = text('{"x":1,"y":2,"\\u0078":3}')
    assert key_of(twice) == key_of(text('{"x":3,"y":2}')) == key_of(text('{"y":2,"x":3}'))
    assert key_of(twice) != key_of(text('{"x":1,"y":2}'))
    assert key_of('{"a":1,"a":2}') == key_of('{"a":2}')


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1", "2"),
        ("18446744073709551616", "18446744073709551617"),
        ("123456789012345678901234567890", "123456789012345678901234567891"),
        ("-9223372036854775809", "-9223372036854775810"),
        ("0.1", "0.2"),
        ("9007199254740992.0", "9007199254740993.0"),
        ("1e400", "1e401"),
        ("1e400", "null"),
        ("1", '"1"'),
        ("0.5", '"0.5"'),
        ("18446744073709551616", '"18446744073709551616"'),
        ('["ab"]', '["a","b"]'),
        ('["a",["b"]]', '["a","b"]'),
        ('{"a":"b"}', '["a","b"]'),
        ('""', "null"),
        ("[]", "{}"),
        ("false", "0"),
    ],
)
def test_nothing_is_taken_for_something_else(one: str, other: str) -> None:
    first, second = (key_of('{"a":' + text + "}") for text in (one, other))
    assert first is not None and second is not None
    assert first != second


def test_names_and_values_do_not_run_together() -> None:
    assert key_of('{"ab":"c"}') != key_of('{"a":"bc"}')
    assert key_of('{"a":"b","c":"d"}') != key_of('{"a":"b\\",\\"c\\":\\"d"}')
    assert key_of("{}", model="p/ma") != key_of('{"a":1}', model="p/m")


def test_what_cannot_be_read_has_no_key() -> None:
    deep = '{"a":' + "[" * 900 + "]" * 900 + "}"
    assert key_of(deep) is not None
    raw = msgspec.Raw(b"[" * 100_000 + b"]" * 100_000)
    assert request_key("openai-chat", "p/m", None, {"a": raw}) is None
    assert request_key("openai-chat", "p/m", None, {"a": msgspec.Raw(b"1" * 5000)}) is None
    assert request_key("openai-chat", "p/m", None, {"a": msgspec.Raw(b'"\\ud800"')}) is None


def test_callers_do_not_share_unless_the_operator_says_so() -> None:
    request = make_request()
    own, shared = make_cache(), make_cache(scope="shared")
    callers = (ANA, BIA, NOBODY)
    assert len({own.key(request, caller, HERE) for caller in callers}) == 3
    assert len({shared.key(request, caller, HERE) for caller in callers}) == 1
    assert own.key(request, ANA, HERE) == make_cache().key(request, ANA, HERE)
    assert own.key(request, NOBODY, HERE) != shared.key(request, NOBODY, HERE)


@pytest.mark.parametrize(
    "inside",
    [
        '{"role":"user","content":"mine","content":"yours"}',
        '{"role":"user","content":[{"type":"text","text":"mine","\\u0074ext":"yours"}]}',
    ],
)
def test_a_name_said_twice_inside_is_not_shared(inside: str) -> None:
    """An upstream that takes the first would answer "mine" where the key stands for "yours"."""
    body = f'{{"model":"m","temperature":0,"messages":[{inside}]}}'.encode()
    request = parse_request(body)
    assert make_cache(scope="shared").key(request, ANA, HERE) is None
    assert make_cache().key(request, ANA, HERE) is not None
    sound = parse_request(body.replace(b'"content":"mine",', b"").replace(b'"text":"mine",', b""))
    assert make_cache(scope="shared").key(sound, ANA, HERE) is not None


def test_the_served_deployment_takes_the_place_of_the_name() -> None:
    cache = make_cache()
    body = {"temperature": 0, "messages": [{"role": "user", "content": "hi"}]}
    names = ["default", "alpha", "fake/alpha"]
    requests = [make_request({"model": name, **body}) for name in names]
    assert len({cache.key(request, ANA, HERE) for request in requests}) == 1
    assert cache.key(requests[0], ANA, HERE) != cache.key(requests[0], ANA, ELSEWHERE)


@pytest.mark.parametrize(
    ("mode", "is_deterministic", "has_key"),
    [
        ("off", True, False),
        ("deterministic", True, True),
        ("deterministic", False, False),
        ("all", False, True),
    ],
)
def test_modes(mode: str, is_deterministic: bool, has_key: bool) -> None:
    request = make_request(is_deterministic=is_deterministic)
    assert (make_cache(mode=mode).key(request, ANA, HERE) is not None) is has_key


@pytest.mark.parametrize(
    ("header", "max_age_s"),
    [
        (None, float("inf")),
        ("", float("inf")),
        ("public, only-if-cached", float("inf")),
        ("no-store", None),
        ("max-age=5, No-Store", None),
        ("no-cache", 0.0),
        ("NO-CACHE, max-age=5", 0.0),
        ("max-age=0", 0.0),
        ("max-age=60", 60.0),
        ('max-age = "60"', 60.0),
        ("max-age=60,max-age=7", 7.0),
        ("max-age=-1", 0.0),
        ("max-age=x", 0.0),
        ("max-age", 0.0),
        ("max-age=\u0662", 0.0),
        ("max-age=" + "9" * 400, 0.0),
    ],
)
def test_cache_control(header: str | None, max_age_s: float | None) -> None:
    assert find_max_age(header) == max_age_s


def test_no_store_has_no_key() -> None:
    cache = make_cache()
    assert cache.key(make_request(cache_control="no-store"), ANA, HERE) is None
    same = {cache.key(make_request(cache_control=c), ANA, HERE) for c in (None, "no-cache")}
    assert len(same) == 1 and None not in same
