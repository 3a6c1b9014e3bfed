"""Build openbr: compile openbr/_native/*.pyx, put templates, static files and translations inside.

In: the sources. Out: a checkout or a wheel that works; where nothing can be compiled (no Cython,
no C compiler), the pure twins serve. Everything else about the package is in pyproject.toml.

OPENBR_PURE=1          compile nothing
OPENBR_CYTHON_DEBUG=1  compile with every check
"""

import os
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
# Folders at the top of the repository that become part of the package.
DATA = ("templates", "static", "locale")
PURE = os.environ.get("OPENBR_PURE") == "1"
DEBUG = os.environ.get("OPENBR_CYTHON_DEBUG") == "1"


def compiler_flags() -> list[str]:
    if sys.platform == "win32":
        return []
    if DEBUG:
        return ["-O1", "-g", "-UNDEBUG"]
    # -fno-plt: calls into Python go straight there, which is 1 % of a cache hit.
    # -fno-semantic-interposition: calls within a module are calls, which is 5 % of a pooled buffer.
    straight = ["-fno-plt", "-fno-semantic-interposition"] if sys.platform == "linux" else []
    return ["-O3", "-g0", *straight]


def make_extensions() -> list[Extension]:
    if PURE:
        return []
    try:
        from Cython.Build import cythonize
    except ImportError:
        print("openbr: no Cython, so the pure Python twins serve", file=sys.stderr)
        return []
    checks = dict.fromkeys(("boundscheck", "initializedcheck", "nonecheck", "overflowcheck"), True)
    macro = ("OPENBR_DEBUG", "1") if DEBUG else ("CYTHON_WITHOUT_ASSERTIONS", "1")
    extensions = cythonize(
        [
            Extension(
                "openbr._native.*",
                ["openbr/_native/*.pyx"],
                define_macros=[macro],
                extra_compile_args=compiler_flags(),
            )
        ],
        build_dir="build/cython-debug" if DEBUG else "build/cython",
        compiler_directives=checks if DEBUG else {},
        quiet=True,
    )
    for extension in extensions:
        extension.optional = True  # cythonize() does not pass it on
    return list(extensions)


class BuildWithData(build_py):
    """build_py, with the top-level data folders under openbr/. A checkout has them beside it."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for source, target in self._data():
                self.mkpath(str(target.parent))
                self.copy_file(str(source), str(target))

    def get_source_files(self) -> list[str]:
        native = [
            path for end in ("pyx", "pxd") for path in Path("openbr/_native").glob(f"*.{end}")
        ]
        return [
            *super().get_source_files(),
            *(str(source) for source, _ in self._data()),
            *(str(path) for path in native),
        ]

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        data = [] if self.editable_mode else [str(target) for _, target in self._data()]
        return [*super().get_outputs(include_bytecode), *data]

    def _data(self) -> list[tuple[Path, Path]]:
        target = Path(self.build_lib) / "openbr"
        return [
            (source.relative_to(ROOT), target / source.relative_to(ROOT))
            for folder in DATA
            for source in sorted((ROOT / folder).rglob("*"))
            if source.is_file() and not source.name.startswith(".")
        ]


setup(
    packages=find_packages(include=["openbr", "openbr.*"]),
    package_data={"openbr": ["py.typed", "prices.json"], "openbr._native": ["*.pyi"]},
    include_package_data=False,
    ext_modules=make_extensions(),
    cmdclass={"build_py": BuildWithData},
)
