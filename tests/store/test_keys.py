from __future__ import annotations

import pytest

from openbr.errors import InvalidRequestError
from openbr.secret import ADMIN, CHAT
from openbr.store import Store, keys, sessions


def add(store: Store, name: str, digest: bytes = b"", now: float = 1.0) -> int:
    return store.write(
        keys.add,
        name=name,
        digest=digest or name.encode(),
        last4="abcd",
        scopes=frozenset({CHAT}),
        now=now,
    )


def test_a_key_is_found_by_its_digest(store: Store) -> None:
    key_id = add(store, "laptop", b"digest", now=5.0)
    found = store.read(keys.find, b"digest")
    assert found == keys.StoredKey(
        id=key_id,
        name="laptop",
        last4="abcd",
        scopes=frozenset({CHAT}),
        created_at=5.0,
        last_used_at=None,
        revoked_at=None,
    )
    assert store.read(keys.get, key_id) == found
    assert store.read(keys.find, b"other") is None
    assert store.read(keys.get, 99) is None


def test_scopes_come_back_as_given(store: Store) -> None:
    both = frozenset({CHAT, ADMIN})
    store.write(keys.add, name="a", digest=b"d", last4="abcd", scopes=both, now=1.0)
    found = store.read(keys.find, b"d")
    assert found and found.scopes == both


@pytest.mark.parametrize("scopes", [frozenset(), frozenset({"root"}), frozenset({CHAT, "x"})])
def test_other_scopes_are_refused(store: Store, scopes: frozenset[str]) -> None:
    with pytest.raises(InvalidRequestError, match="admin, chat"):
        store.write(keys.add, name="a", digest=b"d", last4="abcd", scopes=scopes, now=1.0)


@pytest.mark.parametrize("name", ["a", "Ana's".replace("'", ""), "São Paulo", "x@y.z", "1" * 64])
def test_names_that_fit(store: Store, name: str) -> None:
    add(store, name)
    assert [key.name for key in store.read(keys.list_all)] == [name]


@pytest.mark.parametrize("name", ["", " a", "a ", "-a", "a\nb", "a" * 65, "a;b", "\x00", "<b>"])
def test_names_that_do_not_fit(store: Store, name: str) -> None:
    with pytest.raises(InvalidRequestError, match="name") as caught:
        add(store, name, b"digest")
    assert caught.value.param == "name"


def test_a_name_belongs_to_one_live_key_at_a_time(store: Store) -> None:
    add(store, "laptop", b"one")
    with pytest.raises(InvalidRequestError, match="there already"):
        add(store, "laptop", b"two")
    store.write(keys.revoke, "laptop", 2.0)
    add(store, "laptop", b"two")
    assert [key.revoked_at for key in store.read(keys.list_all)] == [2.0, None]


def test_revoke_by_name_or_id_and_the_name_goes_first(store: Store) -> None:
    first = add(store, "first")
    second = add(store, str(first))
    revoked = store.write(keys.revoke, str(first), 9.0)
    assert revoked and (revoked.id, revoked.revoked_at) == (second, 9.0)
    revoked = store.write(keys.revoke, str(first), 10.0)
    assert revoked and (revoked.id, revoked.revoked_at) == (first, 10.0)
    assert store.write(keys.revoke, str(first), 11.0) is None
    assert store.write(keys.revoke, "nobody", 11.0) is None
    found = store.read(keys.find, b"first")
    assert found and found.revoked_at == 10.0


def test_has_live(store: Store) -> None:
    assert not store.read(keys.has_live)
    add(store, "a")
    assert store.read(keys.has_live)
    store.write(keys.revoke, "a", 2.0)
    assert not store.read(keys.has_live)


def test_touch_only_goes_forward(store: Store) -> None:
    key_id = add(store, "a", b"d")
    for now in (50.0, 20.0):
        store.write(keys.touch, key_id, now)
    found = store.read(keys.find, b"d")
    assert found and found.last_used_at == 50.0


# logins


def login(store: Store, key_id: int, digest: bytes, expires_at: float, now: float = 0.0) -> None:
    store.write(sessions.add, digest=digest, key_id=key_id, expires_at=expires_at, now=now)


def test_a_login_is_good_until_its_time(store: Store) -> None:
    key_id = add(store, "a")
    login(store, key_id, b"cookie", expires_at=100.0)
    assert store.read(sessions.find, b"cookie", 99.9) == key_id
    assert store.read(sessions.find, b"cookie", 100.0) is None
    assert store.read(sessions.find, b"other", 1.0) is None


def test_a_login_can_be_ended(store: Store) -> None:
    login(store, add(store, "a"), b"cookie", expires_at=100.0)
    store.write(sessions.delete, b"cookie")
    assert store.read(sessions.find, b"cookie", 1.0) is None


def test_logins_end_with_their_key(store: Store) -> None:
    login(store, add(store, "a"), b"cookie", expires_at=100.0)
    store.write(keys.revoke, "a", 2.0)
    assert store.read(sessions.find, b"cookie", 1.0) is None
    assert store.read(lambda c: c.execute("SELECT count(*) FROM sessions").fetchone()) == (0,)


def test_logins_go_when_the_row_of_their_key_goes(store: Store) -> None:
    key_id = add(store, "a")
    login(store, key_id, b"cookie", expires_at=100.0)
    store.write(lambda c: c.execute("DELETE FROM keys WHERE id = ?", (key_id,)))
    assert store.read(lambda c: c.execute("SELECT count(*) FROM sessions").fetchone()) == (0,)


def test_old_logins_are_swept_by_the_next(store: Store) -> None:
    key_id = add(store, "a")
    login(store, key_id, b"old", expires_at=10.0)
    login(store, key_id, b"new", expires_at=100.0, now=10.0)
    rows = store.read(lambda c: c.execute("SELECT digest FROM sessions").fetchall())
    assert rows == [(b"new",)]
