"""What an ObjectPool and an InstancePool do, for both implementations."""

import copy
import gc
import pickle
import random
import sys
import threading
import weakref

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


@pytest.fixture
def pool_module(load_module, kind):
    return load_module("pool", kind)


@pytest.fixture
def make(pool_module):
    return pool_module.ObjectPool


def is_gone(buffer):
    """Refused, or on Python 3.11 the twin's way to refuse: empty."""
    if len(buffer) != 0:
        return False
    try:
        view = memoryview(buffer)
    except ValueError as exc:
        return "gone" in str(exc)
    return len(view) == 0 and sys.version_info < (3, 12) and isinstance(buffer, bytearray)


class TestBuffers:
    def test_is_writable_memory_of_that_size(self, make):
        pool = make()
        for size in (1, 63, 64, 65, 1000, 70_000):
            buffer = pool.acquire(size)
            view = memoryview(buffer)
            assert len(buffer) == view.nbytes == size
            assert (view.readonly, view.format, view.shape) == (False, "B", (size,))
            view[:] = b"x" * size
            view.release()
            pool.release(buffer)

    def test_lent_ones_are_apart(self, make):
        pool = make()
        for _ in range(3):
            buffers = [pool.acquire(100) for _ in range(20)]
            for n, buffer in enumerate(buffers):
                memoryview(buffer)[:] = bytes([n]) * 100
            assert all(bytes(memoryview(b)) == bytes([n]) * 100 for n, b in enumerate(buffers))
            for buffer in buffers:
                pool.release(buffer)
        stats = pool.stats()
        assert (stats.hits, stats.misses, stats.in_use, stats.idle) == (40, 20, 0, 20)

    def test_one_class_serves_all_its_sizes(self, make):
        pool = make()
        pool.release(pool.acquire(65))
        for size in (128, 66, 100):
            buffer = pool.acquire(size)
            assert len(buffer) == size
            pool.release(buffer)
        assert pool.stats().hits == 3
        for size in (64, 129):
            pool.release(pool.acquire(size))
        assert pool.stats().misses == 3

    def test_memory_is_used_again_the_last_released_first(self, load_module):
        ctypes = pytest.importorskip("ctypes")
        pool = load_module("pool", "native").ObjectPool()

        def address(buffer):
            found = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
            gc.collect()
            return found

        first, second = pool.acquire(5000), pool.acquire(5000)
        addresses = address(first), address(second)
        pool.release(first), pool.release(second)
        assert address(pool.acquire(4097)) == addresses[1]

    @pytest.mark.parametrize(
        ("n", "error"),
        [
            (0, ValueError),
            (-1, ValueError),
            (2**62, OverflowError),
            (2**70, OverflowError),
            (1.0, TypeError),
            ("1", TypeError),
        ],
    )
    def test_sizes_that_are_none(self, make, n, error):
        pool = make()
        for call in (pool.acquire, pool.borrow):
            with pytest.raises(error, match="n must be"):
                call(n)
        for name in ("max_buffers", "max_bytes"):
            with pytest.raises(error, match=name):
                make(**{name: n})
        assert pool.stats() == make().stats()

    def test_more_than_there_is(self, make):
        pool = make()
        with pytest.raises(MemoryError):
            pool.acquire(2**47)
        assert pool.stats().in_use == 0

    def test_is_made_by_a_pool_only(self, pool_module):
        for name in ("PooledBuffer", "Loan", "InstanceLoan"):
            cls = getattr(pool_module, name)
            with pytest.raises(TypeError):
                cls()
        for name in ("PooledBuffer", "ObjectPool", "InstancePool"):
            with pytest.raises(TypeError):
                type("Sub", (getattr(pool_module, name),), {})

    def test_is_not_copied(self, make):
        pool = make()
        for attempt in (copy.copy, copy.deepcopy, pickle.dumps):
            for one in (pool, pool.acquire(1)):
                with pytest.raises(TypeError, match="cannot pickle"):
                    attempt(one)


