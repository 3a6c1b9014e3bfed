"""The model chosen for a route: one row a route, written only when somebody chooses.

In: the connection, a route's name, a full model id. Out: Selection.
"""

from __future__ import annotations

import sqlite3

from openbr.records import Selection


def get(c: sqlite3.Connection, route: str) -> Selection | None:
    row = c.execute(
        "SELECT model, chosen_at, chosen_by FROM selections WHERE route = ?", (route,)
    ).fetchone()
    return Selection(model=row[0], chosen_at=row[1], chosen_by=row[2]) if row else None


def save(c: sqlite3.Connection, route: str, model: str, by: str, now: float) -> Selection:
    c.execute(
        "INSERT INTO selections (route, model, chosen_at, chosen_by) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (route) DO UPDATE SET model = excluded.model,"
        " chosen_at = excluded.chosen_at, chosen_by = excluded.chosen_by",
        (route, model, now, by),
    )
    return Selection(model=model, chosen_at=now, chosen_by=by)
