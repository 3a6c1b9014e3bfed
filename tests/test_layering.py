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
    ("prices", "what tokens cost; knows no request"),
    ("store", "the only place with SQL"),
    ("ultra", "the face of the native layer"),
    ("_native", "no openbr but the flags"),
    ("config", "the only reader of the environment"),
    ("records", "the nouns"),
    ("secret", "a credential that does not show itself"),
    ("errors", "what can go wrong, for all of them"),
)
RANK = {name: rank for rank, (name, _) in enumerate(ROOMS)}
# Inside providers/: the table of adapters, the adapters, then what they share.
SHARED_BY_ADAPTERS = ("openai_wire", "framing", "local_process", "base")

# A child process, started by path and never imported: it alone loads the language model.
WORKER = "openbr.providers.local_worker"
HEAVY = {"aiohttp", "anthropic", "httpx", "httpx2", "openai", "pydantic", "requests", "xllamacpp"}
LAZY = {"babel", "cryptography", "markdown_it", "nh3", "psutil", "pygments", "rich"}
# Reading its own terminal (NO_COLOR, TERM, COLUMNS) is the business of a command.
MAY_READ_ENVIRONMENT = {"config"}
ENVIRONMENT = {"os.environ", "os.environb", "os.getenv", "os.putenv"}
TERMINAL_FACTS = {"NO_COLOR", "FORCE_COLOR", "TERM", "COLUMNS", "LINES", "LANG", "EDITOR"}
ROOMLESS_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "manager", "managers"}
SQL = re.compile(
    r"^\s*(SELECT\s.+\sFROM|INSERT\s+(OR\s+\w+\s+)?INTO|UPDATE\s+\w+\s+SET|DELETE\s+FROM"
    r"|CREATE\s+(UNIQUE\s+)?(TABLE|INDEX|VIEW|TRIGGER)|ALTER\s+TABLE|DROP\s+TABLE|PRAGMA\s)",
    re.DOTALL,
)
# The chooser of the native layer is the one module whose work is to choose when it is imported.
CHOOSES_AT_IMPORT = {"openbr._native", "openbr.__main__"}
STARTS_SOMETHING = {"open", "print", "input", "exec", "eval"}
EFFECTFUL_MODULES = {"asyncio", "os", "shutil", "socket", "sqlite3", "subprocess", "threading"}
OWNERS = {"cache", "lru_cache", "Lock", "RLock", "ContextVar", "WeakValueDictionary"}
CHANGES = {
    *("add", "append", "appendleft", "clear", "discard", "extend", "insert", "pop", "popitem"),
    *("remove", "setdefault", "sort", "update"),
}


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


# The rules. Each gives what is wrong in one module, with its line where there is one.

Wrong = Iterator[str]


def rule_every_module_has_a_room(module: str) -> Wrong:
    room = room_of(module)
    if room is not None and room not in RANK:
        yield "has no room: add it to ROOMS, in its place"
    if ROOMLESS_NAMES & set(module.split(".")):
        yield "has a name for anything: it will hold everything"


def rule_every_module_has_a_head_comment(module: str) -> Wrong:
    tree = sources()[module]
    if tree.body and not ast.get_docstring(tree):
        yield "opens without saying what goes in and what comes out"


def rule_imports_point_down(module: str) -> Wrong:
    room = room_of(module)
    for target in imports(module, running_nodes):
        other = room_of(target) if target in sources() else None
        if room not in RANK or other not in RANK:
            continue
        if RANK[room] > RANK[other]:
            yield f"imports {target}, which stands above it"
        elif room == other == "providers" and not may_know(module, target):
            yield f"imports {target}, its neighbour"


def may_know(module: str, target: str) -> bool:
    """An adapter knows what adapters share, never another adapter or the table of them."""
    if is_package(module) or is_package(target):
        return is_package(module)
    order = {name: rank for rank, name in enumerate(SHARED_BY_ADAPTERS, 1)}
    mine, other = (order.get(name.rpartition(".")[2], 0) for name in (module, target))
    return mine < other


def rule_the_gateway_process_stays_light(module: str) -> Wrong:
    loaded = {target.partition(".")[0] for target in imports(module, running_nodes)}
    if loaded & HEAVY and module != WORKER:
        yield f"loads {loaded & HEAVY} into the gateway process"
    if WORKER in imports(module, running_nodes):
        yield "imports the worker, which is to be started"
    at_once = {target.partition(".")[0] for target in imports(module, nodes_at_import)}
    if at_once & LAZY:
        yield f"imports {at_once & LAZY} at once, which most runs do not need"


