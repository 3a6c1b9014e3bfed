"""Log records -> lines on stderr, set up once for the whole process.

In: a level. Out: configured logging. The rule that lives only here: a message cannot forge a
second line; only a traceback has more than one.
"""

from __future__ import annotations

import logging
import sys

from openbr.cli.table import visible


class _OneLine(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:
        return visible(super().formatMessage(record))


def configure(level: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    if level != "debug":
        # uvicorn tells its life at info, and every strange request as a warning.
        logging.getLogger("uvicorn").setLevel(logging.ERROR)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
