"""A provider whose model lists and failures a test decides."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from openbr.errors import UpstreamError, UpstreamUnavailableError
from openbr.providers.base import ChatStream, Completion, Provider
from openbr.records import ChatRequest, Deployment, Model


class Listed(Provider):
    """A provider whose lists and failures a test decides."""

    kind = "openai"

    def __init__(self, name: str, *models: str, is_local: bool = False) -> None:
        self.name = name
        self.is_local = is_local
        self.answer: Callable[[], Awaitable[tuple[str, ...]]] = self._list(models)
        self.fetches = 0

    def _list(self, models: tuple[str, ...]) -> Callable[[], Awaitable[tuple[str, ...]]]:
        async def answer() -> tuple[str, ...]:
            return models

        return answer

    def lists(self, *models: str) -> None:
        self.answer = self._list(models)

    def fails(self, error: Exception) -> None:
        async def answer() -> tuple[str, ...]:
            raise error

        self.answer = answer

    async def fetch_models(self) -> tuple[Model, ...]:
        self.fetches += 1
        names = await self.answer()
        return tuple(Model(provider=self.name, upstream_model=name) for name in names)

    async def open_chat(self, request: ChatRequest, deployment: Deployment) -> ChatStream:
        raise AssertionError("not asked")

    async def complete_chat(self, request: ChatRequest, deployment: Deployment) -> Completion:
        raise AssertionError("not asked")


def refused(name: str) -> UpstreamError:
    return UpstreamUnavailableError(f"{name} refused", provider=name, reason="refused")
