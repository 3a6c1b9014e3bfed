"""Every part under one roof, and memory given back without taking anything from anybody."""

import gc

import pytest

from openbr import ultra


@pytest.fixture
def manager():
    return ultra.create_memory_manager()


def test_stats_of_every_part_by_name(manager, clock):
    cache = manager.add("answers", ultra.create_cache(4, 10, clock=clock))
    pool = manager.add("receive", ultra.create_object_pool())
    arena = manager.add("stream", ultra.create_memory_arena())
    things = manager.add("things", ultra.create_instance_pool(list))
    cache.set("a", 1)
    with pool.borrow(10):
        pass
    arena.append(b"abc")
    with things.borrow():
        pass
    stats = manager.stats()
    assert list(stats) == ["answers", "receive", "stream", "things"]
    assert stats["answers"].entries == 1
    assert stats["receive"].idle_bytes == 64
    assert stats["stream"].used == 3
    assert stats["things"].idle == 1


def test_trim_takes_only_what_nobody_needs(manager, clock):
    cache = manager.add("answers", ultra.create_cache(4, 10, clock=clock))
    pool = manager.add("receive", ultra.create_object_pool())
    arena = manager.add("stream", ultra.create_memory_arena())
    things = manager.add("things", ultra.create_instance_pool(list))
    cache.set("old", 1)
    clock.tick(9)
    cache.set("new", 1)
    clock.tick(1)
    lent = pool.acquire(100)
    pool.release(pool.acquire(1000))
    arena.append(b"abc")
    things.release(things.acquire())
    trimmed = manager.trim()
    assert (trimmed.entries, trimmed.idle, trimmed.idle_bytes) == (1, 2, 1024)
    assert trimmed.heap in (True, False)
    assert cache.keys() == ["new"]
    assert len(lent) == 100
    assert arena.take() == b"abc"


def test_trim_goes_on_where_a_callback_fails(manager, clock):
    def on_evict(*call):
        raise LookupError(call)

    bad = manager.add("bad", ultra.create_cache(4, 1, clock=clock, on_evict=on_evict))
    pool = manager.add("receive", ultra.create_object_pool())
    bad.set("a", 1)
    clock.tick(1)
    pool.release(pool.acquire(1000))
    with pytest.raises(LookupError, match="expired"):
        manager.trim()
    assert (len(bad), pool.stats().idle) == (0, 0)


def test_keeps_nothing_alive(manager):
    cache = manager.add("answers", ultra.create_cache())
    with pytest.raises(ValueError, match="'answers'"):
        manager.add("answers", ultra.create_cache())
    del cache
    gc.collect()
    assert manager.stats() == {}
    manager.add("answers", ultra.create_cache())
    assert manager.trim().entries == 0


def test_forgets_on_demand(manager):
    cache = manager.add("answers", ultra.create_cache())
    manager.remove("answers")
    assert manager.stats() == {}
    with pytest.raises(KeyError):
        manager.remove("answers")
    assert manager.add("answers", cache) is cache


def test_refuses_what_is_no_part(manager):
    for part in ({}, None, 1):
        with pytest.raises(TypeError, match="arena, a pool or a cache"):
            manager.add("x", part)


def test_two_managers_do_not_see_each_other(manager):
    cache = manager.add("answers", ultra.create_cache())
    other = ultra.create_memory_manager()
    assert other.stats() == {}
    other.add("answers", cache)
