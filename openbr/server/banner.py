"""What a person sees at start: where to look, what runs, and from which files.

In: config, addresses, the certificate. Out: lines for a terminal, or one line for a log. The rule
that lives only here: it says what is, from `ultra.info()`; it cannot claim what did not load.
"""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlsplit

from openbr import __version__
from openbr.config import Config
from openbr.tls import Certificate
from openbr.ultra import Info


def format_banner(
    config: Config,
    urls: Sequence[str],
    native: Info,
    certificate: Certificate | None,
    *,
    needs_key: bool,
) -> str:
    rows = [
        ("open", urls[0] + "/ui"),
        ("api", urls[0] + "/v1"),
        *(("also", url) for url in urls[1:]),
        ("keys", _keys(needs_key)),
        ("providers", _providers(config)),
    ]
    if certificate is not None:
        made = " (new)" if certificate.made else ""
        rows.append(("certificate", f"{certificate.cert}{made}"))
        rows.append(("sha256", certificate.fingerprint))
    rows.append(("config", str(config.path) + ("" if config.found else " (not there: defaults)")))
    rows.append(("state", str(config.state)))
    label, *more = str(native).splitlines()
    rows += [("native", label), *(("", line) for line in more)]
    lines = [f"openbr {__version__}", *(f"  {name:<12}{text}" for name, text in rows)]
    return "\n".join(["", *lines, "  Ctrl-C ends it.", ""])


def format_line(
    config: Config,
    urls: Sequence[str],
    native: Info,
    certificate: Certificate | None,
    *,
    needs_key: bool,
) -> str:
    """The same for a log."""
    said = [
        f"openbr {__version__} on {' '.join(urls)}",
        f"keys: {_keys(needs_key)}",
        f"providers: {_providers(config)}",
        "native: " + ", ".join(f"{part.name} {part.kind}" for part in native.parts),
        f"config: {config.path}" + ("" if config.found else " (not there)"),
        f"state: {config.state}",
    ]
    if certificate is not None:
        said.append(f"certificate sha256: {certificate.fingerprint}")
    return "; ".join(said)


def _keys(needs_key: bool) -> str:
    return "required" if needs_key else "not needed on this machine"


def _providers(config: Config) -> str:
    names = [f"{one.name} ({urlsplit(one.base_url).hostname})" for one in config.providers]
    if config.local.enabled:
        names.insert(0, "local")
    return f"{len(names)}: " + ", ".join(names) if names else "none"
