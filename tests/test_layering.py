"""The rules of the tree, read from the source: who may import whom, and what no module does.

An import, at the top or inside a function, points down ROOMS. Imports for type checkers alone
are free: they never run.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from functools import cache
from importlib.util import resolve_name
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "openbr"

# From the door to the ground. A room may import any room below its own.
ROOMS = (
    ("cli", "starts everything; nothing needs it"),
    ("server", "runs the app; the app does not know how it is served"),
    ("tls", "certificates for the server"),
    ("app", "builds the parts and lists the endpoints"),
    ("web", "pages: they show what the rooms below know"),
    ("monitor", "watches the rooms below from outside"),
    ("api", "wire dialects in: they hand records to the walk"),
    ("gateway", "the walk through the rooms below"),
    ("auth", "headers and the store -> Caller"),
    ("route", "model -> deployments, from the catalogue"),
    ("cache", "answers kept; knows no provider"),
    ("catalogue", "which models the providers have"),
    ("providers", "adapters; they know upstreams, not who asks"),
    ("library", "model files on this disk"),
    ("upstream", "HTTP out; knows no provider"),
    ("stream", "chunks -> bytes; knows no HTTP client"),
    ("usage", "counts, on their way to the store"),
    ("store", "the only place with SQL"),
    ("ultra", "the face of the native layer"),
    ("_native", "no openbr but the flags"),
    ("config", "the only reader of the environment"),
    ("records", "the nouns"),
    ("errors", "what can go wrong, for all of them"),
)
RANK = {name: rank for rank, (name, _) in enumerate(ROOMS)}
# Inside providers/: the table of adapters, the adapters, then what they share.
SHARED_BY_ADAPTERS = ("framing", "base")

# A child process, started by path and never imported: it alone loads the language model.
WORKER = "openbr.providers.local_worker"
HEAVY = {"aiohttp", "anthropic", "httpx", "httpx2", "openai", "pydantic", "requests", "xllamacpp"}
LAZY = {"babel", "cryptography", "markdown_it", "nh3", "psutil", "pygments", "rich"}
# Reading its own terminal (NO_COLOR, TERM, COLUMNS) is the business of a command.
MAY_READ_ENVIRONMENT = {"openbr.config"}
TERMINAL_FACTS = {"NO_COLOR", "FORCE_COLOR", "TERM", "COLUMNS", "LINES", "LANG", "EDITOR"}
ROOMLESS_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "manager", "managers"}


@cache
def sources() -> dict[str, ast.Module]:
    """{dotted name: parsed source} of every module of openbr."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text("utf-8"), str(path))
    return found


def is_package(module: str) -> bool:
    return (ROOT / module.replace(".", "/")).is_dir()


def room_of(module: str) -> str | None:
    """The room of openbr.web.chat is web. The package itself and __main__ have none."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] != "__main__" else None


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def running_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node but those under `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(tree):
        if not is_type_checking(child):
            yield child
            yield from running_nodes(child)


def nodes_at_import(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run when the module is imported: of functions, decorators and defaults."""
    for child in ast.iter_child_nodes(tree):
        if is_type_checking(child):
            continue
        yield child
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            for part in (*getattr(child, "decorator_list", ()), child.args):
                yield part
                yield from nodes_at_import(part)
        else:
            yield from nodes_at_import(child)


