from __future__ import annotations

from openbr.records import Selection
from openbr.store import Store, selections, settings


def test_nothing_is_chosen_at_first(store: Store) -> None:
    assert store.read(selections.get, "default") is None


def test_the_last_choice_stays(store: Store) -> None:
    store.write(selections.save, "default", "local/a", "ana", 1.0)
    saved = store.write(selections.save, "default", "ollama/b", "bia", 2.0)
    assert saved == Selection(model="ollama/b", chosen_at=2.0, chosen_by="bia")
    assert store.read(selections.get, "default") == saved
    assert store.read(selections.get, "other") is None


def test_settings_are_put_and_replaced(store: Store) -> None:
    assert store.read(settings.get, "theme") is None
    store.write(settings.put, "theme", "dark")
    store.write(settings.put, "theme", "light'; DROP TABLE settings")
    assert store.read(settings.get, "theme") == "light'; DROP TABLE settings"
