"""What every adapter promises, and how an upstream's refusal becomes one of our errors.

In: a ChatRequest and a Deployment. Out: a ChatStream or a Completion, or an UpstreamError that
names the provider. The rule that lives only here: upstream statuses and bodies stop at
`refusal`; past it there are only openbr's errors. This module imports no adapter.
"""

from __future__ import annotations

import email.utils
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

import msgspec

from openbr.errors import (
    UpstreamCredentialError,
    UpstreamError,
    UpstreamProtocolError,
    UpstreamRateLimitError,
    UpstreamRejectedError,
    UpstreamTimeoutError,
    UpstreamUnavailableError,
)
from openbr.records import Answer, ChatRequest, Deployment, Model
from openbr.secret import Secret

_MAX_MESSAGE = 2000


class ChatStream(ABC):
    """A streamed completion whose first content has arrived.

    `next()` gives whole events as bytes ready for a client of the OpenAI dialect, b"" at the
    complete end; `text` is the visible text of the batch that `next()` gave last.
    Raises from `next()`: StreamInterruptedError, and nothing else of the upstream's.
    """

    answer: Answer
    text: str

    @abstractmethod
    async def next(self) -> bytes: ...

    @abstractmethod
    def close(self) -> None:
        """Let the upstream go, finished or not. Idempotent."""


class Completion(msgspec.Struct, frozen=True):
    """A whole answer, as the bytes of a chat.completion object."""

    body: bytes
    answer: Answer


class Provider(ABC):
    """An upstream and the wire format that it speaks."""

    name: str
    kind: str
    is_local = False

    @abstractmethod
    async def fetch_models(self) -> tuple[Model, ...]:
        """The models that the upstream offers now. Raises: UpstreamError."""

    @abstractmethod
    async def open_chat(self, request: ChatRequest, deployment: Deployment) -> ChatStream:
        """Start a streamed completion; returns with its first content. Raises: UpstreamError."""

    @abstractmethod
    async def complete_chat(self, request: ChatRequest, deployment: Deployment) -> Completion:
        """Get a whole completion. Raises: UpstreamError."""

    def offers(self, upstream_model: str) -> bool:
        """Whether a model that the catalogue has not seen may be asked for all the same."""
        return True

    async def close(self) -> None:
        """Give up what the adapter itself holds."""
        return None


def refusal(
    status: int,
    body: bytes,
    headers: Iterable[tuple[bytes, bytes]],
    *,
    provider: str,
    key: Secret | None = None,
) -> UpstreamError:
    """The error for an answer that is not a success.

    Only a JSON body's own message is passed on, never HTML, and never our key.
    """
    said, kind, code, param = _read_error(body)
    if key is not None:
        said = said.replace(key.reveal(), key.masked)
    detail = f": {said}" if said else ""
    if status in (401, 403):
        return UpstreamCredentialError(
            f"{provider} refused our credential ({status}){detail}",
            provider=provider,
            upstream_status=status,
        )
    if status == 429:
        return UpstreamRateLimitError(
            f"{provider} limits our requests{detail}",
            provider=provider,
            upstream_status=status,
            retry_after_s=_retry_after(headers),
        )
    if status == 408:
        return UpstreamTimeoutError(f"{provider} timed out", provider=provider, upstream_status=408)
    if 400 <= status < 500:
        return UpstreamRejectedError(
            said or f"{provider} rejected the request ({status})",
            status=status,
            type=kind,
            code=code or ("model_not_found" if status == 404 else None),
            param=param,
            provider=provider,
        )
    if status >= 500:
        return UpstreamUnavailableError(
            f"{provider} failed ({status}){detail}",
            provider=provider,
            reason="server",
            upstream_status=status,
        )
    return UpstreamProtocolError(
        f"{provider} answered {status}, which is neither an answer nor an error; "
        "redirects are not followed: set base_url to the final address",
        provider=provider,
        upstream_status=status,
    )


def _read_error(body: bytes) -> tuple[str, str | None, str | None, str | None]:
    """message, type, code, param of an error body in any of the shapes that upstreams use.

    Shapes: {"error": {"message", "type", "code", "param"}}, {"error": "text"},
    {"message": "text"}, {"detail": "text"}.
    """
    try:
        tree: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return "", None, None, None
    if isinstance(tree, list) and tree:
        tree = tree[0]
    if not isinstance(tree, dict):
        return "", None, None, None
    error = tree.get("error", tree)
    if isinstance(error, str):
        return error[:_MAX_MESSAGE], None, None, None
    if not isinstance(error, dict):
        return "", None, None, None

    def text(name: str) -> str | None:
        value = error.get(name)
        return value[:_MAX_MESSAGE] if isinstance(value, str) else None

    return text("message") or text("detail") or "", text("type"), text("code"), text("param")


def _retry_after(headers: Iterable[tuple[bytes, bytes]]) -> float | None:
    """Seconds to wait, from retry-after-ms or Retry-After (seconds or an HTTP date)."""
    found = {name: value for name, value in headers if name.startswith(b"retry-after")}
    try:
        if ms := found.get(b"retry-after-ms"):
            return max(0.0, float(ms) / 1000)
        if value := found.get(b"retry-after"):
            if value.strip().isdigit():
                return float(value)
            date = email.utils.parsedate_to_datetime(value.decode("latin-1"))
            return max(0.0, date.timestamp() - time.time())
    except (ValueError, TypeError):
        pass
    return None
