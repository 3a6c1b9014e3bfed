"""The same answer as events and as a body, in all four directions, at a hit and after a join."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openbr.cache.replay import (
    EventFolder,
    body_of,
    encode_usage_event,
    events_of,
    has_sound_end,
    has_sound_end_body,
    is_usage_event,
    payloads,
    read_text,
)
from tests.cache.conftest import Run
from tests.cache.fakes import (
    COUNTS,
    DONE,
    USAGE,
    USAGE_EVENT,
    Desk,
    FakeStream,
    Opener,
    body_of_text,
    chunk,
    completion,
    make_cache,
    read_all,
    text_events,
)
from tests.cache.recorded import RECORDED, recorded_batches

NAMES = sorted(RECORDED)


def trees(events: bytes) -> list[Any]:
    return [json.loads(payload) for payload in payloads(events)]


def encode(tree: Any) -> bytes:
    return msgspec.json.encode(tree)


@pytest.mark.parametrize("name", NAMES)
def test_events_become_the_body_that_was_recorded(name: str) -> None:
    assert json.loads(body_of(b"".join(recorded_batches(name)))) == RECORDED[name][1]


@pytest.mark.parametrize("name", NAMES)
def test_a_body_and_its_events_say_the_same(name: str) -> None:
    body = encode(RECORDED[name][1])
    events, tail_bytes, usage_event = events_of(body)
    assert events.endswith(DONE) and tail_bytes == len(DONE)
    assert json.loads(body_of(events + usage_event)) == RECORDED[name][1]
    assert all(tree["object"] == "chat.completion.chunk" for tree in trees(events + usage_event))
    assert [tree["choices"] for tree in trees(usage_event)] == [[]]
    assert has_sound_end_body(body)


def test_events_of_a_body_are_what_clients_add_up() -> None:
    events, _, _ = events_of(encode(RECORDED["parallel tools"][1]))
    first, last = (tree["choices"][0] for tree in trees(events))
    assert first["delta"]["role"] == "assistant" and first["finish_reason"] is None
    assert [one["index"] for one in first["delta"]["tool_calls"]] == [0, 1]
    assert (last["delta"], last["finish_reason"]) == ({}, "tool_calls")


def test_the_openai_client_adds_them_up_to_the_same() -> None:
    from openai.lib.streaming.chat import ChatCompletionStreamState
    from openai.types.chat import ChatCompletionChunk

    for name in ("text", "parallel tools", "two choices", "logprobs"):
        body = RECORDED[name][1]
        events, _, usage_event = events_of(encode(body))
        state = ChatCompletionStreamState()
        for tree in trees(events + usage_event):
            state.handle_chunk(ChatCompletionChunk.model_validate(tree))
        added = state.get_final_completion().model_dump(exclude_unset=True)
        for choice, said in zip(added["choices"], body["choices"], strict=True):
            assert choice["message"]["content"] == said["message"]["content"]
            assert choice["finish_reason"] == said["finish_reason"]
            calls = choice["message"].get("tool_calls") or []
            assert [
                (c["id"], c["function"]["name"], c["function"]["arguments"]) for c in calls
            ] == [
                (c["id"], c["function"]["name"], c["function"]["arguments"])
                for c in said["message"].get("tool_calls", [])
            ]


@given(cuts=st.lists(st.integers(0, 9), max_size=9), name=st.sampled_from(NAMES))
def test_a_folder_does_not_care_how_events_come(cuts: list[int], name: str) -> None:
    batches = recorded_batches(name)
    folder = EventFolder()
    start = 0
    for end in [*sorted(min(cut, len(batches)) for cut in cuts), len(batches)]:
        folder.feed(b"".join(batches[start:end]))
        start = end
    assert folder.body() == body_of(b"".join(batches))


def test_numbers_keep_their_digits() -> None:
    odd = b'"logprobs":{"content":[{"logprob":-0.10000000000000000001,"n":1e400}]}'
    body = body_of_text("x").replace(b'"logprobs":null', odd)
    events, _, _ = events_of(body)
    assert b"-0.10000000000000000001" in events and b"1e400" in events
    assert b"-0.10000000000000000001" in body_of(events) and b"1e400" in body_of(events)


def test_the_visible_text() -> None:
    events = b"".join(recorded_batches("two choices"))
    assert read_text(events) == "headstails"
    assert read_text(b"".join(recorded_batches("parallel tools"))) == ""
    assert read_text(b"") == read_text(DONE) == ""


@pytest.mark.parametrize("finish", ["stop", "tool_calls", "function_call"])
def test_sound_ends(finish: str) -> None:
    assert has_sound_end(b"".join(text_events("a", finish=finish)), finish)
    assert has_sound_end_body(body_of_text("a", finish))


@pytest.mark.parametrize("finish", ["length", "content_filter", "", "error"])
def test_ends_that_are_not_sound(finish: str) -> None:
    assert not has_sound_end(b"".join(text_events("a", finish=finish)), finish)
    assert not has_sound_end_body(body_of_text("a", finish))
    assert not has_sound_end(b"".join(text_events("a")), None)


def test_every_choice_must_end_soundly() -> None:
    one = chunk({"content": "a"}) + chunk({}, "stop")
    cut = one + chunk({"content": "b"}, index=1) + chunk({}, "length", index=1)
    assert has_sound_end(one + DONE, "stop")
    assert not has_sound_end(cut + chunk({}, "stop") + DONE, "stop")
    assert not has_sound_end(chunk({"content": "b"}, index=1) + one + DONE, "stop")
    assert has_sound_end(b"".join(recorded_batches("two choices")), "stop")
    both = json.loads(body_of_text("a"))
    both["choices"].append({**both["choices"][0], "index": 1, "finish_reason": "length"})
    assert not has_sound_end_body(encode(both))
    assert not has_sound_end_body(b'{"choices":[]}') and not has_sound_end_body(b"{}")
    assert not has_sound_end_body(b'{"choices":7}') and not has_sound_end_body(b"<html>")


def test_the_event_that_tells_the_usage() -> None:
    assert is_usage_event(USAGE_EVENT[6:-2])
    assert not is_usage_event(chunk({"content": "a"}, usage=COUNTS)[6:-2])
    assert not is_usage_event(b'{"choices":[],"usage":null}')
    assert is_usage_event(b'{"choices": [ ], "usage": {}}')
    made = trees(encode_usage_event(chunk({"content": "a"}), USAGE))
    assert made == trees(USAGE_EVENT)


# Through the cache.


def streamed(name: str) -> FakeStream:
    finish = RECORDED[name][1]["choices"][0]["finish_reason"]
    return FakeStream(recorded_batches(name), finish=finish, usage=USAGE)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("way", ["hit", "join"])
def test_stream_to_stream_and_body(name: str, way: str, run: Run) -> None:
    async def main() -> None:
        desk = Desk(make_cache())
        never = Opener(AssertionError("asked again"))
        stream = streamed(name)
        first = await desk.chat(Opener(stream), include_usage=True)
        if way == "hit":
            fresh = await read_all(first)
        with_usage = await desk.chat(never, include_usage=True)
        without = await desk.chat(never)
        body = desk.complete(never)
        if way == "join":
            fresh = await read_all(first)
        assert fresh == b"".join(recorded_batches(name))
        assert await read_all(with_usage) == fresh
        assert await read_all(without) == b"".join(recorded_batches(name, with_usage=False))
        whole = await body
        assert json.loads(whole.body) == RECORDED[name][1]
        for answer in (with_usage.answer, without.answer, whole.answer):
            assert (answer.usage, answer.deployment) == (USAGE, first.answer.deployment)
            assert answer.finish_reason == RECORDED[name][1]["choices"][0]["finish_reason"]
            assert answer is not first.answer
        assert first.answer.cache == "miss"
        assert (with_usage.answer.cache, without.answer.cache) == (way, way)
        assert stream.closed and never.calls == 0

    run(main())


@pytest.mark.parametrize("name", NAMES)
def test_body_to_body_and_stream(name: str, run: Run) -> None:
    async def main() -> None:
        desk = Desk(make_cache())
        never = Opener(AssertionError("asked again"))
        body = encode(RECORDED[name][1])
        finish = RECORDED[name][1]["choices"][0]["finish_reason"]
        fresh = await desk.complete(Opener(completion(body, finish_reason=finish)))
        again = await desk.complete(never)
        assert fresh.body == again.body == body
        assert (fresh.answer.cache, again.answer.cache) == ("miss", "hit")
        with_usage = await read_all(await desk.chat(never, include_usage=True))
        without = await read_all(await desk.chat(never))
        assert json.loads(body_of(with_usage)) == RECORDED[name][1]
        assert "usage" not in json.loads(body_of(without))
        assert with_usage.endswith(DONE) and without.endswith(DONE)
        assert trees(with_usage)[-1]["usage"] == COUNTS
        assert never.calls == 0

    run(main())


def test_usage_that_was_not_streamed_is_told_to_who_asks(run: Run) -> None:
    """The first caller did not want it, so its events do not hold it; the next one wants it."""

    async def main() -> None:
        desk = Desk(make_cache())
        batches = text_events("a", "b")
        first = await desk.chat(Opener(FakeStream(batches, usage=USAGE)))
        joined = await desk.chat(Opener(), include_usage=True)
        assert await read_all(first) == b"".join(batches)
        expected = b"".join([*batches[:-1], USAGE_EVENT, DONE])
        assert await read_all(joined) == expected
        assert await read_all(await desk.chat(Opener(), include_usage=True)) == expected
        assert json.loads((await desk.complete(Opener())).body)["usage"] == COUNTS

    run(main())


def test_usage_inside_the_last_choice_is_not_told_twice(run: Run) -> None:
    async def main() -> None:
        desk = Desk(make_cache())
        last = json.loads(chunk({}, "stop")[6:-2])
        last_event = b"data: " + encode({**last, "usage": COUNTS}) + b"\n\n"
        batches = [chunk({"content": "a"}), last_event + DONE]
        stream = FakeStream(batches, usage=USAGE)
        assert await read_all(await desk.chat(Opener(stream), include_usage=True)) == b"".join(
            batches
        )
        assert json.loads((await desk.complete(Opener())).body)["usage"] == COUNTS

    run(main())


def test_one_batch_with_everything(run: Run) -> None:
    async def main() -> None:
        desk = Desk(make_cache())
        fresh = b"".join(text_events("a", "b", usage=USAGE_EVENT))
        first = await desk.chat(Opener(FakeStream([fresh], usage=USAGE)), include_usage=True)
        assert await read_all(first) == fresh
        hit = await desk.chat(Opener())
        assert await hit.next() == fresh.replace(USAGE_EVENT, b"")
        assert hit.text == "ab"
        assert await hit.next() == b"" and hit.text == ""

    run(main())


def test_a_joined_stream_tells_the_text_of_each_batch(run: Run) -> None:
    async def main() -> None:
        desk = Desk(make_cache())
        stream = FakeStream(text_events("a", "b", "c"), held=True)
        first = await desk.chat(Opener(stream))
        stream.release(3)
        for text in ("", "a", "b"):
            assert await first.next() and first.text == text
        late = await desk.chat(Opener())
        assert await late.next() and late.text == "ab"
        stream.release(10)
        assert await late.next() and late.text == "c"
        await read_all(first)
        await read_all(late)

    run(main())
