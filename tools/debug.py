"""Run a Python command on a copy of this tree whose native modules are compiled with every check.

In: the folder for the copy, then arguments for Python. Out: the command's exit code. The rules that
live only here: the modules of the tree itself stay as they are; Python's own allocator watches for
writes beyond what was asked for.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from pure import copy_tree

CHECKS = {"OPENBR_CYTHON_DEBUG": "1", "OPENBR_REQUIRE_NATIVE": "1", "PYTHONMALLOC": "debug"}


def main() -> int:
    target = Path(sys.argv[1]).resolve()
    copy_tree(target)
    inherited = {k: v for k, v in os.environ.items() if k != "OPENBR_PURE"}
    env = {**inherited, **CHECKS, "PYTHONPATH": str(target)}
    build = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    subprocess.check_call(build, cwd=target, env=env)
    look = "import openbr._native as n; print(n.__file__, n.IMPLEMENTATION)"
    found = subprocess.check_output([sys.executable, "-c", look], cwd=target, env=env, text=True)
    if found.split() != [str(target / "openbr" / "_native" / "__init__.py"), "native"]:
        print(f"not the copy, or not compiled: {found}", file=sys.stderr)
        return 1
    return subprocess.call([sys.executable, *sys.argv[2:]], cwd=target, env=env)


if __name__ == "__main__":
    sys.exit(main())
