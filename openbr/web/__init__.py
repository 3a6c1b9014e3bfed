"""The pages: one module a page, its endpoints listed at its bottom.

In: the parts of a gateway, on `app.state.parts`. Out: the routes of /, /ui and /static. Read
render.py first, then models.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from openbr.errors import NotFoundError
from openbr.web import chat, login, models, static
from openbr.web.page import Page, send_error_page

if TYPE_CHECKING:
    from starlette.requests import Request

__all__ = ["routes", "send_error_page"]


async def _to_ui(request: Request) -> Response:
    return RedirectResponse("/ui", status_code=303)


async def _to_chat(request: Request) -> Response:
    return RedirectResponse("/ui/chat", status_code=303)


async def _nothing(request: Request) -> Response:
    raise NotFoundError("there is no such page")


def routes() -> list[BaseRoute]:
    """Every address of the pages, the catch-all last."""
    return [
        Route("/", Page(get=_to_ui)),
        Route("/ui", Page(get=_to_chat)),
        *models.routes(),
        *chat.routes(),
        *login.routes(),
        *static.routes(),
        Route("/{path:path}", Page(get=_nothing, post=_nothing)),
    ]
