"""What threads that compute and threads that wait must never do to each other."""

import threading

import pytest

from openbr import ultra
from openbr._native import flights


@pytest.fixture
def cache():
    return ultra.create_cache()


def start(target):
    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    return thread


def test_who_waited_for_one_that_landed_is_not_waiting(cache, monkeypatch):
    """It has yet to wake up: to take it for a waiter refuses what can be computed."""
    waits, landed, may_wake = threading.Event(), threading.Event(), threading.Event()

    class SlowToWake(threading.Event):
        def wait(self, timeout=None):
            if threading.current_thread() is threading.main_thread():
                may_wake.set()  # it waits for the other one: as it should
                return super().wait(timeout)
            waits.set()
            found = super().wait(timeout)
            landed.set()
            assert may_wake.wait(30)
            return found

    monkeypatch.setattr(flights, "Event", SlowToWake)
    inside = threading.Event()

    def make_inner():
        inside.set()
        assert waits.wait(30)
        return "inner"

    def outer():
        assert inside.wait(30)
        cache.get_or_set("outer", lambda: cache.get_or_set("inner", lambda: "never"))

    thread = start(outer)
    assert cache.get_or_set("inner", make_inner) == "inner"
    assert landed.wait(30)  # the other thread knows, and sleeps on
    assert cache.get_or_set("outer", lambda: "never") == "inner"
    thread.join(30)


def test_an_interrupt_at_the_start_leaves_no_flight_behind():
    class Interrupted(list):
        def append(self, flight):
            super().append(flight)
            raise KeyboardInterrupt

    cache, running = ultra.create_cache(), flights.Flights()
    running._running = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        running.compute(cache, "a", lambda: 1, None, None)
    assert running._running == []


def test_an_interrupt_while_waiting_forgets_the_waiter(cache, monkeypatch):
    inside, go_on = threading.Event(), threading.Event()
    thread = start(lambda: cache.get_or_set("a", lambda: inside.set() or go_on.wait(30)))
    assert inside.wait(30)
    event = flights.Event

    def interrupted(self, timeout=None):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(event, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            cache.get_or_set("a", lambda: 1)
    go_on.set()
    thread.join(30)
    assert cache.get_or_set("a", lambda: 1) is True
