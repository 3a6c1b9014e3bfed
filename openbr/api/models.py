"""GET /v1/models and /v1/models/{id}: the catalogue in OpenAI's dialect, from memory.

In: the catalogue. Out: full ids, with what we know beside them. The rule that lives only here:
a model that was not seen by the last fetch says `openbr.stale`, so old never passes for new.
"""

from __future__ import annotations

from typing import Any

from openbr.api.http import Exchange, encode_json, send_json
from openbr.catalogue import Catalogue
from openbr.errors import InvalidRequestError, UnknownModelError
from openbr.records import Model, ProviderState


class ModelsEndpoint:
    """Threads: event loop only. The encoded list is kept until the catalogue changes."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._encoded = b""
        self._version = -1

    async def list_all(self, exchange: Exchange) -> None:
        self._catalogue.refresh(forced=False)
        if self._version != self._catalogue.version:
            self._encoded = encode_json({"object": "list", "data": self._listed()})
            self._version = self._catalogue.version
        await send_json(exchange, self._encoded)

    async def show(self, exchange: Exchange, name: str) -> None:
        for state in self._catalogue.providers():
            for model in state.models:
                if model.id == name:
                    await send_json(exchange, encode_json(_shape(model, state)))
                    return
        ids = self._catalogue.find_bare(name)
        if len(ids) > 1:
            raise InvalidRequestError(
                f"several providers have {name}: say which, one of {', '.join(ids)}",
                code="ambiguous_model",
                param="model",
            )
        if not ids:
            raise UnknownModelError(f"there is no model {name}; see /v1/models")
        await self.show(exchange, ids[0])

    def _listed(self) -> list[dict[str, Any]]:
        return [_shape(m, state) for state in self._catalogue.providers() for m in state.models]


def _shape(model: Model, state: ProviderState) -> dict[str, Any]:
    extra: dict[str, Any] = {"local": state.is_local, "stale": state.state != "ready"}
    if model.context_tokens is not None:
        extra["context_tokens"] = model.context_tokens
    if model.size_bytes is not None:
        extra["size_bytes"] = model.size_bytes
    return {
        "id": model.id,
        "object": "model",
        "created": model.created_at,
        "owned_by": model.provider,
        "openbr": extra,
    }
