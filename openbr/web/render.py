"""Templates -> HTML: the environment, what every page shows, and page or fragment of one address.

In: a request, template names, a context. Out: an HTMLResponse. The rules that live only here:
htmx gets the fragment, anybody else the page; everything a template prints is escaped and passes
`formats.visible`; Jinja is imported with the first page, because a gateway that only serves the
API has no use for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.responses import HTMLResponse, Response

import openbr
from openbr.errors import OpenbrError
from openbr.store import settings
from openbr.web import formats
from openbr.web.in_use import short, view_in_use
from openbr.web.language import (
    COOKIE,
    NAMES,
    SETTING,
    Language,
    choose_language,
    load_language,
)
from openbr.web.reasons import N_, status_words

if TYPE_CHECKING:
    import jinja2
    from starlette.requests import Request

    from openbr.web.parts import Parts
    from openbr.web.static import StaticFolder

MENU = (
    # page, address, icon, name; a page is listed when it exists
    ("chat", "/ui/chat", "chat", N_("Chat")),
    ("models", "/ui/models", "box", N_("Models")),
)
_FILTERS = ("number", "compact", "size", "seconds", "duration", "age", "clock", "translated")
_DATED_FILTERS = ("day", "moment")


def find_folder(name: str) -> Path:
    """templates, static or locale: inside the package of a wheel, beside it in a checkout."""
    package = Path(openbr.__file__).resolve().parent
    inside = package / name
    return inside if inside.is_dir() else package.parent / name


class Pages:
    """Templates, languages and static files of one gateway; each is loaded when first needed."""

    def __init__(self, static: StaticFolder | None = None) -> None:
        self._environment: jinja2.Environment | None = None
        self._languages: dict[str, Language] = {}
        self._static = static

    @property
    def static(self) -> StaticFolder:
        if self._static is None:
            from openbr.web.static import StaticFolder

            self._static = StaticFolder(find_folder("static"))
        return self._static

    def language(self, code: str) -> Language:
        if code not in self._languages:
            self._languages[code] = load_language(code, find_folder("locale"))
        return self._languages[code]

    def render(self, template: str, context: Mapping[str, Any]) -> str:
        """HTML. The context holds `language` and `now` besides what the template names."""
        if self._environment is None:
            self._environment = _build_environment(self.static)
        return self._environment.get_template(template).render(context)


def render(
    request: Request,
    page: str,
    fragment: str | None,
    context: Mapping[str, Any],
    *,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    bare: bool = False,
) -> Response:
    """The page, or for htmx the fragment, of one address. `bare`: nothing but its own content."""
    parts: Parts = request.app.state.parts
    is_fragment = fragment is not None and is_htmx(request)
    template = fragment if is_fragment and fragment else page
    html = parts.pages.render(template, {**layout(request, bare=bare), **context})
    response = HTMLResponse(html, status_code=status, headers=dict(headers or {}))
    response.headers["vary"] = "HX-Request, Cookie, Accept-Language"
    return response


def is_htmx(request: Request) -> bool:
    """Whether htmx asks for a part of a page. A history restore asks for the whole one."""
    head = request.headers
    return head.get("hx-request") == "true" and head.get("hx-request-type") != "full"


def language_of(request: Request) -> Language:
    parts: Parts = request.app.state.parts
    setting = None
    with suppress(OpenbrError):  # a store that fails has an error page to be read
        setting = parts.store.read(settings.get, SETTING)
    code = choose_language(
        setting,
        request.cookies.get(COOKIE),
        request.headers.get("accept-language", ""),
    )
    return parts.pages.language(code)


def layout(request: Request, *, bare: bool = False) -> dict[str, Any]:
    """What base.html and every fragment may use."""
    parts: Parts = request.app.state.parts
    caller = None if bare else request.scope.get("state", {}).get("caller")
    language = language_of(request)
    return {
        "language": language,
        "languages": NAMES,
        "now": parts.now(),
        "menu": MENU,
        "here": request.url.path + (f"?{request.url.query}" if request.url.query else ""),
        "caller": caller,
        "in_use": view_in_use(parts) if caller is not None else None,
        "pill_tag": pill_tag(parts, language) if caller is not None else "",
        "status_words": status_words,
    }


def pill_tag(parts: Parts, language: Language) -> str:
    """Changes whenever what the pill shows does: the tag that a poll compares."""
    view = view_in_use(parts)
    label = view.reason.label if view.reason else None
    facts = (language.code, view.kind, view.in_use, view.chosen, label)
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def _build_environment(static: StaticFolder) -> jinja2.Environment:
    import jinja2

    @jinja2.pass_context
    def gettext(context: jinja2.runtime.Context, message: str) -> str:
        return str(context["language"].words.gettext(message))

    @jinja2.pass_context
    def ngettext(context: jinja2.runtime.Context, one: str, many: str, n: int) -> str:
        return str(context["language"].words.ngettext(one, many, n))

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(find_folder("templates")),
        extensions=["jinja2.ext.i18n"],
        auto_reload=False,
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalize,
    )
    install: Callable[..., None] = environment.install_gettext_callables  # type: ignore[attr-defined]
    install(gettext, ngettext, newstyle=True)
    environment.policies["ext.i18n.trimmed"] = True
    environment.globals.update(static=static)
    environment.filters.update(name=formats.name, anchor=formats.anchor, short=short)
    for name in _FILTERS:
        environment.filters[name] = _localized(getattr(formats, name))
    for name in _DATED_FILTERS:
        environment.filters[name] = _dated(getattr(formats, name))
    return environment


def _finalize(value: object) -> object:
    """The last word on what is printed: no hidden character reaches a page."""
    if not isinstance(value, str):
        return value
    shown = formats.visible(value)
    # Markup stays Markup: what replaces a hidden character is harmless in HTML.
    return value if shown == value else type(value)(shown)


def _localized(format: Callable[..., str]) -> Callable[..., str]:
    import jinja2

    @jinja2.pass_context
    def apply(context: jinja2.runtime.Context, value: Any, *args: Any) -> str:
        return format(context["language"], value, *args)

    return apply


def _dated(format: Callable[..., str]) -> Callable[..., str]:
    import jinja2

    @jinja2.pass_context
    def apply(context: jinja2.runtime.Context, value: Any) -> str:
        return format(context["language"], value, context["now"])

    return apply
