"""/ui/models: choose a model; see who answers, why, and what every provider says.

In: the catalogue and the route, from memory. Out: the page, or the parts of it that can change.
The rules that live only here: no page waits for a provider (only the fragment that replaces the
first skeleton does, 2 s at most); opening a page writes nothing; a poll that would show the same
answers 304, and knows it before it has made a row; the list, which no clock is part of, is drawn
again only when it says something else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from openbr.errors import InvalidRequestError, OpenbrError
from openbr.records import Model, ProviderState
from openbr.secret import ADMIN
from openbr.web.formats import moment
from openbr.web.fragments import Html
from openbr.web.in_use import InUseView, describe, short, view_in_use
from openbr.web.page import Page, caller_of, parts_of, read_form, require_scope
from openbr.web.reasons import N_, REASONS, Reason
from openbr.web.render import is_htmx, language_of, pill_tag, render

if TYPE_CHECKING:
    from starlette.requests import Request

    from openbr.web.parts import Parts

WAIT_S = 2.0
"""How long the fragment behind a skeleton may wait for the first lists."""
FRESH_FOR_EYES_S = 10.0
"""Up to this age a list passes for new: a page that polls every 5 s sees ages up to here."""
FEATURES = (N_("vision"), N_("tools"), N_("audio"), N_("reasoning"), N_("embeddings"))
"""What models can do, as catalogues name it; other words are shown as they come."""
_MAX_QUERY = 100
_BY = "ui"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    model: Model
    is_chosen: bool
    is_in_use: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderLine:
    provider: ProviderState
    reason: Reason | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A provider's rows. `is_stale`: they are what was last seen of it."""

    provider: ProviderState
    reason: Reason | None
    is_stale: bool
    rows: tuple[Row, ...]


async def show(request: Request) -> Response:
    parts = parts_of(request)
    if request.query_params.get("wait") and is_htmx(request):
        parts.catalogue.refresh(forced=False)
        await parts.catalogue.settle(WAIT_S)
    context = build_context(request, _query(request.query_params))
    if is_htmx(request) and request.headers.get("hx-ptag") == context["tag"]:
        return Response(status_code=304)
    return _render(request, context)


async def choose(request: Request) -> Response:
    """Save the marked model. Without htmx: back to the page, which shows what holds now."""
    require_scope(request, ADMIN)
    form = await read_form(request)
    query = _query(form)
    try:
        model = form.get("model", "")
        if not model:
            raise InvalidRequestError("no model was marked", param="model")
        saved = await parts_of(request).router.choose(model, _BY)
    except OpenbrError as exc:
        return _failed(request, query, exc)
    if not is_htmx(request):
        return RedirectResponse(_address(query), status_code=303)
    said = language_of(request).gettext("%(model)s is chosen.", model=short(saved.model))
    return _render(request, build_context(request, query), announcement=said, answered=True)


async def refresh(request: Request) -> Response:
    """Ask every provider again, in the background."""
    query = _query(await read_form(request))
    parts_of(request).catalogue.refresh()
    if not is_htmx(request):
        return RedirectResponse(_address(query), status_code=303)
    return _render(request, build_context(request, query, asked_now=True), answered=True)


async def show_in_use(request: Request) -> Response:
    """The pill that every page but this one polls."""
    if not is_htmx(request):
        return RedirectResponse("/ui/models", status_code=303)
    parts_of(request).catalogue.refresh(forced=False)
    tag = pill_tag(parts_of(request), language_of(request))
    if request.headers.get("hx-ptag") == tag:
        return Response(status_code=304)
    return render(
        request,
        "fragments/pill_live.html",
        "fragments/pill_live.html",
        {},
        headers={"hx-ptag": tag},
    )


async def back(request: Request) -> Response:
    """An address that only takes forms, opened as a page: the page they come from."""
    return RedirectResponse("/ui/models", status_code=303)


def _render(
    request: Request,
    context: Mapping[str, Any],
    *,
    announcement: str | None = None,
    answered: bool = False,
    notice: Mapping[str, Any] | None = None,
    status: int = 200,
) -> Response:
    headers = {"hx-ptag": context["tag"]} if request.method == "GET" and is_htmx(request) else {}
    more = {
        "announcement": announcement,
        "answered": answered,
        "notice": notice,
        "model_list": draw_list(parts_of(request), context),
    }
    return render(
        request,
        "pages/models.html",
        "fragments/models_live.html",
        {**context, **more},
        status=status,
        headers=headers,
    )


def _failed(request: Request, query: str, error: OpenbrError) -> Response:
    """The page as it still is, and why it did not become what was asked."""
    language = language_of(request)
    view = view_in_use(parts_of(request))
    kept = language.gettext("Nothing was changed.")
    if view.shown:
        kept = language.gettext("You are still on %(model)s.", model=short(view.shown))
    title = language.gettext("The model was not changed.")
    notice = {"tone": "bad", "title": title, "text": kept, "detail": error.message}
    context = build_context(request, query)
    return _render(request, context, answered=True, notice=notice, status=error.status)


