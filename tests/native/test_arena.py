"""What a MemoryArena does, for both implementations."""

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
def arena_module(load_module, kind):
    return load_module("arena", kind)


@pytest.fixture
def make(arena_module):
    return arena_module.MemoryArena


def is_gone(buffer):
    """Refused, or on Python 3.11 the twin's way to refuse: empty."""
    if len(buffer) != 0:
        return False
    try:
        view = memoryview(buffer)
    except ValueError as exc:
        return "gone" in str(exc)
    return len(view) == 0 and sys.version_info < (3, 12) and isinstance(buffer, bytearray)


def in_use(stats):
    return stats.allocated, stats.used, stats.chunks


class TestBuffers:
    def test_is_writable_memory_of_that_size(self, make):
        buffer = make().alloc_buffer(10)
        assert len(buffer) == 10
        view = memoryview(buffer)
        assert (view.nbytes, view.readonly, view.format, view.ndim) == (10, False, "B", 1)
        assert (view.shape, view.strides, view.itemsize) == ((10,), (1,), 1)
        view[:] = b"0123456789"
        assert bytes(view) == b"0123456789"
        assert bytes(memoryview(buffer)[2:4]) == b"23"

    def test_buffers_do_not_touch_each_other(self, make):
        arena = make(256)
        buffers = [arena.alloc_buffer(n % 50 + 1) for n in range(200)]
        for n, buffer in enumerate(buffers):
            memoryview(buffer)[:] = bytes([n % 256]) * len(buffer)
        for n, buffer in enumerate(buffers):
            assert bytes(memoryview(buffer)) == bytes([n % 256]) * (n % 50 + 1)

    def test_aligned_to_16(self, load_module):
        ctypes = pytest.importorskip("ctypes")
        arena = load_module("arena", "native").MemoryArena(1000)
        for size in (1, 3, 16, 17, 900, 5000, 7):
            arena.append(b"x")
            buffer = arena.alloc_buffer(size)
            address = ctypes.addressof((ctypes.c_char * size).from_buffer(buffer))
            assert address % 16 == 0
            gc.collect()

    def test_keeps_its_arena_alive_whoever_goes_first(self, make):
        arena = make(64)
        reference = weakref.ref(arena)
        buffers = [arena.alloc_buffer(60) for _ in range(5)]
        view = memoryview(buffers[2])
        view[:] = b"a" * 60
        del arena, buffers
        gc.collect()
        assert bytes(view) == b"a" * 60
        del view
        gc.collect()
        assert reference() is None

    @pytest.mark.parametrize(
        ("n", "error"),
        [
            (0, ValueError),
            (-1, ValueError),
            (-(2**70), ValueError),
            (2**62, OverflowError),
            (2**70, OverflowError),
            (1.0, TypeError),
            ("1", TypeError),
            (None, TypeError),
        ],
    )
    def test_sizes_that_are_none(self, make, n, error):
        arena = make()
        with pytest.raises(error, match="n must be"):
            arena.alloc_buffer(n)
        with pytest.raises(error, match="chunk_bytes"):
            make(n)
        assert in_use(arena.stats()) == (0, 0, 0)

    def test_more_than_there_is(self, make):
        arena = make()
        with pytest.raises(MemoryError):
            arena.alloc_buffer(2**47)
        assert in_use(arena.stats()) == (0, 0, 0)

    def test_an_index_is_a_size(self, make):
        class Five:
            def __index__(self):
                return 5

        assert len(make().alloc_buffer(Five())) == 5
        assert len(make().alloc_buffer(True)) == 1

    def test_is_made_by_an_arena_only(self, arena_module):
        with pytest.raises(TypeError):
            arena_module.ArenaBuffer()
        with pytest.raises(TypeError):
            type("Sub", (arena_module.ArenaBuffer,), {})
        with pytest.raises(TypeError):
            type("Sub", (arena_module.MemoryArena,), {})

    def test_is_itself_only(self, make):
        arena = make()
        one, other = arena.alloc_buffer(1), arena.alloc_buffer(1)
        memoryview(one)[0] = memoryview(other)[0] = 7
        assert one == one and one != other and len({one, other}) == 2
        assert repr(one) == "<ArenaBuffer of 1 bytes>"
        for attempt in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match="cannot pickle"):
                attempt(one)
            with pytest.raises(TypeError, match="cannot pickle"):
                attempt(arena)


