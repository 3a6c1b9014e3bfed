"""What a bench hands over: tables to read, and ratios to hold it to.

In: measured numbers. Out: text, and plain values for a JSON file. The rules that live only here:
a target is a bound on a number measured in the same run; a number that was not measured is None
and shown as "-", never guessed.

Each bench module has one function, `run(options: Options) -> list[Table]`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """`quick`: fewer rounds, for a look rather than a result. `peers`: other gateways too. `say`
    shows progress."""

    quick: bool = False
    peers: bool = False
    say: Callable[[str], None] = lambda text: None

    def rounds(self, usual: int) -> int:
        return max(3, usual // 5) if self.quick else usual

    @property
    def least_s(self) -> float:
        """For `timing.measure`, where a round is short."""
        return 0.2 if self.quick else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    name: str
    cells: tuple[float | str | None, ...]
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """A number with a target. `name` is its key in baseline.json.

    `wish` is ">=" or "<=". `is_guarded` ones are compared with the baseline by `--check`: they
    compare two things measured side by side, so they mean the same on another machine.
    """

    name: str
    value: float | None
    wish: str = ">="
    target: float | None = None
    unit: str = "x"
    is_guarded: bool = True

    @property
    def met(self) -> bool | None:
        if self.value is None or self.target is None:
            return None
        return self.value >= self.target if self.wish == ">=" else self.value <= self.target

    def is_worse_than(self, before: float, tolerance: float) -> bool:
        if self.value is None:
            return False
        if self.wish == ">=":
            return self.value < before * (1 - tolerance)
        return self.value > before * (1 + tolerance)


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    title: str
    unit: str
    columns: tuple[str, ...]
    rows: list[Row]
    ratios: list[Ratio] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def cell(self, row: str, column: str) -> float | None:
        """A measured number, or None; for the ratios."""
        at = self.columns.index(column)
        for one in self.rows:
            if one.name == row:
                value = one.cells[at]
                return value if isinstance(value, float) else None
        return None


def divide(above: float | None, below: float | None) -> float | None:
    return above / below if above is not None and below else None


def format_number(value: float | str | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def format_table(table: Table) -> str:
    shown = [[row.name, *(format_number(cell) for cell in row.cells)] for row in table.rows]
    head = [table.unit, *table.columns]
    widths = [max(len(line[n]) for line in [head, *shown]) for n in range(len(head))]
    lines = [table.title, "=" * len(table.title)]
    for cells, note in [(head, ""), *zip(shown, [row.note for row in table.rows], strict=True)]:
        first, *rest = (
            cell.ljust(width) if n == 0 else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        lines.append("  ".join([first, *rest]) + (f"  {note}" if note else ""))
    if table.ratios:
        width = max(len(ratio.name) for ratio in table.ratios)
        lines.append("")
        lines += [format_ratio(ratio, width) for ratio in table.ratios]
    lines += ["", *table.notes] if table.notes else []
    return "\n".join(line.rstrip() for line in lines)


def format_ratio(ratio: Ratio, width: int) -> str:
    verdict = {True: "met", False: "MISSED", None: ""}[ratio.met]
    wish = "" if ratio.target is None else f"target {ratio.wish} {ratio.target:g}{ratio.unit}"
    value = format_number(ratio.value) + (ratio.unit if ratio.value is not None else "")
    return f"  {ratio.name:{width}}  {value:>10}  {wish:20}  {verdict}".rstrip()


def as_values(table: Table) -> dict[str, Any]:
    values = asdict(table)
    for shown, ratio in zip(values["ratios"], table.ratios, strict=True):
        shown["met"] = ratio.met
    return values
