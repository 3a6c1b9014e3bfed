"""Why something does not work, in words for people: what happened, and what to do.

In: a reason of errors.UpstreamError, an error, an HTTP status. Out: Reason, with msgids for
gettext. The rule that lives only here: every reason has a label, a sentence and an advice; one
without is a defect that a test finds, so no page ever says "unknown error".
"""

from __future__ import annotations

from dataclasses import dataclass

from openbr.errors import (
    OpenbrError,
    RequestError,
    ServiceUnavailableError,
    StreamInterruptedError,
    UpstreamError,
)


def N_(message: str) -> str:
    """Mark a text for the catalogues; it is translated where it is shown."""
    return message


@dataclass(frozen=True, slots=True)
class Reason:
    """`label` fits a tag; `sentence` may hold %(provider)s. `tone` is bad, warn or none."""

    name: str
    label: str
    sentence: str
    advice: str
    tone: str = "bad"


_TABLE = (
    # Of a provider: the reasons of errors.UpstreamError.
    Reason(
        "refused",
        N_("offline"),
        N_("%(provider)s refused the connection."),
        N_("Start it, or correct its base_url in the config file."),
    ),
    Reason(
        "timeout",
        N_("no answer"),
        N_("%(provider)s did not answer in time."),
        N_("It may be busy, or behind a firewall. openbr goes on trying."),
    ),
    Reason(
        "dns",
        N_("address not found"),
        N_("The address of %(provider)s was not found."),
        N_("Check the network, and the name in its base_url."),
    ),
    Reason(
        "tls",
        N_("certificate refused"),
        N_("The certificate of %(provider)s cannot be trusted."),
        N_(
            "Check its base_url and its certificate: openbr connects to none that it cannot verify."
        ),
    ),
    Reason(
        "auth",
        N_("key refused"),
        N_("%(provider)s refused our key."),
        N_("Put a valid api_key in the config file: waiting does not cure this."),
    ),
    Reason(
        "quota",
        N_("limit"),
        N_("%(provider)s is limiting our requests."),
        N_("Wait, or choose another model."),
        "warn",
    ),
    Reason(
        "server",
        N_("failing"),
        N_("%(provider)s is failing on its side."),
        N_("openbr goes on trying. Another model may answer meanwhile."),
    ),
    Reason(
        "protocol",
        N_("unreadable"),
        N_("%(provider)s answered something that openbr cannot read."),
        N_("Check that its base_url ends where its API begins, most often in /v1."),
    ),
    Reason(
        "disabled",
        N_("off"),
        N_("%(provider)s is off."),
        N_("The line below says why, and what to do."),
        "none",
    ),
    Reason(
        "no_key",
        N_("no key"),
        N_("%(provider)s has no key."),
        N_("Add its api_key in the config file."),
        "none",
    ),
    # Of a choice.
    Reason(
        "unknown_model",
        N_("gone"),
        N_("%(provider)s does not list this model any more."),
        N_("Choose another one."),
    ),
    Reason(
        "none_available",
        N_("none"),
        N_("No model is available."),
        N_("Choose one on the Models page, or fetch the local one."),
    ),
    # Of an answer.
    Reason(
        "rejected",
        N_("rejected"),
        N_("%(provider)s rejected this conversation."),
        N_("A shorter conversation or another model may work."),
    ),
    Reason(
        "interrupted",
        N_("cut"),
        N_("The answer broke off."),
        N_("What had arrived is kept. Send your message again for a whole answer."),
        "warn",
    ),
    Reason(
        "restarted",
        N_("cut"),
        N_("openbr stopped while this answer was being written."),
        N_("What was saved is kept. Send your message again for a whole answer."),
        "warn",
    ),
    # Of openbr.
    Reason(
        "request",
        N_("refused"),
        N_("openbr refused this request."),
        N_("The line below says why."),
    ),
    Reason(
        "unavailable",
        N_("unavailable"),
        N_("openbr cannot do this now."),
        N_("The line below says why. Try again in a moment."),
    ),
    Reason(
        "internal",
        N_("defect"),
        N_("openbr failed. This is a defect of openbr."),
        N_("Its log says what happened. Nothing that was saved is lost."),
    ),
)
REASONS = {reason.name: reason for reason in _TABLE}

# Sentences of other rooms that most people will meet: known to the catalogues.
DETAILS = (
    N_("the local models are turned off: set enabled = true under [local]"),
    N_("llama.cpp is not installed: run `pip install openbr[local]` and start again"),
    N_("there is no local model yet: run `openbr models pull`"),
    N_("write a message first"),
    N_("an answer is still being written in this conversation"),
    N_("no model was marked"),
    N_("there is no such page"),
    N_("there is no such conversation; it may have been deleted"),
)


def reason_of(error: BaseException) -> tuple[str, str, str]:
    """(reason, provider, detail) of a failure. The detail is the error's own English sentence."""
    if isinstance(error, StreamInterruptedError):
        return "interrupted", error.provider, error.message
    if isinstance(error, UpstreamError):
        known = error.reason if error.reason in REASONS else "server"
        return known, error.provider, error.message
    if isinstance(error, OpenbrError) and error.code == "no_model":
        return "none_available", "", error.message
    if isinstance(error, RequestError):
        return "request", "", error.message
    if isinstance(error, ServiceUnavailableError):
        return "unavailable", "", error.message
    return "internal", "", ""


def encode_failure(error: BaseException) -> str:
    """What the store keeps of a failed answer, so that any language can be made of it later."""
    return "\n".join(reason_of(error))


def parse_failure(text: str | None) -> tuple[Reason, str, str]:
    """The reason, provider and detail of `encode_failure`; a killed process leaves none."""
    name, _, rest = (text or "restarted").partition("\n")
    provider, _, detail = rest.partition("\n")
    return REASONS.get(name, REASONS["internal"]), provider, detail


@dataclass(frozen=True, slots=True)
class StatusWords:
    title: str
    sentence: str


_STATUSES = {
    400: StatusWords(N_("That did not work"), N_("The request cannot be read as it was sent.")),
    401: StatusWords(N_("A key is needed"), N_("Sign in with a key of this openbr.")),
    403: StatusWords(N_("Not allowed"), N_("This request may not do that here.")),
    404: StatusWords(N_("Nothing here"), N_("The address is wrong, or what it showed is gone.")),
    405: StatusWords(N_("Not that way"), N_("This address does not take that kind of request.")),
    409: StatusWords(N_("Not now"), N_("Something else is under way here.")),
    413: StatusWords(N_("Too large"), N_("What was sent is larger than openbr takes.")),
    429: StatusWords(N_("Too many attempts"), N_("Wait a minute and try again.")),
    500: StatusWords(N_("openbr failed"), N_("This is a defect of openbr. Its log says more.")),
    503: StatusWords(N_("Not available now"), N_("Try again in a moment.")),
}


def status_words(status: int) -> StatusWords:
    return _STATUSES.get(status) or _STATUSES[400 if status < 500 else 503]