class TestReset:
    def test_takes_buffers_away(self, make):
        arena = make(64)
        buffers = [arena.alloc_buffer(n) for n in (1, 50, 500)]
        arena.reset()
        assert all(is_gone(buffer) for buffer in buffers)
        fresh = arena.alloc_buffer(50)
        assert len(fresh) == 50
        assert is_gone(buffers[1])

    def test_is_refused_while_a_view_exists(self, make):
        arena = make(64)
        kept, other = arena.alloc_buffer(10), arena.alloc_buffer(100)
        arena.append(b"abc")
        view = memoryview(kept)
        part = view[2:4]
        view.release()
        before = arena.stats()
        with pytest.raises(BufferError, match="view"):
            arena.reset()
        assert arena.stats() == before
        assert len(kept) == 10 and len(other) == 100
        part[:] = b"xy"
        assert bytes(memoryview(kept)[2:4]) == b"xy"
        assert arena.take() == b"abc"
        part.release()
        arena.reset()
        assert is_gone(kept) and is_gone(other)

    def test_keeps_one_chunk(self, make):
        arena = make(100)  # becomes 112
        assert in_use(arena.stats()) == (0, 0, 0)
        arena.reset()
        assert in_use(arena.stats()) == (0, 0, 0)
        for _ in range(3):
            arena.alloc_buffer(100)
        arena.alloc_buffer(1000)
        assert in_use(arena.stats()) == (3 * 112 + 1008, 1300, 4)
        arena.reset()
        assert in_use(arena.stats()) == (112, 0, 1)
        assert arena.stats().high_water == 1300
        assert arena.stats().resets == 2
        arena.alloc_buffer(112)
        assert in_use(arena.stats()) == (112, 112, 1)

    def test_a_large_piece_alone_leaves_no_chunk(self, make):
        arena = make(64)
        arena.alloc_buffer(1000)
        arena.reset()
        assert in_use(arena.stats()) == (0, 0, 0)


class TestCollecting:
    def test_take_is_all_that_was_appended(self, make):
        arena = make(64)
        pieces = [bytes([n]) * (n * 7 % 90) for n in range(100)]
        for piece in pieces:
            arena.append(piece)
        assert arena.take() == b"".join(pieces)
        assert arena.take() == b""
        arena.append(b"next")
        assert arena.take() == b"next"

    def test_takes_anything_bytes_like(self, make):
        arena = make()
        arena.append(bytearray(b"a"))
        arena.append(memoryview(b"xbx")[1:2])
        arena.append(memoryview(b"ccc").cast("B", (3, 1)))
        arena.append(arena.alloc_buffer(1))
        assert arena.take()[:5] == b"abccc"

    @pytest.mark.parametrize(
        ("data", "error"),
        [
            ("text", TypeError),
            (None, TypeError),
            (5, TypeError),
            ([1], TypeError),
            (memoryview(b"abcd")[::2], BufferError),
        ],
    )
    def test_what_is_not_bytes_like(self, make, data, error):
        arena = make()
        with pytest.raises(error):
            arena.append(data)
        assert in_use(arena.stats()) == (0, 0, 0)
        assert arena.take() == b""

    def test_nothing_costs_nothing(self, make):
        arena = make()
        arena.append(b"")
        assert in_use(arena.stats()) == (0, 0, 0)

    def test_what_was_appended_is_a_copy(self, make):
        arena = make()
        data = bytearray(b"abc")
        arena.append(data)
        data[:] = b"xyz"
        assert arena.take() == b"abc"

    def test_reset_forgets_it(self, make):
        arena = make()
        arena.append(b"abc")
        arena.reset()
        assert arena.take() == b""

    def test_fills_chunks_to_the_end(self, make):
        arena = make(64)
        arena.append(b"a" * 60)
        arena.append(b"b" * 60)
        assert in_use(arena.stats()) == (128, 120, 2)
        arena.append(b"c" * 1000)  # 8 fit, the rest has a chunk of its own
        assert in_use(arena.stats()) == (128 + 992, 1120, 3)
        assert arena.take() == b"a" * 60 + b"b" * 60 + b"c" * 1000


