"""Run a Python command on a copy of this tree that holds no compiled module.

In: the folder for the copy, then arguments for Python. Out: the command's exit code; 1 when what
ran was not the copy, or when anything compiled was found in it afterwards. The rule that lives
only here: the copy is the current folder and first on PYTHONPATH, for child processes too.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LEFT_OUT = ("*.so", "*.pyd", "__pycache__", "*.egg-info", "build", "dist", ".*")
GENERATED = "*.c"  # beside the native modules only: the bench has a source of that kind


def copy_tree(target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    anywhere = shutil.ignore_patterns(*LEFT_OUT)
    generated = shutil.ignore_patterns(GENERATED)

    def left_out(folder: str, names: list[str]) -> set[str]:
        found = anywhere(folder, names)
        return found | generated(folder, names) if folder.endswith("_native") else found

    shutil.copytree(ROOT, target, ignore=left_out)


def environment(target: Path) -> dict[str, str]:
    """OPENBR_PURE: setup.py compiles nothing here either."""
    inherited = {k: v for k, v in os.environ.items() if k != "OPENBR_REQUIRE_NATIVE"}
    return {**inherited, "PYTHONPATH": str(target), "OPENBR_PURE": "1"}


def compiled(target: Path) -> list[Path]:
    return [file for file in target.rglob("*") if file.suffix in (".so", ".pyd")]


def main() -> int:
    target = Path(sys.argv[1]).resolve()
    copy_tree(target)
    env = environment(target)
    look = "import openbr, openbr._native as n; print(openbr.__file__, n.IMPLEMENTATION)"
    found = subprocess.check_output([sys.executable, "-c", look], cwd=target, env=env, text=True)
    if found.split() != [str(target / "openbr" / "__init__.py"), "pure"]:
        print(f"not pure: {found}", file=sys.stderr)
        return 1
    code = subprocess.call([sys.executable, *sys.argv[2:]], cwd=target, env=env)
    if compiled(target):
        print(f"not pure: {compiled(target)}", file=sys.stderr)
        return 1
    return code


if __name__ == "__main__":
    sys.exit(main())
