"""A child process: ask this environment's pip where a wheel is, without downloading the wheel.

In: a package and a version, as arguments. Out: on stdout, pip's installation report, or as much of
it as the gateway reads; on stderr, pip's own words when it fails. The rule that lives only here:
pip's documented way from the release on that does not download for a report; before that, the
finder inside pip, which is no interface, but those releases will not change any more.

Shape: {"install": [{"download_info": {"url", "archive_info": {"hash": "sha256=..."}}}]}.
"""

from __future__ import annotations

import json
import re
import runpy
import sys
from typing import Any
from urllib.parse import urlsplit, urlunsplit

# Tried with 22.3 to 26.3: up to 25.2 `pip install --dry-run` fetches the whole wheel.
_REPORTS_WITHOUT_DOWNLOAD = (25, 3)
_FLAGS = ["--quiet", "--no-input", "--disable-pip-version-check", "--no-deps"]
_FLAGS += ["--only-binary", ":all:", "--retries", "2", "--timeout", "15"]


def main(package: str, version: str) -> int:
    import pip

    major, minor = map(int, re.findall(r"\d+", pip.__version__)[:2])
    if (major, minor) >= _REPORTS_WITHOUT_DOWNLOAD:
        command = ["install", "--dry-run", "--ignore-installed", "--report", "-"]
        sys.argv = ["pip", *command, *_FLAGS, f"{package}=={version}"]
        runpy.run_module("pip", run_name="__main__", alter_sys=True)
        return 0
    found = _find(package, version)
    if found is None:
        print(f"ERROR: No matching distribution found for {package}=={version}", file=sys.stderr)
        return 1
    parts = urlsplit(found.url_without_fragment)
    url = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    archive = {"hash": f"{found.hash_name}={found.hash}"} if found.hash_name else {}
    print(json.dumps({"install": [{"download_info": {"url": url, "archive_info": archive}}]}))
    return 0


def _find(package: str, version: str) -> Any:
    """pip's Link of the wheel, or None."""
    from pip._internal.commands import create_command
    from pip._vendor.packaging.specifiers import SpecifierSet

    command: Any = create_command("download")
    with command.main_context():
        options, _ = command.parse_args(_FLAGS)
        session = command.get_default_session(options)
        finder = command._build_package_finder(options=options, session=session)
        specifier = SpecifierSet(f"=={version}")
        best = finder.find_best_candidate(package, specifier=specifier).best_candidate
        return best.link if best is not None else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