operations = st.lists(
    st.one_of(
        st.tuples(st.just("alloc"), st.integers(1, 400)),
        st.tuples(st.just("append"), st.binary(max_size=300)),
        st.tuples(st.just("take"), st.none()),
        st.tuples(st.just("reset"), st.none()),
        st.tuples(st.just("view"), st.integers(0, 30)),
        st.tuples(st.just("unview"), st.integers(0, 30)),
        st.tuples(st.just("forget"), st.integers(0, 30)),
    ),
    max_size=60,
)


class Life:
    """One arena and what is known of its content."""

    def __init__(self, arena):
        self.arena, self.buffers, self.views, self.mark = arena, [], [], 0
        self.collected = b""

    def do(self, name, argument):
        if name == "alloc":
            buffer = self.arena.alloc_buffer(argument)
            self.mark = (self.mark + 1) % 256
            memoryview(buffer)[:] = bytes([self.mark]) * argument
            self.buffers.append((buffer, argument, self.mark))
        elif name == "append":
            self.arena.append(argument)
            self.collected += argument
        elif name == "take":
            assert self.arena.take() == self.collected
            self.collected = b""
        elif name == "view" and argument < len(self.buffers):
            self.views.append(memoryview(self.buffers[argument][0]))
        elif name == "unview" and argument < len(self.views):
            self.views.pop(argument).release()
        elif name == "forget" and argument < len(self.buffers):
            self.buffers.pop(argument)
        elif name == "reset":
            if self.views:
                with pytest.raises(BufferError):
                    self.arena.reset()
            else:
                self.arena.reset()
                assert all(is_gone(buffer) for buffer, _, _ in self.buffers)
                self.buffers, self.collected = [], b""
        for buffer, size, mark in self.buffers:
            with memoryview(buffer) as view:
                assert view == bytes([mark]) * size


@given(chunk=st.sampled_from([64, 100, 1000]), operations=operations)
@settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # they hold no state
)
def test_twins_agree_on_any_life(both, chunk, operations):
    lives = [Life(module.MemoryArena(chunk)) for module in both("arena")]
    for operation in operations:
        for life in lives:
            life.do(*operation)
        assert lives[0].arena.stats() == lives[1].arena.stats()


def test_a_long_random_life(both):
    rng = random.Random(7)
    lives = [Life(module.MemoryArena(256)) for module in both("arena")]
    names = ["alloc", "append", "take", "reset", "view", "unview", "forget"]
    for _ in range(5000):
        name = rng.choices(names, (30, 30, 5, 3, 8, 20, 20))[0]
        argument = rng.randbytes(rng.randrange(600)) if name == "append" else rng.randrange(1, 30)
        for life in lives:
            life.do(name, argument)
        assert lives[0].arena.stats() == lives[1].arena.stats()


def test_threads(make, fast_switching):
    arena = make(1024)
    errors = []

    def work(number):
        try:
            for n in range(300):
                buffer = arena.alloc_buffer(n % 60 + 1)
                with memoryview(buffer) as view:
                    view[:] = bytes([number]) * len(buffer)
                    arena.append(bytes([number]) * 3)
                    assert bytes(view) == bytes([number]) * len(buffer)
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=work, args=(n,), daemon=True) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    taken = arena.take()
    assert len(taken) == 8 * 300 * 3
    assert all(taken[n : n + 3] == taken[n : n + 1] * 3 for n in range(0, len(taken), 3))
    arena.reset()


def test_size_of_the_compiled_one(load_module):
    arena = load_module("arena", "native").MemoryArena(1 << 20)
    assert sys.getsizeof(arena) < 400
    arena.alloc_buffer(1)
    assert sys.getsizeof(arena) > 1 << 20
