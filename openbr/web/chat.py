"""/ui/chat: talk to the assistant.

In: what a person writes; running answers. Out: the page, turns, and one event stream while an
answer runs. The rules that live only here: a posted message answers at once to htmx and with the
finished page to a plain browser; a stream resumes after any piece; an answer that has ended is
sent whole, because nobody can know what its reader has seen.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from openbr.errors import InvalidRequestError, NotFoundError, OpenbrError, TooLargeError
from openbr.records import Deployment
from openbr.secret import CHAT
from openbr.store import conversations
from openbr.store.conversations import Conversation, Message
from openbr.web.formats import day, plain_lines
from openbr.web.page import Page, caller_of, parts_of, read_form, require_scope
from openbr.web.reasons import REASONS, Reason, parse_failure, reason_of
from openbr.web.render import is_htmx, language_of, layout, render
from openbr.web.runs import Run

if TYPE_CHECKING:
    from starlette.requests import Request

    from openbr.web.language import Language
    from openbr.web.parts import Parts

RECENT = 30
MAX_MESSAGE = 1024 * 1024
MAX_TITLE = 60
EVENT_GAP_S = 0.05
"""At most twenty events a second reach a reader; pieces that come faster travel together."""
LOOK_S = 0.25
"""How often a waiting reader is told whether the local model is being loaded."""
KEEP_ALIVE_S = 15.0
_MAX_ID = (1 << 63) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One message as the page shows it. `seen` is the number of the last piece in `text`."""

    id: int
    conversation_id: int
    role: str
    text: str
    state: str
    model: str | None = None
    instead_of: str | None = None
    ttft_s: float | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    reason: Reason | None = None
    provider: str = ""
    detail: str = ""
    seen: int = 0
    expected: str | None = None
    is_loading: bool = False


# Endpoints.


async def show_new(request: Request) -> Response:
    require_scope(request, CHAT)
    return _page(request, None)


async def show(request: Request) -> Response:
    require_scope(request, CHAT)
    return _page(request, _conversation(request))


async def ask(request: Request) -> Response:
    """Store a message and start its answer, in a new conversation or an old one."""
    require_scope(request, CHAT)
    parts = parts_of(request)
    conversation = _conversation(request) if "id" in request.path_params else None
    text = plain_lines((await read_form(request)).get("text", "")).strip("\n")
    try:
        _check(text)
        known_id = conversation.id if conversation else None
        run, asked_id = await parts.runs.ask(
            parts, caller_of(request), known_id, _title(text), text
        )
    except OpenbrError as exc:
        return _refused(request, conversation, text, exc)
    address = f"/ui/chat/{run.conversation_id}"
    if not is_htmx(request):
        await run.wait()
        return RedirectResponse(f"{address}#m{asked_id}", status_code=303)
    if conversation is None:
        return Response(headers={"hx-redirect": address})
    found = parts.store.read(conversations.messages, run.conversation_id)
    turns = [view_turn(parts, m) for m in found if m.id in (asked_id, run.message_id)]
    context = {"turns": turns, "conversation": conversation, "running": True, "notice": None}
    return render(request, "fragments/turn.html", "fragments/turn.html", context)


async def stop(request: Request) -> Response:
    """End the running answer and keep what it has."""
    require_scope(request, CHAT)
    parts, conversation = parts_of(request), _conversation(request)
    run = parts.runs.of(conversation.id)
    if run is not None:
        run.stop()
        await run.wait()
    if not is_htmx(request):
        return RedirectResponse(f"/ui/chat/{conversation.id}", status_code=303)
    found = parts.store.read(conversations.messages, conversation.id)
    turn = view_turn(parts, found[-1])
    context = {"turn": turn, "conversation": conversation, "running": False}
    return render(request, "fragments/turn_whole.html", "fragments/turn_whole.html", context)


