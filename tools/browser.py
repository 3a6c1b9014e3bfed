"""Find a Chromium for the browser tests; with --install, get one when there is none.

In: OPENBR_BROWSER (a path that wins), PATH, OPENBR_REQUIRE_BROWSER=1 (none is then an error).
Out: on stdout the path of a browser that starts, or nothing; what is being done on stderr.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator

NAMES = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)
# Package manager -> the commands that install Chromium with it. All but brew want root.
MANAGERS: dict[str, list[list[str]]] = {
    "apt-get": [
        ["apt-get", "update", "-qq"],
        ["apt-get", "install", "-qq", "-y", "--no-install-recommends", "chromium"],
    ],
    "dnf": [["dnf", "install", "-q", "-y", "chromium"]],
    "apk": [["apk", "add", "--quiet", "chromium"]],
    "pacman": [["pacman", "-Sy", "--noconfirm", "--quiet", "chromium"]],
    "brew": [["brew", "install", "--quiet", "--cask", "chromium"]],
}


def find() -> str | None:
    """The first browser that answers --version; a name on PATH may be a stub that does not."""
    for candidate in _candidates():
        path = shutil.which(candidate)
        if path and _run([path, "--version"], timeout_s=60, quiet=True):
            return path
    return None


def _candidates() -> Iterator[str]:
    if os.environ.get("OPENBR_BROWSER"):
        yield os.environ["OPENBR_BROWSER"]
        return
    yield from NAMES
    own = _playwright_browser()
    if own:
        yield own


def _playwright_browser() -> str | None:
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        return None
    with sync_playwright() as playwright:
        return playwright.chromium.executable_path


def install() -> str | None:
    for commands in _installers():
        _say(" ".join(commands[-1]))
        for command in commands:
            # Once more, for a package index that hiccuped. Old package lists may still do.
            _run(command, timeout_s=600) or _run(command, timeout_s=600)
        found = find()
        if found:
            return found
    return None


def _installers() -> Iterator[list[list[str]]]:
    for name, commands in MANAGERS.items():
        if shutil.which(name) and (name == "brew" or os.geteuid() == 0):
            yield commands
    yield [[sys.executable, "-m", "playwright", "install", "chromium"]]


def _run(command: list[str], *, timeout_s: float, quiet: bool = False) -> bool:
    """Whether it ended well. What it prints is for stderr: stdout is the path alone."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL if quiet else sys.stderr,
            stderr=subprocess.DEVNULL if quiet else None,
            timeout=timeout_s,
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _say(text: str) -> None:
    print("openbr: " + text, file=sys.stderr, flush=True)


def main() -> int:
    found = find()
    if not found and os.environ.get("OPENBR_BROWSER"):
        _say(f"OPENBR_BROWSER={os.environ['OPENBR_BROWSER']} is no browser that starts")
    elif not found and "--install" in sys.argv[1:]:
        _say("no Chromium here, installing one for the browser tests")
        found = install()
    if found:
        print(found)
        return 0
    required = os.environ.get("OPENBR_REQUIRE_BROWSER") == "1"
    _say("no Chromium: " + ("and it is required" if required else "browser tests will be skipped"))
    return 1 if required else 0


if __name__ == "__main__":
    sys.exit(main())
