"""JSON: what a request needs, beside the parsers that build all of it.

In: options. Out: microseconds to read and to write chat requests, by size; what each parser lets
through that is not JSON. The rule that lives only here: all agree on the content before they are
timed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import repeat
from typing import Any

from data import make_chat
from table import Options, Ratio, Row, Table, divide
from timing import Case, measure

SIZES = {"1 KB": 1_000, "20 KB": 20_000, "200 KB": 200_000}
STDLIB = "json.loads, whole tree"
TYPED = "msgspec, typed: needed fields, rest skipped"
FIELDS = "the gateway: needed fields, rest raw, UTF-8 checked"
NOT_JSON = ["01", "1.", "-", "NaN", "[Infinity]", '"\\ud800"', '"a\nb"', "[1,]", '{"a":1,}', "'a'"]


def readers() -> dict[str, Callable[[bytes], Any]]:
    import msgspec
    import ujson

    from openbr import ultra
    from openbr.api.chat import parse_request

    return {
        STDLIB: json.loads,
        "ujson.loads, whole tree": ujson.loads,
        "ultra.parse_json, whole tree, strict": ultra.parse_json,
        "msgspec, whole tree": msgspec.json.decode,
        TYPED: msgspec.json.Decoder(make_routing_type()).decode,
        FIELDS: parse_request,
    }


def make_routing_type() -> Any:
    """What must be known of a request to route it."""
    import msgspec

    fields = [("model", str), ("messages", msgspec.Raw)]
    optional = [("stream", bool), ("temperature", float), ("seed", int)]
    return msgspec.defstruct(
        "Routing", [*fields, *((name, kind | None, None) for name, kind in optional)]
    )


def writers() -> dict[str, Callable[[Any], Any]]:
    import msgspec
    import ujson

    from openbr import ultra

    return {
        "json.dumps": lambda tree: json.dumps(tree, ensure_ascii=False, separators=(",", ":")),
        "ujson.dumps": lambda tree: ujson.dumps(
            tree, ensure_ascii=False, escape_forward_slashes=False
        ),
        "ultra.stringify_json": ultra.stringify_json,
        "msgspec.json.encode": msgspec.json.encode,
    }


def repeat_call(function: Callable[[Any], Any], data: Any, calls: int) -> Callable[[], None]:
    def run() -> None:
        for _ in repeat(None, calls):
            function(data)

    return run


def check(body: bytes) -> None:
    tree = json.loads(body)
    for name, read in readers().items():
        if name in (TYPED, FIELDS):
            request = read(body)
            assert (request.model, request.stream) == (tree["model"], tree["stream"]), name
        else:
            assert read(body) == tree, name
    request = readers()[FIELDS](body)
    assert {key: json.loads(bytes(raw)) for key, raw in request.fields.items()} == tree
    for name, write in writers().items():
        written = write(tree)
        assert json.loads(written) == tree, name


def compare(
    functions: dict[str, Callable[[Any], Any]], inputs: dict[str, Any], options: Options
) -> list[Row]:
    results = {}
    for label, data in inputs.items():
        options.say(f"json: {label}")
        calls = max(2, 100_000 // SIZES[label])
        cases = {
            name: Case(run=repeat_call(function, data, calls), calls=calls * 1000)
            for name, function in functions.items()
        }
        results[label] = measure(cases, options.rounds(80), options.least_s)
    return [Row(name=n, cells=tuple(results[label][n] for label in inputs)) for n in functions]


def run(options: Options) -> list[Table]:
    bodies = {label: make_chat(size) for label, size in SIZES.items()}
    for body in bodies.values():
        check(body)
    columns = tuple(SIZES)
    rows = compare(readers(), bodies, options)
    reading = Table(title="Read a chat request", unit="µs", columns=columns, rows=rows)
    for name, short, target in (
        (TYPED, "typed needed fields", 4),
        (FIELDS, "the gateway's reader", None),
        ("ujson.loads, whole tree", "ujson", None),
        ("ultra.parse_json, whole tree, strict", "parse_json", None),
    ):
        for label in columns:
            reading.ratios.append(
                Ratio(
                    name=f"json.loads / {short}, {label}",
                    value=divide(reading.cell(STDLIB, label), reading.cell(name, label)),
                    target=target,
                )
            )
    trees = {label: json.loads(body) for label, body in bodies.items()}
    rows = compare(writers(), trees, options)
    writing = Table(title="Write it again", unit="µs", columns=columns, rows=rows)
    return [reading, writing, leniency()]


def leniency() -> Table:
    """Texts that are no JSON, and who reads them all the same."""
    rows = []
    for name, read in readers().items():
        if name in (TYPED, FIELDS):
            continue  # they want an object around it
        taken = []
        for text in NOT_JSON:
            try:
                read(text.encode())
            except ValueError:
                continue
            taken.append(text.replace("\n", "\\n"))
        rows.append(Row(name=name, cells=(f"{len(taken)} of {len(NOT_JSON)}", "  ".join(taken))))
    return Table(
        title="What is not JSON and is read all the same",
        unit="",
        columns=("read", "which"),
        rows=rows,
    )
