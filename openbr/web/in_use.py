"""What the model in use means for a reader: one word, one tone, and whether words leave.

In: route.InUse and the catalogue's states. Out: InUseView, which the pill on every page and the
route card of the Models page show. The rule that lives only here: chosen, in use and why are
three facts; the card is amber only when the first two differ, red only when nobody answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from openbr.web.reasons import REASONS, Reason

if TYPE_CHECKING:
    from openbr.records import Deployment, InUse
    from openbr.web.parts import Parts


@dataclass(frozen=True, slots=True, kw_only=True)
class InUseView:
    """`kind`: chosen (it answers), fallback (another answers), stopped (chosen, nobody
    answers), default (nobody chose, the local model answers), loading (the first lists are on
    their way), empty (nothing to answer)."""

    kind: str
    in_use: Deployment | None
    chosen: str | None
    reason: Reason | None = None
    detail: str | None = None
    retry_in_s: float | None = None
    chosen_at: float | None = None

    @property
    def shown(self) -> str:
        """The full id that stands for this state: the answering one, else the chosen one."""
        return self.in_use.model if self.in_use else self.chosen or ""

    @property
    def tone(self) -> str:
        return {"chosen": "ok", "fallback": "warn", "stopped": "bad"}.get(self.kind, "none")

    @property
    def blocked_provider(self) -> str:
        return (self.chosen or "").partition("/")[0]


def view_in_use(parts: Parts) -> InUseView:
    loading = any(provider.state == "loading" for provider in parts.catalogue.providers())
    return describe(parts.router.in_use(), loading=loading)


def describe(facts: InUse, *, loading: bool = False) -> InUseView:
    chosen = facts.chosen.model if facts.chosen else None
    if facts.in_use is None:
        kind = "stopped" if chosen else "loading" if loading else "empty"
    elif chosen is None:
        kind = "default"
    else:
        kind = "chosen" if facts.in_use.model == chosen else "fallback"
    reason = None
    if kind in ("fallback", "stopped", "empty"):
        reason = REASONS.get(facts.reason or "", REASONS["none_available"])
    return InUseView(
        kind=kind,
        in_use=facts.in_use,
        chosen=chosen,
        reason=reason,
        detail=facts.detail,
        retry_in_s=facts.retry_in_s,
        chosen_at=facts.chosen.chosen_at if facts.chosen else None,
    )


def short(model: str) -> str:
    """The provider's own name for a model: what is left of its full id."""
    return model.partition("/")[2] or model
