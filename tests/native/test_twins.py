"""A compiled module and its twin have the same face."""

import inspect

import pytest

MODULES = {
    "lru": ["TTLCache"],
    "arena": ["ArenaBuffer", "MemoryArena"],
    "pool": ["InstanceLoan", "InstancePool", "Loan", "ObjectPool", "PooledBuffer"],
    "heap": [],
}
CLASSES = [(module, name) for module, names in MODULES.items() for name in names]


def public(cls):
    """Its own names; a twin's buffer is a bytearray, and what that has besides is not promised."""
    inherited = {name for base in cls.__mro__[1:] for name in vars(base)}
    return {name for name in dir(cls) if not name.startswith("_") and name not in inherited}


def special(cls):
    """The special methods that give a class its protocols."""
    names = ("len", "enter", "exit", "repr", "class_getitem", "buffer")
    if not issubclass(cls, bytearray) and "Buffer" not in cls.__name__:
        names += ("iter", "contains", "getitem", "setitem", "delitem", "eq", "hash")
    return {name for name in names if f"__{name}__" in dir(cls)}


@pytest.mark.parametrize(("module", "name"), CLASSES)
def test_public_names(both, module, name):
    native, pure = (getattr(one, name) for one in both(module))
    assert public(native) == public(pure)
    assert special(native) == special(pure)
    assert native.__name__ == pure.__name__ == name


@pytest.mark.parametrize(("module", "name"), CLASSES)
def test_signatures(both, module, name):
    native, pure = (getattr(one, name) for one in both(module))
    for method in sorted(public(native)):
        if not callable(getattr(native, method)):
            continue
        faces = []
        for cls in (native, pure):
            parameters = list(inspect.signature(getattr(cls, method)).parameters.values())[1:]
            faces.append([(p.name, p.kind, p.default) for p in parameters])
        assert faces[0] == faces[1], method


@pytest.mark.parametrize(("module", "name"), CLASSES)
def test_docstrings(both, module, name):
    native, pure = (getattr(one, name) for one in both(module))
    for method in sorted(public(native)):
        mine, twins = getattr(native, method).__doc__, getattr(pure, method).__doc__
        assert inspect.cleandoc(mine or "") == inspect.cleandoc(twins or ""), method
    first = inspect.cleandoc(pure.__doc__).split("Threads:")[0]
    assert inspect.cleandoc(native.__doc__).split("Threads:")[0] == first
    assert "Threads:" in native.__doc__
    assert "Threads:" in pure.__doc__


@pytest.mark.parametrize("module", MODULES)
def test_no_other_public_names(both, module):
    for one in both(module):
        own = {
            key
            for key, value in vars(one).items()
            if inspect.isclass(value) and value.__module__ == one.__name__ and key[0] != "_"
        }
        assert own == set(MODULES[module])


def test_functions(both):
    native, pure = both("heap")
    for name in ("trim_heap", "limit_heap_arenas"):
        mine, twins = getattr(native, name), getattr(pure, name)
        faces = [
            [(p.name, p.kind, p.default) for p in inspect.signature(one).parameters.values()]
            for one in (mine, twins)
        ]
        assert faces[0] == faces[1]
        assert inspect.cleandoc(mine.__doc__) == inspect.cleandoc(twins.__doc__)
