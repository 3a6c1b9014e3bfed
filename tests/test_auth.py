"""Who asks, by which name of ours, and from whose page."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from openbr.auth import (
    MAX_FAILURES,
    OWNER,
    Auth,
    Head,
    Hosts,
    generate_key,
    hash_key,
    read_head,
)
from openbr.errors import AuthenticationError, ForbiddenError, RateLimitedError, WrongHostError
from openbr.secret import CHAT
from openbr.store import Store, keys


def add_key(store: Store, name: str = "laptop", *scopes: str) -> str:
    key = generate_key()
    store.write(
        keys.add,
        name=name,
        digest=hash_key(key),
        last4=key[-4:],
        scopes=frozenset(scopes or (CHAT,)),
        now=time.time(),
    )
    return key


def run(act: Any) -> None:
    asyncio.run(act())


def test_a_head_does_not_show_its_secrets() -> None:
    head = read_head(
        [(b"host", b"a"), (b"authorization", b"Bearer sk-canary"), (b"cookie", b"s=canary")]
    )
    assert head.key == "sk-canary" and "canary" not in repr(head)


def test_two_lines_of_cache_control_are_one_list() -> None:
    head = read_head([(b"cache-control", b"no-store"), (b"cache-control", b"max-age=5")])
    assert head.cache_control == "no-store, max-age=5"


def test_one_extractor_for_both_key_headers() -> None:
    assert read_head([(b"authorization", b"Bearer sk-1")]).key == "sk-1"
    assert read_head([(b"authorization", b"bearer  sk-1 ")]).key == "sk-1"
    assert read_head([(b"x-api-key", b"sk-2")]).key == "sk-2"
    assert read_head([(b"x-api-key", b"sk-2"), (b"authorization", b"Bearer sk-1")]).key == "sk-1"
    assert read_head([(b"authorization", b"Bearer sk-1"), (b"x-api-key", b"sk-2")]).key == "sk-1"
    assert read_head([(b"authorization", b"Basic c2s=")]).key is None
    with pytest.raises(WrongHostError):
        read_head([(b"host", b"localhost"), (b"host", b"evil.example")])


def test_keys_are_long_random_and_known_only_by_hash(store: Store) -> None:
    made = {generate_key() for _ in range(100)}
    assert len(made) == 100 and all(k.startswith("sk-openbr-") and len(k) >= 53 for k in made)
    key = add_key(store)
    assert key.encode() not in store.path.read_bytes()


def test_a_key_becomes_its_caller(store: Store) -> None:
    async def act() -> None:
        key = add_key(store, "laptop", CHAT)
        auth = Auth(store, required=True)
        caller = auth.identify(Head(key=key), "10.0.0.1")
        assert (caller.name, caller.scopes) == ("laptop", {CHAT})
        await auth.close()
        assert store.read(keys.list_all)[0].last_used_at is not None

    run(act)


@pytest.mark.parametrize(
    "key", [None, "", "x", "sk-openbr-wrong", "é" * 20, "k" * 100_000, "\x00", "' OR 1=1 --"]
)
def test_a_wrong_key_is_401_where_one_is_needed(store: Store, key: str | None) -> None:
    async def act() -> None:
        with pytest.raises(AuthenticationError) as refused:
            Auth(store, required=True).identify(Head(key=key), "10.0.0.1")
        assert not key or key not in refused.value.message
        assert Auth(store, required=False).identify(Head(key=key), "127.0.0.1") == OWNER

    run(act)


def test_a_revoked_key_ends_within_a_second(store: Store, clock: Any) -> None:
    async def act() -> None:
        key = add_key(store)
        auth = Auth(store, required=True, clock=clock)
        auth.identify(Head(key=key), "10.0.0.1")
        store.write(keys.revoke, "laptop", time.time())
        clock.tick(1)
        with pytest.raises(AuthenticationError):
            auth.identify(Head(key=key), "10.0.0.1")
        await auth.close()

    run(act)


def test_failures_are_limited_by_address_and_good_keys_are_not(store: Store, clock: Any) -> None:
    async def act() -> None:
        key = add_key(store)
        auth = Auth(store, required=True, clock=clock)
        for _ in range(MAX_FAILURES):
            with pytest.raises(AuthenticationError):
                auth.identify(Head(key="wrong"), "10.0.0.1")
        with pytest.raises(RateLimitedError) as limited:
            auth.identify(Head(key="wrong"), "10.0.0.1")
        assert limited.value.retry_after_s == 60
        auth.identify(Head(key=key), "10.0.0.1")
        with pytest.raises(AuthenticationError):
            auth.identify(Head(key="wrong"), "10.0.0.2")
        clock.tick(61)
        with pytest.raises(AuthenticationError):
            auth.identify(Head(key="wrong"), "10.0.0.1")
        await auth.close()

    run(act)


def test_a_login_lives_as_long_as_its_key(store: Store, clock: Any) -> None:
    async def act() -> None:
        key = add_key(store)
        auth = Auth(store, required=True, clock=clock)
        with pytest.raises(AuthenticationError):
            await auth.login("wrong", "10.0.0.1")
        value = await auth.login(key, "10.0.0.1")
        cookie = f"theme=dark; openbr_session={value}"
        assert auth.identify(Head(cookie=cookie), "10.0.0.1").name == "laptop"
        with pytest.raises(AuthenticationError):
            auth.identify(Head(cookie="openbr_session=x"), "10.0.0.1")
        await auth.logout(value)
        with pytest.raises(AuthenticationError):
            auth.identify(Head(cookie=cookie), "10.0.0.1")
        second = await auth.login(key, "10.0.0.1")
        store.write(keys.revoke, "laptop", time.time())
        clock.tick(1)
        with pytest.raises(AuthenticationError):
            auth.identify(Head(cookie=f"openbr_session={second}"), "10.0.0.1")
        await auth.close()

    run(act)


OURS = ["localhost", "localhost:18789", "127.0.0.1:80", "[::1]:18789", "LOCALHOST", "box.example"]
FOREIGN = [
    "",
    "evil.example",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "10.0.0.5",
    "[::2]",
]


@pytest.mark.parametrize("host", OURS)
def test_our_names(host: str) -> None:
    Hosts(["box.example"]).check(Head(host=host), "127.0.0.1", "POST")


@pytest.mark.parametrize("host", FOREIGN)
def test_foreign_names_are_misdirected(host: str) -> None:
    with pytest.raises(WrongHostError):
        Hosts(["box.example"]).check(Head(host=host), "127.0.0.1", "GET")


def test_on_a_lan_only_the_address_that_was_reached_counts() -> None:
    hosts = Hosts(lan=True)
    hosts.check(Head(host="10.0.0.5:18789"), "10.0.0.5", "GET")
    with pytest.raises(WrongHostError):
        hosts.check(Head(host="10.0.0.6:18789"), "10.0.0.5", "GET")
    with pytest.raises(WrongHostError):
        Hosts().check(Head(host="10.0.0.5:18789"), "10.0.0.5", "GET")


HERE = "127.0.0.1:18789"


@pytest.mark.parametrize(
    ("head", "method"),
    [
        (Head(host=HERE), "POST"),
        (Head(host=HERE, origin=f"http://{HERE}", fetch_site="same-origin"), "POST"),
        (Head(host=HERE, fetch_site="none", fetch_mode="navigate"), "GET"),
        (Head(host=HERE, fetch_site="cross-site", fetch_mode="navigate"), "GET"),
    ],
)
def test_our_own_pages_and_programs_may_call(head: Head, method: str) -> None:
    Hosts().check(head, "127.0.0.1", method)


@pytest.mark.parametrize(
    ("head", "method"),
    [
        (Head(host=HERE, origin="http://evil.example"), "POST"),
        (Head(host=HERE, origin="http://127.0.0.1:8080"), "POST"),
        (Head(host=HERE, origin="null"), "POST"),
        (Head(host=HERE, fetch_site="cross-site", fetch_mode="cors"), "GET"),
        (Head(host=HERE, fetch_site="cross-site", fetch_mode="navigate"), "POST"),
        (Head(host=HERE, fetch_site="same-site", fetch_mode="no-cors"), "POST"),
    ],
)
def test_foreign_pages_may_not(head: Head, method: str) -> None:
    with pytest.raises(ForbiddenError):
        Hosts().check(head, "127.0.0.1", method)
