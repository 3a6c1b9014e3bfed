"""What is asked of the C library: done or not, never an error."""

import subprocess
import sys

import pytest


@pytest.fixture
def heap(load_module, kind):
    return load_module("heap", kind)


def test_trim_says_whether_it_gave(heap):
    data = [bytearray(100_000) for _ in range(100)]
    del data
    assert heap.trim_heap() in (True, False)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_goes_back_to_the_system(heap):
    code = f"""
import sys
from {heap.__name__} import limit_heap_arenas, trim_heap
if not limit_heap_arenas(1):
    sys.exit(3)  # not glibc
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
small = [bytes(600 + n % 8) for n in range(50_000)]
keep = small[-1]
full = resident()
del small
assert trim_heap()
assert resident() < full - 20_000_000, (full, resident())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    if done.returncode == 3:
        pytest.skip("the C library is not glibc")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("count", "error"),
    [(0, ValueError), (-1, ValueError), (2**62, OverflowError), ("1", TypeError)],
)
def test_counts_that_are_none(heap, count, error):
    with pytest.raises(error, match="count"):
        heap.limit_heap_arenas(count)