async def stream(request: Request) -> Response:
    """The events of one answer, from where its reader stands."""
    require_scope(request, CHAT)
    parts, conversation = parts_of(request), _conversation(request)
    message_id: int = request.path_params["message_id"]
    found = parts.store.read(conversations.messages, conversation.id)
    message = next((m for m in found if m.id == message_id), None)
    if message is None:
        raise NotFoundError("there is no such message")
    run = parts.runs.get(message_id)
    shared = {**layout(request), "conversation": conversation}
    if run is None:
        events = _whole(parts, message, shared)
    else:
        events = _events(parts, message, run, _seen(request), shared)
    headers = {"x-accel-buffering": "no"}
    return StreamingResponse(events, media_type="text/event-stream", headers=headers)


async def back(request: Request) -> Response:
    """An address that only takes forms, opened as a page: its conversation."""
    conversation_id = request.path_params.get("id")
    return RedirectResponse(f"/ui/chat/{conversation_id}", status_code=303)


# The stream.


async def _events(
    parts: Parts, message: Message, run: Run, seen: int, shared: Mapping[str, Any]
) -> AsyncIterator[bytes]:
    """Pieces as they come, then the end. Ids are piece numbers."""
    told: bool | None = None
    silent_since = time.monotonic()
    while not run.has_ended or len(run.pieces) > seen:
        waits_here = not run.pieces and run.expected is not None and run.expected.is_local
        if not await run.news(seen, LOOK_S if waits_here else KEEP_ALIVE_S):
            is_loading = waits_here and _is_loading(parts, run.expected)
            if waits_here and is_loading != told:
                told = is_loading
                context = {**shared, "turn": view_turn(parts, message)}
                yield _encode(parts.pages.render("fragments/stream_wait.html", context))
            elif time.monotonic() - silent_since < KEEP_ALIVE_S:
                continue
            else:
                yield b": keep-alive\n\n"
            silent_since = time.monotonic()
            continue
        if len(run.pieces) > seen:
            context = {
                **shared,
                "turn": view_turn(parts, message),
                "piece": run.after(seen),
                "is_first": seen == 0,
            }
            seen = len(run.pieces)
            html = parts.pages.render("fragments/stream_piece.html", context)
            yield _encode(html, number=seen)
            silent_since = time.monotonic()
            await asyncio.sleep(EVENT_GAP_S)
    stored = _reload(parts, message)
    context = {**shared, "turn": view_turn(parts, stored), "running": False}
    yield _encode(parts.pages.render("fragments/stream_end.html", context))
    yield b"event: done\ndata:\n\n"


async def _whole(parts: Parts, message: Message, shared: Mapping[str, Any]) -> AsyncIterator[bytes]:
    """An answer that ended before its reader came back."""
    context = {**shared, "turn": view_turn(parts, message), "running": False}
    yield _encode(parts.pages.render("fragments/turn_whole.html", context))
    yield b"event: done\ndata:\n\n"


def _encode(html: str, number: int | None = None) -> bytes:
    """One server-sent event; a line of HTML is a line of data."""
    head = f"id: {number}\n" if number is not None else ""
    data = "".join(f"data: {line}\n" for line in html.split("\n"))
    return f"{head}{data}\n".encode()


def _reload(parts: Parts, message: Message) -> Message:
    found = parts.store.read(conversations.messages, message.conversation_id)
    return next((m for m in found if m.id == message.id), message)


def _seen(request: Request) -> int:
    """The last piece that the reader has: of a broken connection, else of the page."""
    wish = request.headers.get("last-event-id") or request.query_params.get("after", "")
    return int(wish) if wish.isascii() and wish.isdigit() and len(wish) < 10 else 0


def _is_loading(parts: Parts, expected: Deployment | None) -> bool:
    """Whether the local worker is starting: the one wait that has a name of its own."""
    if expected is None or not expected.is_local:
        return False
    return getattr(parts.catalogue.adapter(expected.provider), "state", None) == "loading"


# What is shown.


def view_turn(parts: Parts, message: Message) -> Turn:
    """A stored message, with its run while there is one."""
    run = parts.runs.get(message.id) if message.state == "running" else None
    if run is not None:
        return _view_running(parts, message, run)
    # Running in the store but not here: the process that wrote it is gone.
    state = "cut" if message.state == "running" else message.state
    reason, provider, detail = None, "", ""
    if state in ("cut", "failed"):
        reason, provider, detail = parse_failure(message.error)
    other = message.model and message.chosen_model and message.model != message.chosen_model
    return Turn(
        id=message.id,
        conversation_id=message.conversation_id,
        role=message.role,
        text=message.text,
        state=state,
        model=message.model,
        instead_of=message.chosen_model if other else None,
        ttft_s=message.ttft_s,
        input_tokens=message.input_tokens,
        output_tokens=message.output_tokens,
        reason=reason,
        provider=provider,
        detail=detail,
    )