def imported(module: str, node: ast.AST) -> Iterator[str]:
    """Full names of what an import statement loads; a submodule where there is one."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        package = module if is_package(module) else module.rpartition(".")[0]
        base = resolve_name("." * node.level + (node.module or ""), package)
        for alias in node.names:
            full = f"{base}.{alias.name}"
            yield full if full in sources() else base


def imports(module: str, nodes: Callable[[ast.AST], Iterator[ast.AST]]) -> Iterator[str]:
    for node in nodes(sources()[module]):
        yield from imported(module, node)


def every_module() -> pytest.MarkDecorator:
    return pytest.mark.parametrize("module", sorted(sources()))


@every_module()
def test_every_module_has_a_room_and_a_head_comment(module: str) -> None:
    room = room_of(module)
    assert room is None or room in RANK, f"{module} has no room: add it to ROOMS, in its place"
    assert not ROOMLESS_NAMES & set(module.split(".")), "a name for anything holds everything"
    docstring = ast.get_docstring(sources()[module])
    assert docstring or not sources()[module].body, f"{module} opens with what goes in and out"


def test_the_architecture_page_lists_the_rooms_in_this_order() -> None:
    page = (ROOT / "ARCHITECTURE.md").read_text("utf-8")
    cells = re.findall(r"^\| ((?:`\w+(?:/|\.py)`,? ?)+)\|", page, re.MULTILINE)
    listed = [name for cell in cells for name in re.findall(r"`(\w+)", cell)]
    built = {room_of(module) for module in sources()}
    assert listed == [name for name, _ in ROOMS if name in built]


@every_module()
def test_imports_point_down(module: str) -> None:
    room = room_of(module)
    if room is None:
        return
    for target in imports(module, running_nodes):
        other = room_of(target) if target in sources() else None
        if other is None:
            continue
        assert RANK[room] <= RANK[other], f"{module} imports {target}, which stands above it"
        if room == other == "providers":
            check_adapter(module, target)


def check_adapter(module: str, target: str) -> None:
    """An adapter knows what adapters share, never another adapter or the table of them."""
    if is_package(module) or target == "openbr.providers":
        assert is_package(module), f"{module} imports the table that lists it"
        return
    mine, other = module.rpartition(".")[2], target.rpartition(".")[2]
    order = {name: rank for rank, name in enumerate(SHARED_BY_ADAPTERS, 1)}
    assert order.get(mine, 0) < order.get(other, 0), f"{module} imports {target}, its neighbour"


def test_no_cycle_inside_a_room() -> None:
    graph = {m: {t for t in imports(m, nodes_at_import) if t in sources()} for m in sources()}
    done: set[str] = set()

    def walk(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, "a ring: " + " -> ".join([*path, module])
        if module not in done:
            for target in sorted(graph[module]):
                walk(target, (*path, module))
            done.add(module)

    for module in sorted(graph):
        walk(module, ())


@every_module()
def test_the_gateway_process_stays_light(module: str) -> None:
    loaded = {target.partition(".")[0] for target in imports(module, running_nodes)}
    if module != WORKER:
        assert not loaded & HEAVY, "no HTTP framework or vendor SDK in the gateway process"
    assert WORKER not in imports(module, running_nodes), "the worker is started, not imported"
    at_once = {target.partition(".")[0] for target in imports(module, nodes_at_import)}
    assert not at_once & LAZY, "most runs do not need it: import it where it is used"


@every_module()
def test_only_config_reads_the_environment(module: str) -> None:
    if module in MAY_READ_ENVIRONMENT:
        return
    source = sources()[module]
    for node in ast.walk(source):
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "environb", "getenv"):
            assert room_of(module) == "cli", f"line {node.lineno}: only config.py reads it"
            assert environment_name(source, node) in TERMINAL_FACTS, f"line {node.lineno}"
        if isinstance(node, ast.ImportFrom) and node.module == "os":
            assert not {"environ", "getenv"} & {alias.name for alias in node.names}


def environment_name(tree: ast.Module, wanted: ast.Attribute) -> str | None:
    """The literal name that an expression around `os.environ` asks for."""
    for node in ast.walk(tree):
        asked: ast.expr | None = None
        if isinstance(node, ast.Subscript) and node.value is wanted:
            asked = node.slice
        elif isinstance(node, ast.Compare) and wanted in node.comparators:
            asked = node.left
        elif isinstance(node, ast.Call) and node.args:
            called = node.func
            inner = called.value if isinstance(called, ast.Attribute) else None
            asked = node.args[0] if wanted in (called, inner) else None
        if isinstance(asked, ast.Constant):
            return str(asked.value)
    return None


SQL = re.compile(
    r"^\s*(SELECT\s.+\sFROM|INSERT\s+(OR\s+\w+\s+)?INTO|UPDATE\s+\w+\s+SET|DELETE\s+FROM"
    r"|CREATE\s+(UNIQUE\s+)?(TABLE|INDEX|VIEW|TRIGGER)|ALTER\s+TABLE|DROP\s+TABLE|PRAGMA\s)",
    re.DOTALL,
)


@every_module()
def test_sql_lives_in_the_store(module: str) -> None:
    if room_of(module) == "store":
        return
    assert "sqlite3" not in set(imports(module, running_nodes)), "the store opens the database"
    for node in ast.walk(sources()[module]):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            assert not SQL.match(node.value), f"line {node.lineno}: SQL outside store/"


# Work at import. The chooser of the native layer is the one module whose work is to choose then.
CHOOSES_AT_IMPORT = {"openbr._native", "openbr.__main__"}
STARTS_SOMETHING = {"open", "print", "input", "exec", "eval"}
EFFECTFUL_MODULES = {"asyncio", "os", "shutil", "socket", "sqlite3", "subprocess", "threading"}
OWNERS = {"cache", "lru_cache", "Lock", "RLock", "ContextVar", "WeakValueDictionary"}
CHANGES = {
    *("add", "append", "appendleft", "clear", "discard", "extend", "insert", "pop", "popitem"),
    *("remove", "setdefault", "sort", "update"),
}


@every_module()
def test_nothing_happens_at_import(module: str) -> None:
    if module in CHOOSES_AT_IMPORT:
        return
    for node in sources()[module].body:
        plain = not isinstance(node, (ast.For, ast.While, ast.With, ast.AsyncFor, ast.AsyncWith))
        assert plain, f"line {node.lineno}: work at import"
        if isinstance(node, ast.Expr):
            assert isinstance(node.value, ast.Constant), f"line {node.lineno}: work at import"
    for node in nodes_at_import(sources()[module]):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            effect = name in STARTS_SOMETHING or name.partition(".")[0] in EFFECTFUL_MODULES
            assert not effect, f"line {node.lineno}: {name}() runs at import"


@every_module()
def test_no_module_keeps_state(module: str) -> None:
    """What a module holds is never changed by its functions, and it holds no cache or lock."""
    if module in CHOOSES_AT_IMPORT:
        return
    tree = sources()[module]
    for node in nodes_at_import(tree):
        if isinstance(node, (ast.Name, ast.Attribute)):
            owner = node.id if isinstance(node, ast.Name) else node.attr
            assert owner not in OWNERS, f"line {node.lineno}: {owner} makes this module an owner"
    held = set(assigned_names(tree))
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Global)]
    for function in ast.walk(tree):
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            local = set(local_names(function))
            for line, name in changed_names(function):
                kept = name in held and name not in local
                assert not kept, f"line {line}: {function.name} changes {name} of the module"


def assigned_names(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        yield from (target.id for target in targets if isinstance(target, ast.Name))


def local_names(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    for node in ast.walk(function):
        if isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


def changed_names(function: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(function):
        target: ast.expr | None = None
        if isinstance(node, (ast.Subscript, ast.Attribute)) and not isinstance(node.ctx, ast.Load):
            target = node.value
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            target = node.func.value if node.func.attr in CHANGES else None
        if isinstance(target, ast.Name):
            yield target.lineno, target.id