class TestRelease:
    def test_the_buffer_is_gone(self, make):
        pool = make()
        buffer = pool.acquire(10)
        pool.release(buffer)
        assert is_gone(buffer)

    def test_a_name_left_over_does_not_reach_into_the_next_use(self, make):
        pool = make()
        stale = pool.acquire(10)
        pool.release(stale)
        fresh = pool.acquire(10)
        assert pool.stats().hits == 1
        assert is_gone(stale)
        assert stale is not fresh
        with pytest.raises(ValueError, match="released already"):
            pool.release(stale)
        memoryview(fresh)[:] = b"0123456789"
        pool.release(fresh)

    def test_twice_is_refused(self, make):
        pool = make()
        buffer = pool.acquire(10)
        pool.release(buffer)
        with pytest.raises(ValueError, match="released already"):
            pool.release(buffer)
        assert pool.stats().idle == 1

    def test_while_a_view_exists_is_refused(self, make):
        pool = make()
        buffer = pool.acquire(10)
        view = memoryview(buffer)[3:]
        with pytest.raises(BufferError, match="view"):
            pool.release(buffer)
        view[0] = 7
        assert len(buffer) == 10
        assert memoryview(buffer)[3] == 7
        assert pool.stats().in_use == 1
        view.release()
        pool.release(buffer)
        assert is_gone(buffer)

    def test_of_another_pool_is_refused(self, make):
        pool, other = make(), make()
        buffer = pool.acquire(10)
        with pytest.raises(ValueError, match="another pool"):
            other.release(buffer)
        assert len(buffer) == 10
        pool.release(buffer)

    @pytest.mark.parametrize("foreign", [None, 1, bytearray(10), b"", memoryview(b"")])
    def test_what_is_no_buffer_of_a_pool_is_refused(self, make, foreign):
        with pytest.raises(TypeError, match="PooledBuffer"):
            make().release(foreign)

    def test_what_is_never_released_is_not_lent_for_ever(self, make):
        pool = make()
        buffer = pool.acquire(10)
        assert pool.stats().in_use == 1
        del buffer
        gc.collect()
        assert pool.stats().in_use == 0
        assert pool.stats().idle == 0

    def test_a_pool_may_go_first(self, make):
        pool = make()
        pool.release(pool.acquire(100))
        reference = weakref.ref(pool)
        buffer = pool.acquire(10)
        idle = pool.acquire(1000)
        pool.release(idle)
        del pool
        gc.collect()
        assert reference() is not None  # its buffer needs it
        memoryview(buffer)[:] = b"x" * 10
        reference().release(buffer)
        gc.collect()
        assert reference() is None
        assert is_gone(buffer) and is_gone(idle)

    def test_a_view_outlives_everything(self, make):
        view = memoryview(make().acquire(10))
        gc.collect()
        view[:] = b"0123456789"
        assert bytes(view) == b"0123456789"


class TestBounds:
    def test_by_count_the_longest_idle_goes(self, make):
        pool = make(max_buffers=2)
        buffers = [pool.acquire(size) for size in (10, 1000, 10_000)]
        for buffer in buffers:
            pool.release(buffer)
        stats = pool.stats()
        assert (stats.idle, stats.idle_bytes, stats.discarded) == (2, 1024 + 16_384, 1)
        pool.release(pool.acquire(1000))
        assert pool.stats().hits == 1
        pool.acquire(10)
        assert pool.stats().misses == 4

    def test_by_bytes(self, make):
        pool = make(max_bytes=1000)
        small = [pool.acquire(64) for _ in range(10)]
        for buffer in small:
            pool.release(buffer)
        assert pool.stats().idle_bytes == 640
        pool.release(pool.acquire(500))
        stats = pool.stats()
        assert (stats.idle, stats.idle_bytes, stats.discarded) == (8, 7 * 64 + 512, 3)

    def test_one_that_is_too_large_pushes_nobody_out(self, make):
        pool = make(max_bytes=1000)
        pool.release(pool.acquire(64))
        large = pool.acquire(1025)
        pool.release(large)
        assert is_gone(large)
        stats = pool.stats()
        assert (stats.idle, stats.idle_bytes, stats.discarded) == (1, 64, 1)

    def test_trim(self, make):
        pool = make()
        kept, buffers = pool.acquire(5), [pool.acquire(n) for n in (1, 100, 1000)]
        for buffer in buffers:
            pool.release(buffer)
        assert pool.trim() == 64 + 128 + 1024
        assert pool.trim() == 0
        stats = pool.stats()
        assert (stats.idle, stats.idle_bytes, stats.in_use, stats.discarded) == (0, 0, 1, 0)
        assert all(is_gone(buffer) for buffer in buffers)
        memoryview(kept)[:] = b"still"
        pool.release(kept)
        assert pool.stats().idle == 1

    def test_a_steady_load_is_served_from_what_is_idle(self, make):
        pool, rng = make(), random.Random(3)
        lent = []
        for _ in range(20_000):
            if lent and (len(lent) >= 16 or rng.random() < 0.5):
                pool.release(lent.pop(rng.randrange(len(lent))))
            else:
                lent.append(pool.acquire(rng.choice((4096, 16_384, 65_536))))
        assert pool.stats().hit_rate >= 0.99


