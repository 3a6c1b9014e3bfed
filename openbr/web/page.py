"""The manners of every page: methods, forms, security headers, and errors people can read.

In: endpoints, `async (Request) -> Response`. Out: ASGI apps for the routes. The rules that live
only here: the Content-Security-Policy and its companions; nothing of /ui stays in a cache; an
error inside an endpoint becomes a page in the reader's language, or the notice of the page that
asked, never a bare text.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from openbr.errors import (
    ForbiddenError,
    InvalidRequestError,
    MethodNotAllowedError,
    OpenbrError,
    TooLargeError,
)
from openbr.web.render import render

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.types import Receive, Scope, Send

    from openbr.records import Caller
    from openbr.web.parts import Parts

logger = logging.getLogger(__name__)

Endpoint = Callable[[Request], Awaitable[Response]]

SECURITY: Mapping[str, str] = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "font-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; "
        "frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    # Not no-referrer: under it a browser posts our own forms with "Origin: null", which the guard
    # refuses. Other origins get no referrer either way.
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}
MAX_FORM = 2 * 1024 * 1024
"""A message of a megabyte is allowed, and percent-encoding can double plain text."""


class Page:
    """An ASGI app of one address: an endpoint for each method."""

    def __init__(self, *, get: Endpoint | None = None, post: Endpoint | None = None) -> None:
        self._endpoints = {"GET": get, "HEAD": get, "POST": post}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive, send)
        endpoint = self._endpoints.get(request.method)
        try:
            if endpoint is None:
                allow = ", ".join(name for name, one in self._endpoints.items() if one)
                raise MethodNotAllowedError("this address is not made for that", allow=allow)
            response = await endpoint(request)
        except OpenbrError as exc:
            response = error_page(request, exc)
        except ClientDisconnect:
            return
        except Exception:
            logger.exception("%s %s failed", request.method, request.url.path)
            response = error_page(request, OpenbrError("see the log of openbr"))
        await _secured(response)(scope, receive, send)


def _secured(response: Response) -> Response:
    for name, value in SECURITY.items():
        response.headers.setdefault(name, value)
    response.headers.setdefault("cache-control", "no-store")
    return response


async def send_error_page(
    app: Starlette, scope: Scope, receive: Receive, send: Send, error: OpenbrError
) -> None:
    """The page of an error that came up before any endpoint was reached."""
    request = Request({**scope, "app": app}, receive, send)
    await _secured(error_page(request, error))(scope, receive, send)


def error_page(request: Request, error: OpenbrError) -> Response:
    """A whole page in the layout, or for htmx the notice of the page that asked."""
    show = partial(
        render,
        request,
        "pages/error.html",
        "fragments/error.html",
        {"error": error, "status": error.status, "page": ""},
        status=error.status,
    )
    try:
        response = show()
    except OpenbrError:
        response = show(bare=True)  # what failed may be what the layout wanted to show
    if isinstance(error, MethodNotAllowedError):
        response.headers["allow"] = error.allow
    if error.retry_after_s is not None:
        response.headers["retry-after"] = str(max(1, round(error.retry_after_s)))
    return response


async def read_form(request: Request) -> dict[str, str]:
    """The fields of a posted form; the last of equal names.

    Raises: InvalidRequestError when it is not a urlencoded form, TooLargeError.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ("application/x-www-form-urlencoded", ""):
        raise InvalidRequestError("send a form, application/x-www-form-urlencoded")
    body = bytearray()
    timeout_s = parts_of(request).config.limits.body_timeout_s
    try:
        async with asyncio.timeout(timeout_s):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_FORM:
                    raise TooLargeError(f"the form is larger than {MAX_FORM} bytes")
    except TimeoutError:
        raise InvalidRequestError(f"the form did not arrive within {timeout_s:g} s") from None
    try:
        pairs = parse_qsl(
            body.decode("latin-1"), keep_blank_values=True, errors="replace", max_num_fields=100
        )
    except ValueError as exc:
        raise InvalidRequestError(f"the form cannot be read: {exc}") from exc
    return dict(pairs)


def parts_of(request: Request) -> Parts:
    parts: Parts = request.app.state.parts
    return parts


def caller_of(request: Request) -> Caller:
    caller: Caller = request.scope["state"]["caller"]
    return caller


def require_scope(request: Request, scope: str) -> None:
    """Raises: ForbiddenError."""
    if scope not in caller_of(request).scopes:
        raise ForbiddenError(f"your key lacks the scope {scope}")
