"""/ui/login and /ui/logout, where a key is required; /ui/language anywhere.

In: a key, or a language. Out: a cookie. The rules that live only here: the session cookie is
HttpOnly, SameSite=Strict, and Secure on https; whoever comes from a page goes back to a page of
ours and nowhere else.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from openbr.auth import COOKIE, SESSION_S
from openbr.errors import InvalidRequestError, OpenbrError
from openbr.web.language import COOKIE as LANGUAGE_COOKIE
from openbr.web.language import find_language
from openbr.web.page import Page, parts_of, read_form
from openbr.web.reasons import status_words
from openbr.web.render import is_htmx, language_of, render

if TYPE_CHECKING:
    from starlette.requests import Request

HOME = "/ui/chat"
YEAR_S = 365 * 86400
# A page of ours, with its query; and the page that a fragment or a form of it belongs to.
_OURS = re.compile(r"/ui(?:/[A-Za-z0-9_-]+)*(?:\?[^\s\\#]*)?")
_PAGE = re.compile(r"/ui/chat/\d+(?=/)|/ui/models(?=/)")


def safe_next(wish: str) -> str:
    """Where to go afterwards: a page of ours, never another site, never a fragment."""
    if not wish.isascii() or not _OURS.fullmatch(wish) or wish.startswith("/ui/log"):
        return HOME
    page = _PAGE.match(wish)
    return page[0] if page else wish


async def show(request: Request) -> Response:
    if is_htmx(request):
        # A poll without a session: the whole page goes, not a part of it.
        return Response(headers={"hx-redirect": "/ui/login"})
    return _page(request, request.query_params.get("next", ""))


async def enter(request: Request) -> Response:
    form = await read_form(request)
    address = request.client.host if request.client else ""
    try:
        value = await parts_of(request).auth.login(form.get("key", ""), address)
    except OpenbrError as exc:
        return _page(request, form.get("next", ""), exc)
    response = RedirectResponse(safe_next(form.get("next", "")), status_code=303)
    response.set_cookie(
        COOKIE,
        value,
        max_age=int(SESSION_S),
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )
    return response


async def leave(request: Request) -> Response:
    value = request.cookies.get(COOKIE)
    if value:
        await parts_of(request).auth.logout(value)
    response = RedirectResponse("/ui/login", status_code=303)
    response.delete_cookie(COOKIE, httponly=True, samesite="strict")
    return response


async def choose_language(request: Request) -> Response:
    form = await read_form(request)
    code = find_language(form.get("language", ""))
    if code is None:
        raise InvalidRequestError("openbr does not speak this language", param="language")
    wish = form.get("next", "")
    # The login page has the switch too, and is a place to go back to.
    came_from_login = wish == "/ui/login" or wish.startswith("/ui/login?")
    response = RedirectResponse(wish if came_from_login else safe_next(wish), status_code=303)
    response.set_cookie(LANGUAGE_COOKIE, code, max_age=YEAR_S, httponly=True, samesite="lax")
    return response


async def back(request: Request) -> Response:
    return RedirectResponse(HOME, status_code=303)


def _page(request: Request, wish: str, error: OpenbrError | None = None) -> Response:
    notice = None
    if error is not None:
        words = status_words(error.status) if error.status != 401 else None
        say = language_of(request).gettext
        notice = {
            "tone": "bad",
            "title": say(words.title) if words else say("This key does not open anything here."),
            "text": say(words.sentence) if words else say("It may be wrong, or revoked."),
            "detail": "",
        }
    context = {"next": safe_next(wish), "notice": notice, "page": "", "caller": None}
    status = error.status if error else 200
    return render(request, "pages/login.html", None, context, status=status)


def routes() -> list[BaseRoute]:
    return [
        Route("/ui/login", Page(get=show, post=enter)),
        Route("/ui/logout", Page(get=back, post=leave)),
        Route("/ui/language", Page(get=back, post=choose_language)),
    ]
