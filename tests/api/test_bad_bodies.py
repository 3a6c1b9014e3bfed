"""Bodies that the hot path only skims: what is no JSON is refused wherever it stands, what is sound
goes on as it came, and what the upstream does not like is the upstream's 400."""

from __future__ import annotations

import json
from typing import Any

import pytest
from asgi import call
from fake_upstream import OpenAIUpstream, error

from openbr.app import App

CHAT = "/v1/chat/completions"
PLACES = {
    "a field that nobody here knows": '{"model":"fake/alpha","messages":[{}],"x":%s}',
    "inside one": '{"model":"fake/alpha","messages":[{}],"x":{"y":[1,{"z":%s}]}}',
    "a message": '{"model":"fake/alpha","messages":[{"role":"user","content":%s}]}',
    "a later message": '{"model":"fake/alpha","messages":[{},{"content":{"a":%s}}]}',
    "tools": '{"tools":[{"function":{"parameters":%s}}],"model":"fake/alpha","messages":[{}]}',
    "the first of equal names": '{"x":%s,"model":"fake/alpha","messages":[{}],"x":1}',
    "the last": '{"model":"fake/alpha","messages":[{}],"user":%s}',
}
BROKEN = [
    "01", "-01", "1.", ".5", "-", "+1", "1e", "1e+", "0x10", "1_000", "NaN", "Infinity",
    "-Infinity", "nan", "True", "None", "undefined", "tru", "nul", "'a'", '"a', 'a"', '"\\x41"',
    '"\\u12"', '"\\u12G4"', '"\\"', '"\t"', '"\n"', '"\x00"', '"a"b', "[1,]", "[,1]", "[1 2]",
    '{"a":1,}', '{"a" 1}', '{"a":}', "{a:1}", "{1:1}", "[", "{", "]", "}", "[}", "1,2", "",
    "/* c */ 1", "1 // c", "\ufeff1", "\xa0" + "1",
]  # fmt: skip
SOUND = [
    "0", "-0", "-0.0", "1E400", "1e-400", "123456789012345678901234567890", "0.1000000000000000055",
    '"\\u00e7\\ud83d\\ude00\\/\\b\\f\\n\\r\\t\\\\\\""', '"ção 😀 \u2028\x7f"', '"\\u0000"',
    "null", "true", "false", "[ ]", "{ }", '{"":{"":[]}}', " \t\r\n1 \t\r\n",
    "[" * 100 + "]" * 100, '{"a":1,"a":2}',
]  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_what_is_no_json_is_refused_wherever_it_stands(serve: Any, place: str) -> None:
    async def act(app: App, upstream: OpenAIUpstream) -> None:
        for text in BROKEN:
            body = (PLACES[place] % text).encode()
            with pytest.raises(ValueError):
                json.loads(body, parse_constant=_refuse)
            answer = await call(app, "POST", CHAT, body=body)
            said = answer.json()["error"]
            assert (text, answer.status, said["param"]) == (text, 400, None)
            assert said["type"] == "invalid_request_error"
        for raw in (b'"\xff"', b'"\xc3"', b'"\xed\xa0\x80"', b'"\xc0\x80"', b'"\xf4\x90\x80\x80"'):
            body = PLACES[place].encode().replace(b"%s", raw)
            answer = await call(app, "POST", CHAT, body=body)
            assert (raw, answer.status) == (raw, 400)
        assert upstream.chats == []

    serve(act)


def _refuse(name: str) -> None:
    raise ValueError(name)


@pytest.mark.parametrize("place", PLACES)
def test_what_is_sound_goes_on_as_it_came(serve: Any, place: str) -> None:
    """Kept or not, streamed or not: the same bytes."""
    more = ("", '"temperature":0,', '"stream":true,', '"temperature":0,"stream":true,')

    async def act(app: App, upstream: OpenAIUpstream) -> None:
        for text in SOUND:
            for fields in more:
                body = (PLACES[place] % text).replace("{", "{" + fields, 1)
                answer = await call(app, "POST", CHAT, body=body.encode())
                assert (text, answer.status) == (text, 200)
                if place != "the first of equal names":
                    assert text.strip().encode() in upstream.chats[-1].body
                else:
                    assert upstream.chats[-1].json()["x"] == 1

    serve(act)


WRONG = {
    "model": ["null", "1", "[]", "{}", "true", '""', '"a\\u0000b"'],
    "messages": ["null", "{}", '"x"', "1", "[]", "[ ]", "[[]]", "[null]", '["x"]', "[1]"],
    "stream": ["0", "1", '"true"', "[]", "{}"],
    "temperature": ['"0"', "[]", "{}", "true", "1e999"],
    "top_p": ['"1"', "[1]", "false"],
    "n": ["1.5", '"1"', "true", "[]"],
    "seed": ['"7"', "7.5", "{}", "true"],
    "max_tokens": ['"7"', "7.5", "[]"],
    "max_completion_tokens": ['"7"', "7.5", "[]"],
    "stream_options": ["1", "[]", '"x"', '{"include_usage":1}', '{"include_usage":"yes"}'],
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_types_say_which_field(serve: Any, name: str) -> None:
    async def act(app: App, upstream: OpenAIUpstream) -> None:
        for text in WRONG[name]:
            fields = {"model": '"fake/alpha"', "messages": "[{}]", name: text}
            body = "{" + ",".join(f'"{key}":{value}' for key, value in fields.items()) + "}"
            answer = await call(app, "POST", CHAT, body=body.encode())
            said = answer.json()["error"]
            assert (text, answer.status) == (text, 400)
            assert said["param"].partition("[")[0] == name
            assert set(said) == {"message", "type", "param", "code"}
        assert upstream.chats == []

    serve(act)


@pytest.mark.parametrize("body", ["", "  ", "null", "[]", '"x"', "1", "{}{}", "\ufeff{}", "\x00"])
def test_bodies_that_are_no_object(serve: Any, body: str) -> None:
    async def act(app: App, upstream: OpenAIUpstream) -> None:
        answer = await call(app, "POST", CHAT, body=body.encode())
        assert (answer.status, answer.json()["error"]["param"]) == (400, None)

    serve(act)


@pytest.mark.parametrize("stream", ["true", "false"])
@pytest.mark.parametrize("temperature", ["0", "1"])
def test_what_the_upstream_does_not_like_is_its_own_400(
    serve: Any, stream: str, temperature: str
) -> None:
    """A later message that is no object, a role that nobody knows: sound JSON, and its matter."""

    async def act(app: App, upstream: OpenAIUpstream) -> None:
        upstream.failures["alpha"] = error(
            400, "messages[1] is odd", type="invalid_request_error", code="odd_message"
        )
        body = (
            f'{{"model":"fake/alpha","stream":{stream},"temperature":{temperature},'
            '"messages":[{"role":"nobody"},7]}'
        )
        answer = await call(app, "POST", CHAT, body=body.encode())
        said = answer.json()["error"]
        assert (answer.status, said["code"], said["type"]) == (
            400,
            "odd_message",
            "invalid_request_error",
        )
        assert "messages[1] is odd" in said["message"]
        assert b'{"role":"nobody"},7]' in upstream.chats[0].body

    serve(act)
