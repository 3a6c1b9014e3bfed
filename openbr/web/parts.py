"""The parts that the pages are made of, as app.py built them.

In: the rooms of one gateway. Out: one record on `app.state.parts`. The rule that lives only here:
what the pages own themselves (templates, kept fragments, running answers) hangs on the same
record, so that two gateways in a process share nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from openbr.web.fragments import Fragments
from openbr.web.render import Pages
from openbr.web.runs import Runs

if TYPE_CHECKING:
    from openbr.auth import Auth
    from openbr.catalogue import Catalogue
    from openbr.config import Config
    from openbr.gateway import Gateway
    from openbr.route import Router
    from openbr.store import Store


@dataclass(slots=True, kw_only=True)
class Parts:
    """`now` is unix time in seconds. `runs` must be closed before the store is."""

    config: Config
    store: Store
    catalogue: Catalogue
    router: Router
    gateway: Gateway
    auth: Auth
    started_at: float
    now: Callable[[], float] = time.time
    pages: Pages = field(default_factory=Pages)
    fragments: Fragments = field(default_factory=Fragments)
    runs: Runs = field(default_factory=Runs)