class TestBorrow:
    def test_releases_at_the_end(self, make):
        pool = make()
        with pool.borrow(10) as buffer:
            assert len(buffer) == 10
            assert pool.stats().in_use == 1
        assert is_gone(buffer)
        assert pool.stats().in_use == 0

    def test_nothing_is_taken_before_it_begins(self, make):
        pool = make()
        pool.borrow(10)
        assert pool.stats().misses == 0

    def test_releases_after_an_error(self, make):
        pool = make()
        with pytest.raises(ZeroDivisionError), pool.borrow(10):
            1 / 0  # noqa: B018
        assert pool.stats().idle == 1

    def test_with_a_view_left(self, make):
        pool = make()
        with pytest.raises(BufferError), pool.borrow(10) as buffer:
            view = memoryview(buffer)
        assert len(view) == 10
        with pytest.raises(ZeroDivisionError), pool.borrow(10) as other:
            left = memoryview(other)
            1 / 0  # noqa: B018
        assert pool.stats().in_use == 2
        del view, buffer, left, other
        gc.collect()
        assert pool.stats().in_use == 0

    def test_released_inside(self, make):
        pool = make()
        with pytest.raises(ValueError, match="released already"), pool.borrow(10) as buffer:
            pool.release(buffer)

    def test_once_at_a_time(self, make):
        loan = make().borrow(10)
        with pytest.raises(RuntimeError):
            loan.__exit__(None, None, None)
        with loan, pytest.raises(RuntimeError):
            loan.__enter__()
        with loan as buffer:
            assert len(buffer) == 10


operations = st.lists(
    st.tuples(
        st.sampled_from(["acquire", "acquire", "release", "release", "drop", "view", "trim"]),
        st.sampled_from([1, 64, 65, 100, 128, 500, 1000, 3000, 5000]),
        st.integers(0, 20),
    ),
    max_size=80,
)


class Life:
    def __init__(self, pool):
        self.pool, self.lent, self.views, self.mark = pool, [], [], 0

    def do(self, name, size, index):
        if name == "acquire":
            buffer = self.pool.acquire(size)
            assert len(buffer) == size
            self.mark = (self.mark + 1) % 256
            memoryview(buffer)[:] = bytes([self.mark]) * size
            self.lent.append((buffer, size, self.mark))
        elif name == "trim":
            self.views.clear()
            return self.pool.trim()
        elif index < len(self.lent):
            buffer = self.lent[index][0]
            if name == "view":
                self.views.append((buffer, memoryview(buffer)))
            elif any(owner is buffer for owner, _ in self.views):
                with pytest.raises(BufferError):
                    self.pool.release(buffer)
            elif name == "release":
                self.pool.release(buffer)
                del self.lent[index]
            else:
                del self.lent[index], buffer
        for buffer, size, mark in self.lent:
            with memoryview(buffer) as view:
                assert view == bytes([mark]) * size
        return None


@given(
    bounds=st.sampled_from([(100, 10**6), (3, 10**6), (100, 2000), (1, 100)]),
    operations=operations,
)
@settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # they hold no state
)
def test_twins_agree_on_any_life(both, bounds, operations):
    count, size = bounds
    lives = [Life(module.ObjectPool(count, max_bytes=size)) for module in both("pool")]
    for operation in operations:
        answers = [life.do(*operation) for life in lives]
        assert answers[0] == answers[1]
        assert lives[0].pool.stats() == lives[1].pool.stats()


class Thing:
    def __init__(self):
        self.dirty = False


