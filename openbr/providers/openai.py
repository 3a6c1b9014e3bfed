"""The adapter for every server that speaks OpenAI's API: cloud, Ollama, vLLM, llama.cpp, ...

In: a ChatRequest's raw fields. Out: the same bytes upstream with the upstream's own model name,
and the upstream's events or body back with the deployment's full id as `model`. The rules that
live only here: every event is decoded far enough to know that it is sound and what it says
(text, finish reason, usage, error); an answer without content, finish or [DONE] is not one.

openai_wire.py holds the shapes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

from openbr import __version__
from openbr.config import LimitsConfig
from openbr.errors import (
    StreamInterruptedError,
    UpstreamError,
    UpstreamProtocolError,
    UpstreamRejectedError,
    UpstreamTimeoutError,
)
from openbr.providers.base import ChatStream, Completion, Provider, refusal
from openbr.providers.framing import EventFramer
from openbr.providers.openai_wire import (
    DONE,
    UNREADABLE,
    ModelName,
    ModelNames,
    ask_for_usage,
    decode_body,
    decode_event,
    encode,
    encode_usage,
    error_status,
    read_completion,
    read_models,
)
from openbr.records import Answer, ChatRequest, Deployment, Model
from openbr.secret import Secret
from openbr.upstream import Target, Timeouts, Upstream, UpstreamResponse, encode_headers

_MAX_LIST = 16 * 1024**2
_MAX_REFUSAL = 256 * 1024
_LIST_TIMEOUTS = Timeouts(connect_s=2, first_byte_s=2, idle_s=2, total_s=5)
"""A model list has 2 s to begin: a page may show a skeleton for so long and no longer."""


class OpenAIProvider(Provider):
    """Threads: event loop only."""

    kind = "openai"

    def __init__(
        self,
        *,
        name: str,
        base_url: str,
        keys: tuple[Secret, ...],
        upstream: Upstream,
        limits: LimitsConfig,
        models: tuple[str, ...] = (),
        is_local: bool = False,
    ) -> None:
        self.name = name
        self.is_local = is_local
        self._target = Target.parse(base_url)
        self._upstream = upstream
        self._limits = limits
        self._models = models
        self._tells_usage = True
        self._names = ModelNames()
        # Least recently used first: the one at the left goes out and to the right.
        self._credentials = deque((key, _headers(key)) for key in keys or (None,))
        self._stream_timeouts = Timeouts(
            connect_s=limits.connect_timeout_s,
            first_byte_s=limits.first_token_timeout_s,
            idle_s=limits.idle_timeout_s,
            total_s=limits.total_timeout_s,
        )
        # A body that is not streamed begins when it is complete: only the total bounds it.
        self._body_timeouts = Timeouts(
            connect_s=limits.connect_timeout_s,
            first_byte_s=limits.total_timeout_s,
            idle_s=limits.idle_timeout_s,
            total_s=limits.total_timeout_s,
        )

    def offers(self, upstream_model: str) -> bool:
        return not self._models or upstream_model in self._models

    async def fetch_models(self) -> tuple[Model, ...]:
        """What the server lists, or what the file declares.

        A declared list is the answer for a server that has none, but only of one that answers.
        """
        if self._models:
            await self._knock()
            return tuple(Model(provider=self.name, upstream_model=name) for name in self._models)
        response, _ = await self._ask(b"GET", b"/models", b"", _LIST_TIMEOUTS)
        try:
            return read_models(await response.read(_MAX_LIST), self.name)
        except UpstreamError as exc:
            exc.provider = self.name
            raise
        finally:
            response.close()

    async def _knock(self) -> None:
        """Whether the server is there and lets us in; that it has no list is no fault."""
        try:
            response, _ = await self._ask(b"GET", b"/models", b"", _LIST_TIMEOUTS)
        except UpstreamRejectedError:
            return
        response.close()

    async def open_chat(self, request: ChatRequest, deployment: Deployment) -> ChatStream:
        first_token_s = self._limits.first_token_timeout_s
        due = asyncio.get_running_loop().time() + first_token_s
        response, key = await self._ask_stream(request, deployment)
        stream = OpenAIStream(
            response,
            Answer(deployment=deployment),
            self._limits.max_event,
            key,
            name=self._names.get(deployment.model),
            include_usage=request.include_usage,
        )
        try:
            async with asyncio.timeout_at(due):
                await stream.begin()
        except TimeoutError:
            response.close()
            raise UpstreamTimeoutError(
                f"{self.name} sent no content within {first_token_s:g} s", provider=self.name
            ) from None
        except BaseException:
            response.close()
            raise
        return stream

    async def complete_chat(self, request: ChatRequest, deployment: Deployment) -> Completion:
        body = encode({**request.fields, "model": deployment.upstream_model})
        response, key = await self._ask(b"POST", b"/chat/completions", body, self._body_timeouts)
        said = response.take_whole(self._limits.max_answer)
        if said is None:
            try:
                said = await response.read(self._limits.max_answer)
            except UpstreamError as exc:
                exc.provider = self.name
                raise
            finally:
                response.close()
        return read_completion(said, deployment, key, self._names.get(deployment.model))

    async def _ask_stream(
        self, request: ChatRequest, deployment: Deployment
    ) -> tuple[UpstreamResponse, Secret | None]:
        """Ask for a stream that tells its usage, whether the caller wants to see it or not.

        A server that does not know that option is asked without it, now and from then on.
        """
        fields: dict[str, Any] = {**request.fields, "model": deployment.upstream_model}
        asked = fields.get("stream_options")
        is_ours = asked is None and self._tells_usage
        if self._tells_usage:
            fields["stream_options"] = ask_for_usage(asked)
        try:
            return await self._ask(
                b"POST", b"/chat/completions", encode(fields), self._stream_timeouts
            )
        except UpstreamRejectedError as exc:
            if not is_ours or "stream_options" not in exc.message:
                raise
        self._tells_usage = False
        del fields["stream_options"]
        return await self._ask(b"POST", b"/chat/completions", encode(fields), self._stream_timeouts)

    async def _ask(
        self, method: bytes, path: bytes, body: bytes, timeouts: Timeouts
    ) -> tuple[UpstreamResponse, Secret | None]:
        """Send one request; its answer is a success or this raises UpstreamError."""
        self._credentials.rotate(-1)
        key, headers = self._credentials[-1]
        try:
            response = await self._upstream.request(
                self._target, method, path, headers, body, timeouts
            )
            if response.status != 200:
                try:
                    said = await response.read(_MAX_REFUSAL)
                except UpstreamError:
                    said = b""  # the status alone already tells whose fault it is
                finally:
                    response.close()
                raise refusal(response.status, said, response.headers, provider=self.name, key=key)
        except UpstreamError as exc:
            exc.provider = self.name
            raise
        return response, key


class OpenAIStream(ChatStream):
    """Events of one streamed completion. `begin()` waits for the first content.

    Until then nothing was sent, so any failure is an ordinary UpstreamError and the next
    deployment may be asked; afterwards every failure is a StreamInterruptedError.
    """

    def __init__(
        self,
        response: UpstreamResponse,
        answer: Answer,
        max_event: int,
        key: Secret | None,
        *,
        name: ModelName,
        include_usage: bool,
    ) -> None:
        self.answer = answer
        self.text = ""
        self._response = response
        self._framer = EventFramer(max_event)
        self._key = key
        self._model = name
        self._held: bytes | None = None
        self._held_text = ""
        self._has_content = False
        self._done = False
        self._include_usage = include_usage
        self._usage_sent = False
        self._first = b""

    async def begin(self) -> None:
        kind = self._response.header(b"content-type") or b""
        if kind and b"event-stream" not in kind:
            raise await self._not_a_stream(kind)
        held, texts = b"", []
        while not self._has_content:
            batch = await self._next()
            if not batch:
                raise self._protocol("ended its stream without any content")
            held += batch
            texts.append(self.text)
        self._held, self._held_text = held, "".join(texts)

    async def next(self) -> bytes:
        if self._held is not None:
            batch, self._held = self._held, None
            self.text = self._held_text
            return batch
        try:
            return await self._next()
        except UpstreamError as exc:
            provider = self.answer.deployment.provider
            raise StreamInterruptedError(
                f"{provider} broke off its answer: {exc.message}",
                provider=provider,
                upstream_status=exc.upstream_status,
            ) from exc

    def close(self) -> None:
        if self._done:
            self._response.release()  # only the end of its body is still to come
        else:
            self._response.close()

    async def _next(self) -> bytes:
        """The next batch that holds anything; b"" at the sound end."""
        self.text = ""
        while not self._done:
            data = await self._response.next()
            payloads = self._framer.feed(data) if data else self._last()
            if batch := self._take(payloads):
                return batch
        return b""

    def _last(self) -> list[bytes]:
        """The body ended. Without [DONE] it is whole only if a choice said that it finished."""
        payload = self._framer.finish()
        if payload != DONE and self.answer.finish_reason is None:
            raise self._protocol("ended its stream before the answer was whole")
        return [payload, DONE] if payload and payload != DONE else [DONE]

    def _take(self, payloads: list[bytes]) -> bytes:
        """Check events, learn from them, name the deployment in them. Returns events to send."""
        out: list[bytes] = []
        texts: list[str] = []
        for payload in payloads:
            if payload == DONE:
                self._done = True
                usage = self.answer.usage
                if self._include_usage and usage is not None and not self._usage_sent:
                    out += (b"data: ", encode_usage(self._first, usage), b"\n\n")
                out.append(b"data: [DONE]\n\n")
                break
            if not payload:
                continue  # an empty data line kills a widely used client
            if event := self._event(payload, texts):
                out += (b"data: ", event, b"\n\n")
        self.text = "".join(texts)
        return b"".join(out)

    def _event(self, payload: bytes, texts: list[str]) -> bytes:
        """The event as its caller gets it; b"" for a usage that the caller did not ask for."""
        try:
            if not payload.isascii():
                payload.decode()  # what the decoder skips it does not check
            event = decode_event(payload)
        except UNREADABLE as exc:
            raise self._protocol("sent an event that cannot be read") from exc
        if event.error is not None:
            raise refusal(
                error_status(event.error),
                payload,
                (),
                provider=self.answer.deployment.provider,
                key=self._key,
            )
        for choice in event.choices or ():
            delta = choice.delta
            if choice.finish_reason is not None:
                self.answer.finish_reason = choice.finish_reason
                self._has_content = True
            if delta is None:
                continue
            if delta.content:
                self._has_content = True
                if isinstance(delta.content, str):
                    texts.append(delta.content)
            elif delta.reasoning_content or delta.tool_calls or delta.refusal or delta.call:
                self._has_content = True
        if event.usage is not None:
            self.answer.usage = event.usage.record()
            if not event.choices:
                if not self._include_usage:
                    return b""
                self._usage_sent = True
        if event.model is not None and self.answer.upstream_model is None:
            self.answer.upstream_model = event.model
        if b"\n" in payload or b"\r" in payload:
            # Several data lines: one line again, since JSON holds no raw line end in a string.
            payload = payload.replace(b"\r", b" ").replace(b"\n", b" ")
        named = self._model.put(payload, event.model)
        if not self._first:
            self._first = named
        return named

    async def _not_a_stream(self, kind: bytes) -> UpstreamError:
        said = await self._response.read(_MAX_REFUSAL)
        if b"json" in kind:
            try:
                if (error := decode_body(said).error) is not None:
                    return refusal(
                        error_status(error),
                        said,
                        (),
                        provider=self.answer.deployment.provider,
                        key=self._key,
                    )
            except UNREADABLE:
                pass
        shown = kind.split(b";")[0].decode("latin-1", "replace")[:60]
        return self._protocol(f"answered a streamed request with {shown}")

    def _protocol(self, what: str) -> UpstreamProtocolError:
        provider = self.answer.deployment.provider
        return UpstreamProtocolError(f"{provider} {what}", provider=provider)


def _headers(key: Secret | None) -> bytes:
    pairs = [
        ("content-type", "application/json"),
        ("accept", "*/*"),
        ("user-agent", f"openbr/{__version__}"),
    ]
    if key is not None:
        pairs.append(("authorization", f"Bearer {key.reveal()}"))
    return encode_headers(pairs)