def rule_only_config_reads_the_environment(module: str) -> Wrong:
    source = sources()[module]
    for node in ast.walk(source) if room_of(module) not in MAY_READ_ENVIRONMENT else ():
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ENVIRONMENT:
            of_terminal = environment_name(source, node) in TERMINAL_FACTS
            if room_of(module) != "cli" or not of_terminal:
                yield f"line {node.lineno}: only config reads the environment"
        elif isinstance(node, ast.ImportFrom) and node.module == "os":
            names = {alias.name for alias in node.names}
            yield from (f"line {node.lineno}: {name}" for name in names & {"environ", "getenv"})


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


def rule_sql_lives_in_the_store(module: str) -> Wrong:
    if room_of(module) == "store":
        return
    if "sqlite3" in imports(module, running_nodes):
        yield "imports sqlite3: the store opens the database"
    for node in ast.walk(sources()[module]):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and SQL.match(node.value):
            yield f"line {node.lineno}: SQL outside store/"


def rule_nothing_happens_at_import(module: str) -> Wrong:
    if module in CHOOSES_AT_IMPORT:
        return
    for node in sources()[module].body:
        bare = isinstance(node, ast.Expr) and not isinstance(node.value, ast.Constant)
        if bare or isinstance(node, (ast.For, ast.While, ast.With)):
            yield f"line {node.lineno}: work at import"
    for node in nodes_at_import(sources()[module]):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in STARTS_SOMETHING or name.partition(".")[0] in EFFECTFUL_MODULES:
                yield f"line {node.lineno}: {name}() runs at import"


def rule_no_module_keeps_state(module: str) -> Wrong:
    """What a module holds is never changed by its functions; it holds no cache and no lock."""
    if module in CHOOSES_AT_IMPORT:
        return
    tree = sources()[module]
    for node in nodes_at_import(tree):
        owners: set[str] = set()
        if isinstance(node, ast.Call):
            owners = {ast.unparse(node.func).rpartition(".")[2]}
        elif isinstance(node, ast.FunctionDef) and any(ast.iter_child_nodes(node.args)):
            # Of a function of nothing, @cache keeps one answer: a constant, made when needed.
            owners = {ast.unparse(one).rpartition(".")[2] for one in node.decorator_list}
        if owners & OWNERS:
            yield f"line {getattr(node, 'lineno', 0)}: {owners & OWNERS} makes it an owner of state"
    held = set(assigned_names(tree))
    for function in ast.walk(tree):
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            changed = set(changed_names(function)) & (held - set(local_names(function)))
            changed |= set(rebound_names(function))
            if changed:
                yield f"line {function.lineno}: {function.name} changes the module's {changed}"


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


def changed_names(function: ast.AST) -> Iterator[str]:
    for node in ast.walk(function):
        target: ast.expr | None = None
        if isinstance(node, (ast.Subscript, ast.Attribute)) and not isinstance(node.ctx, ast.Load):
            target = node.value
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            target = node.func.value if node.func.attr in CHANGES else None
        if isinstance(target, ast.Name):
            yield target.id


def rebound_names(function: ast.AST) -> Iterator[str]:
    """The `global` names of a function, but those it binds to what it has just imported: a late
    import is a constant too."""
    nodes = list(ast.walk(function))
    declared = {name for node in nodes if isinstance(node, ast.Global) for name in node.names}
    loaded = {
        alias.asname or alias.name
        for node in nodes
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    }
    for node in nodes:
        if isinstance(node, (ast.Assign, ast.AugAssign, ast.AnnAssign)):
            late = isinstance(node.value, ast.Name) and node.value.id in loaded
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = {target.id for target in targets if isinstance(target, ast.Name)}
            yield from () if late else names & declared


RULES = [rule for name, rule in list(globals().items()) if name.startswith("rule_")]


@pytest.mark.parametrize("rule", RULES, ids=[rule.__name__.removeprefix("rule_") for rule in RULES])
def test_every_module_keeps(rule: Callable[[str], Wrong]) -> None:
    wrong = [f"{module}: {what}" for module in sources() for what in rule(module)]
    assert not wrong, "\n".join(wrong)


def test_no_ring_of_imports() -> None:
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


def test_the_architecture_page_lists_the_rooms_in_this_order() -> None:
    page = (ROOT / "ARCHITECTURE.md").read_text("utf-8")
    cells = re.findall(r"^\| ((?:`\w+(?:/|\.py)`,? ?)+)\|", page, re.MULTILINE)
    listed = [name for cell in cells for name in re.findall(r"`(\w+)", cell)]
    built = {room_of(module) for module in sources()}
    assert listed == [name for name, _ in ROOMS if name in built]