class TestInstances:
    @pytest.fixture
    def make(self, pool_module):
        return pool_module.InstancePool

    def test_the_last_released_is_lent_first_and_reset(self, make):
        pool = make(Thing, lambda thing: setattr(thing, "dirty", False))
        one, other = pool.acquire(), pool.acquire()
        one.dirty = other.dirty = True
        pool.release(one), pool.release(other)
        assert pool.acquire() is other
        assert pool.acquire() is one
        assert not one.dirty
        stats = pool.stats()
        assert (stats.hits, stats.misses, stats.in_use, stats.idle) == (2, 2, 2, 0)
        assert (stats.hit_rate, stats.idle_bytes) == (0.5, 0)

    def test_foreign_and_twice_are_refused(self, make):
        pool, other = make(Thing), make(Thing)
        thing = pool.acquire()
        for wrong in (Thing(), other.acquire(), None, 1):
            with pytest.raises(ValueError, match="not lent"):
                pool.release(wrong)
        pool.release(thing)
        with pytest.raises(ValueError, match="not lent"):
            pool.release(thing)
        assert pool.stats().idle == 1

    def test_bounded(self, make):
        pool = make(Thing, max_objects=2)
        things = [pool.acquire() for _ in range(5)]
        for thing in things:
            pool.release(thing)
        stats = pool.stats()
        assert (stats.idle, stats.discarded, stats.in_use) == (2, 3, 0)
        assert pool.trim() == 2
        assert pool.stats().idle == 0

    def test_a_reset_that_fails_drops_the_object(self, make):
        pool = make(Thing, lambda thing: 1 / 0)
        thing = pool.acquire()
        with pytest.raises(ZeroDivisionError):
            pool.release(thing)
        stats = pool.stats()
        assert (stats.idle, stats.in_use) == (0, 0)

    def test_a_reset_that_uses_the_pool(self, make):
        seen = []

        def reset(thing):
            with pytest.raises(ValueError):
                pool.release(thing)
            seen.append(pool.acquire() is not thing)

        pool = make(Thing, reset)
        pool.release(pool.acquire())
        assert seen == [True]

    def test_a_factory_that_fails_or_repeats_itself(self, make):
        with pytest.raises(ZeroDivisionError):
            make(lambda: 1 / 0).acquire()
        thing = Thing()
        pool = make(lambda: thing)
        pool.acquire()
        with pytest.raises(ValueError, match="new object"):
            pool.acquire()

    def test_borrow(self, make):
        pool = make(Thing)
        loan = pool.borrow()
        with loan as thing, pytest.raises(RuntimeError):
            loan.__enter__()
        assert pool.acquire() is thing
        with pytest.raises(RuntimeError):
            loan.__exit__(None, None, None)
        with pytest.raises(ValueError), pool.borrow() as thing:
            pool.release(thing)
        with pytest.raises(KeyError), pool.borrow() as thing:
            pool.release(thing)
            raise KeyError

    @pytest.mark.parametrize("kwargs", [{"reset": 1}, {"factory": 1}, {"factory": None}])
    def test_arguments(self, make, kwargs):
        with pytest.raises(TypeError, match=next(iter(kwargs))):
            make(**({"factory": Thing} | kwargs))
        for value, error in ((0, ValueError), (2**62, OverflowError), (1.5, TypeError)):
            with pytest.raises(error, match="max_objects"):
                make(Thing, max_objects=value)

    def test_cycles_are_collected(self, make):
        class Keeper(Thing):
            def reset(self, thing):
                pass

        thing = Keeper()
        thing.pool = make(Thing, thing.reset)
        lent = thing.pool.acquire()
        lent.pool = thing.pool
        thing.pool.release(thing.pool.acquire())
        reference = weakref.ref(thing.pool)
        del thing, lent
        gc.collect()
        assert reference() is None

    def test_names_its_type_and_is_not_copied(self, make):
        assert make[Thing].__args__ == (Thing,)
        assert repr(make(Thing)) == "<InstancePool of at most 100 idle objects>"
        with pytest.raises(TypeError):
            copy.copy(make(Thing))


@pytest.mark.parametrize("name", ["ObjectPool", "InstancePool"])
def test_threads(pool_module, fast_switching, name):
    pool = pool_module.ObjectPool(5) if name == "ObjectPool" else pool_module.InstancePool(list)
    arguments = (50,) if name == "ObjectPool" else ()
    errors = []

    def work(number):
        try:
            for _ in range(400):
                one, other = pool.acquire(*arguments), pool.acquire(*arguments)
                assert one is not other
                if arguments:
                    with memoryview(one) as view:
                        view[:] = bytes([number]) * 50
                        assert bytes(view) == bytes([number]) * 50
                else:
                    one.append(number)
                    assert one == [number]
                    one.clear()
                pool.release(one), pool.release(other)
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=work, args=(n,), daemon=True) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    stats = pool.stats()
    assert stats.in_use == 0
    assert stats.hits + stats.misses == 8 * 400 * 2
