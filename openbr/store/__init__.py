"""What must outlive the process, in one SQLite file. The only place in openbr with SQL.

In: records and plain values. Out: records. `Store` (database.py) owns the connections; each other
module is a table's plain functions, whose first parameter is the connection:

    store.read(keys.find, digest)                       now, here
    await store.commit(selections.save, route, ...)     one transaction, durable when it returns
"""

from openbr.store.database import Store

__all__ = ["Store"]
