"""Make or refresh a virtual environment: openbr itself, or the packages of one of its extras.

In: a folder, then nothing (openbr, editable, with the extra `local`) or names of extras to add.
Out: the folder; the native modules compiled beside their sources where there is a C compiler,
else left out, and said. The rules that live only here: which Python is new enough, and what
happens where an optional part cannot be had.

The syntax stays that of Python 3.6, so that an old Python can say in one line that it is too old.
"""

import os
import pathlib
import shutil
import subprocess
import sys

OLDEST = (3, 11)
NEWER = [f"python3.{minor}" for minor in range(14, OLDEST[1] - 1, -1)]
ROOT = pathlib.Path(__file__).resolve().parent.parent
NO_LOCAL = "No matching distribution found for xllamacpp"


def say(text):
    print("openbr: " + text, file=sys.stderr, flush=True)


def ask(python, code):
    """What `python -c code` prints, or "" when it does not run."""
    try:
        return (
            subprocess.check_output(
                [str(python), "-c", code], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            .decode()
            .strip()
        )
    except (OSError, subprocess.CalledProcessError):
        return ""


def reexec_when_old():
    """Go on in a newer Python when this one is too old; end with one line when there is none."""
    if sys.version_info >= OLDEST:
        return
    for path in filter(None, map(shutil.which, NEWER)):
        if ask(path, "print(1)"):
            say(f"{sys.executable} is too old, using {path}")
            os.execv(path, [path, *sys.argv])
    oldest, found = (".".join(map(str, version[:2])) for version in (OLDEST, sys.version_info))
    say(f"needs Python {oldest} or newer; {sys.executable} is {found} and no newer one is on PATH")
    say("name one: make run PYTHON=/path/to/python3.12")
    sys.exit(2)


def make(folder):
    """The environment's Python; what is broken or made by too old a Python is made anew."""
    python = folder / "bin" / "python"
    if ask(python, f"import sys, pip; print(sys.version_info >= {OLDEST})") == "True":
        return python
    say(f"making {folder.name} with {sys.executable}")
    if subprocess.call([sys.executable, "-m", "venv", "--clear", str(folder)]):
        shutil.rmtree(str(folder), ignore_errors=True)
        say("cannot make a virtual environment; on Debian: apt-get install python3-venv")
        sys.exit(2)
    return python


def pip(python, *arguments):
    """`pip install`, once more when a package index may have hiccuped. (exit code, what it said)"""
    command = [str(python), "-m", "pip", "install", "--quiet", "--no-input", *arguments]
    command += ["--disable-pip-version-check", "--log", str(log_file(python))]
    for attempt in (1, 2):
        done = subprocess.run(
            command,
            cwd=str(ROOT),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        said = done.stdout.decode(errors="replace")
        if done.returncode == 0 or NO_LOCAL in said or attempt == 2:
            break
        say("that failed; trying once more")
    return done.returncode, said


def log_file(python):
    return python.parent.parent / "install.log"


def install_openbr(python, build_requires):
    # Built inside this environment rather than in one of pip's own: quicker, and a rebuild after
    # a change works without a network. xllamacpp from source is a long build: its wheel or nothing.
    flags = ["--no-build-isolation", "--only-binary", "xllamacpp", "--editable"]
    code, said = pip(python, *build_requires)
    if code == 0:
        code, said = pip(python, *flags, ".[local]")
    if code and NO_LOCAL in said:
        say("no xllamacpp wheel for this machine and Python: going on without the local model")
        code, said = pip(python, *flags, ".")
    return code, said


def native_files(python):
    """{name of a native module: its compiled file} for this environment's Python."""
    suffix = ask(python, "import sysconfig; print(sysconfig.get_config_var('EXT_SUFFIX'))")
    sources = sorted((ROOT / "openbr" / "_native").glob("*.pyx"))
    return {source.stem: source.with_suffix(suffix) for source in sources}


def why_not_compiled(python):
    """Why this machine cannot compile for this Python, or "" when it can."""
    if os.environ.get("OPENBR_PURE"):
        return "OPENBR_PURE is set"
    compilers = ((os.environ.get("CC") or "cc").split()[0], "gcc", "clang")
    if not any(map(shutil.which, compilers)):
        return "no C compiler on PATH"
    include = ask(python, "import sysconfig; print(sysconfig.get_path('include'))")
    if not pathlib.Path(include, "Python.h").exists():
        return "no Python.h, as Debian has it in python3-dev"
    return ""


def report_native(python):
    """Say what was compiled. The file that tests look at is empty where nothing can be."""
    files = native_files(python)
    missing = ", ".join(name for name, file in files.items() if not file.exists())
    why = why_not_compiled(python)
    (python.parent.parent / "can-compile").write_text("" if why else "1")
    if not missing:
        say("compiled " + ", ".join(files))
    elif why:
        say(f"{why}: {missing} in plain Python, slower; later: touch setup.py and run make again")
    else:
        say(f"NOT COMPILED: {missing}; going on in plain Python, slower. Why: {log_file(python)}")


def main():
    import tomllib

    python = make(pathlib.Path(sys.argv[1]).absolute())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    extras = sys.argv[2:]
    log_file(python).unlink(missing_ok=True)
    if extras:
        say("installing the extra " + ", ".join(extras))
        optional = project["project"]["optional-dependencies"]
        code, said = pip(python, *[one for extra in extras for one in optional[extra]])
    else:
        say("installing openbr")
        for file in native_files(python).values():
            file.unlink(missing_ok=True)  # a build that fails must not leave an old one in place
        code, said = install_openbr(python, project["build-system"]["requires"])
    if code:
        lines = log_file(python).read_text("utf-8", "replace").splitlines()
        sys.stderr.write("\n".join([*lines[-60:], said]))
        say(f"installing failed; all of its log: {log_file(python)}")
        sys.exit(1)
    if not extras:
        report_native(python)


if __name__ == "__main__":
    reexec_when_old()
    main()