def _view_running(parts: Parts, message: Message, run: Run) -> Turn:
    answer = run.answer
    model = answer.deployment.model if answer else None
    other = model and run.chosen_model and model != run.chosen_model
    return Turn(
        id=message.id,
        conversation_id=message.conversation_id,
        role=message.role,
        text=run.text,
        state="running",
        model=model,
        instead_of=run.chosen_model if other else None,
        ttft_s=answer.ttft_s if answer else None,
        seen=len(run.pieces),
        expected=run.expected.model if run.expected else None,
        is_loading=not run.pieces and _is_loading(parts, run.expected),
    )


def _page(
    request: Request,
    conversation: Conversation | None,
    *,
    draft: str = "",
    notice: Mapping[str, Any] | None = None,
    status: int = 200,
) -> Response:
    parts = parts_of(request)
    found = parts.store.read(conversations.messages, conversation.id) if conversation else []
    recent = parts.store.read(conversations.list_recent, RECENT)
    turns = [view_turn(parts, message) for message in found]
    context = {
        "page": "chat",
        "conversation": conversation,
        "turns": turns,
        "days": group_by_day(recent, parts.now(), language_of(request)),
        # Of what is shown, not of the runs: one that was stored a moment ago is still among them.
        "running": any(turn.state == "running" for turn in turns),
        "draft": draft,
        "notice": notice,
    }
    return render(request, "pages/chat.html", None, context, status=status)


def group_by_day(
    recent: list[Conversation], now: float, language: Language
) -> list[tuple[str, list[Conversation]]]:
    """Conversations under the day of their last message, newest first."""
    days: dict[str, list[Conversation]] = {}
    for conversation in recent:
        days.setdefault(day(language, conversation.updated_at, now), []).append(conversation)
    return list(days.items())


def _refused(
    request: Request, conversation: Conversation | None, text: str, error: OpenbrError
) -> Response:
    """The page with what was written still in its place, and why it was not sent."""
    language = language_of(request)
    name, provider, detail = reason_of(error)
    reason = REASONS[name]
    notice = {
        "tone": "bad",
        "title": language.gettext("The message was not sent."),
        "text": language.gettext(reason.sentence, provider=provider),
        "detail": detail,
    }
    if is_htmx(request):
        fragment = "fragments/composer_refused.html"
        return render(request, fragment, fragment, {"notice": notice}, status=error.status)
    return _page(request, conversation, draft=text, notice=notice, status=error.status)


def _check(text: str) -> None:
    if not text.strip():
        raise InvalidRequestError("write a message first", param="text")
    if len(text) > MAX_MESSAGE:
        raise TooLargeError(f"a message may have {MAX_MESSAGE} characters at most")


def _title(text: str) -> str:
    """The first line of the first message, cut at a word."""
    line = " ".join(text.strip().partition("\n")[0].split())
    if len(line) <= MAX_TITLE:
        return line
    head = line[:MAX_TITLE]
    return (head.rpartition(" ")[0] or head) + "\u2026"


def _conversation(request: Request) -> Conversation:
    conversation_id: int = request.path_params["id"]
    found = None
    if conversation_id <= _MAX_ID:
        found = parts_of(request).store.read(conversations.get, conversation_id)
    if found is None:
        raise NotFoundError("there is no such conversation; it may have been deleted")
    return found


def routes() -> list[BaseRoute]:
    return [
        Route("/ui/chat", Page(get=show_new, post=ask)),
        Route("/ui/chat/{id:int}", Page(get=show)),
        Route("/ui/chat/{id:int}/messages", Page(get=back, post=ask)),
        Route("/ui/chat/{id:int}/stop", Page(get=back, post=stop)),
        Route("/ui/chat/{id:int}/stream/{message_id:int}", Page(get=stream)),
    ]