def build_context(request: Request, query: str, *, asked_now: bool = False) -> dict[str, Any]:
    """What the page and its fragments show, all from memory; the rows are for `draw_list`."""
    parts = parts_of(request)
    language, now = language_of(request), parts.now()
    providers = parts.catalogue.providers()
    loading = any(p.state == "loading" for p in providers)
    view = describe(parts.router.in_use(), loading=loading)
    may_choose = ADMIN in caller_of(request).scopes
    say = partial(moment, language, now=now)
    list_facts = (
        *("model_list", language.code, parts.pages.static.version("icons.svg"), may_choose, query),
        *_list_facts(parts.catalogue.version, providers, view, say),
    )
    ages = [p.age_s for p in providers if p.age_s is not None and p.reason is None]
    oldest_s = max(ages, default=None)
    is_old = oldest_s is not None and oldest_s > FRESH_FOR_EYES_S
    renewing = any(p.refreshing for p in providers) and (is_old or asked_now)
    return {
        "page": "models",
        "language": language,
        "now": now,
        "in_use": view,
        "q": query,
        "providers": providers,
        "provider_lines": [ProviderLine(provider=p, reason=_reason(p)) for p in providers],
        "total": sum(len(p.models) for p in providers),
        "loading": loading,
        "renewing": renewing,
        "oldest_s": oldest_s,
        "chosen_is_local": _is_local(parts, view),
        "may_choose": may_choose,
        "config_path": str(parts.config.path),
        "list_facts": list_facts,
        "tag": page_tag(list_facts, providers, view, say, renewing),
    }


def draw_list(parts: Parts, context: Mapping[str, Any]) -> Html:
    """The list of models, far the largest part of the page: as it is kept, or drawn now."""

    def draw() -> str:
        groups = build_groups(context["providers"], context["in_use"], context["q"])
        # The template is given only what the facts tell of, so that it can say nothing else.
        names = ("language", "now", "q", "total", "may_choose", "config_path")
        shown = sum(len(group.rows) for group in groups)
        own = {name: context[name] for name in names}
        return parts.pages.render(
            "fragments/model_list.html", {**own, "groups": groups, "shown": shown}
        )

    return parts.fragments.html(context["list_facts"], draw)


def build_groups(providers: tuple[ProviderState, ...], view: InUseView, query: str) -> list[Group]:
    """Providers A to Z with their matching rows; those with nothing to show are left out."""
    words = query.lower().split()
    known = {model.id for provider in providers for model in provider.models}
    groups = []
    for provider in providers:
        models = provider.models
        if view.chosen and view.chosen not in known and view.blocked_provider == provider.name:
            # The marked radio is the chosen model, even when nobody lists it now.
            lost = Model(provider=provider.name, upstream_model=short(view.chosen))
            models = (*models, lost)
        rows = tuple(
            Row(
                model=model,
                is_chosen=model.id == view.chosen,
                is_in_use=view.in_use is not None and model.id == view.in_use.model,
            )
            for model in models
            if all(word in model.id.lower() for word in words)
        )
        if rows or (provider.state == "loading" and not words):
            reason = _reason(provider)
            groups.append(
                Group(provider=provider, reason=reason, is_stale=reason is not None, rows=rows)
            )
    return groups


def _list_facts(
    version: int,
    providers: tuple[ProviderState, ...],
    view: InUseView,
    say: Callable[[float], str],
) -> tuple[object, ...]:
    """What the list says of the models. `version`, the catalogue's, stands for those it has.

    The hour at which a silent provider was last seen goes in as it is said: at midnight it
    becomes another text.
    """
    states = [
        (p.state, len(p.models), p.reason, say(p.fetched_at) if p.reason and p.fetched_at else None)
        for p in providers
    ]
    return (version, view.chosen, view.in_use.model if view.in_use else None, states)


def page_tag(
    list_facts: tuple[object, ...],
    providers: tuple[ProviderState, ...],
    view: InUseView,
    say: Callable[[float], str],
    renewing: bool,
) -> str:
    """A digest of what the page says, ages in steps: the same tag, the same page."""
    facts = [list_facts, view.kind, view.chosen_at, say(view.chosen_at) if view.chosen_at else None]
    facts += [renewing, _step(view.retry_in_s)]
    for provider in providers:
        old = provider.age_s if (provider.age_s or 0) > FRESH_FOR_EYES_S else None
        wait = provider.retry_in_s if provider.reason == "quota" else None
        facts += [_step(old), _step(wait)]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def _step(value: float | None) -> int | None:
    """A time in steps as fine as the poll, from a minute on in minutes."""
    if value is None:
        return None
    return int(value // 5) if value < 60 else 12 + int(value // 60)


def _reason(provider: ProviderState) -> Reason | None:
    if provider.reason is None:
        return None
    return REASONS.get(provider.reason, REASONS["internal"])


def _is_local(parts: Parts, view: InUseView) -> bool:
    deployment = parts.catalogue.find(view.chosen) if view.chosen else None
    return deployment is not None and deployment.is_local


def _query(fields: Mapping[str, str]) -> str:
    return " ".join(fields.get("q", "")[:_MAX_QUERY].split())


def _address(query: str) -> str:
    return "/ui/models?" + urlencode({"q": query}) if query else "/ui/models"


def routes() -> list[BaseRoute]:
    return [
        Route("/ui/models", Page(get=show, post=choose)),
        Route("/ui/models/in-use", Page(get=show_in_use)),
        Route("/ui/models/refresh", Page(get=back, post=refresh)),
    ]
