"""What an answer costs: the config's price, else the public one, else nobody knows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import openbr.prices
from openbr.config import ModelPrice, ProviderConfig
from openbr.prices import ListedModel, PriceList, Prices, Rates, load_list
from openbr.records import Usage


def provider(name: str = "acme", host: str = "api.openai.com", **prices: Any) -> ProviderConfig:
    made = {model: ModelPrice(*price) for model, price in prices.items()}
    return ProviderConfig(name=name, base_url=f"https://{host}/v1", prices=made)


def listed(host: str, model: str) -> ListedModel:
    """The row of the public list, which the tests do not repeat."""
    rows = [row for group in load_list() if host in group.hosts for row in group.models]
    (found,) = (row for row in rows if row.id == model)
    return found


MILLION = Usage(input_tokens=1_000_000, output_tokens=0)
MILLION_OUT = Usage(input_tokens=0, output_tokens=1_000_000)


# where a price comes from


def test_the_public_price_of_a_known_host() -> None:
    prices = Prices([provider()])
    row = listed("api.openai.com", "gpt-4o")
    assert prices.cost_usd("acme", "gpt-4o", MILLION) == row.input
    assert prices.cost_usd("acme", "gpt-4o", MILLION_OUT) == row.output


def test_the_host_decides_and_not_the_name_of_the_provider() -> None:
    prices = Prices([provider("openai", "proxy.example"), provider("other", "API.OpenAI.com:443")])
    assert prices.cost_usd("openai", "gpt-4o", MILLION) is None
    assert prices.cost_usd("other", "gpt-4o", MILLION) is not None


def test_the_config_goes_before_the_list() -> None:
    prices = Prices([provider(**{"gpt-4o": (7.0, 9.0, 1.0)})])
    assert prices.cost_usd("acme", "gpt-4o", MILLION) == 7.0
    row = listed("api.openai.com", "gpt-4o-mini")
    assert prices.cost_usd("acme", "gpt-4o-mini", MILLION) == row.input


def test_a_star_goes_after_a_name_and_before_the_list() -> None:
    prices = Prices([provider(**{"gpt-4o": (7.0, 9.0), "*": (3.0, 4.0)})])
    assert prices.cost_usd("acme", "gpt-4o", MILLION) == 7.0
    assert prices.cost_usd("acme", "gpt-4o-mini", MILLION) == 3.0
    assert prices.cost_usd("acme", "whatever", MILLION_OUT) == 4.0


def test_a_price_of_zero_is_a_price() -> None:
    prices = Prices([provider(host="127.0.0.1:11434", **{"*": (0.0, 0.0)})])
    assert prices.cost_usd("acme", "llama3.2", MILLION) == 0.0


@pytest.mark.parametrize(
    "name", ["gpt-4o-2024-08-06", "gpt-4o-20240806", "models/gpt-4o", "models/gpt-4o-2024-08-06"]
)
@pytest.mark.parametrize("own", [{}, {"gpt-4o": (7.0, 9.0)}])
def test_a_snapshot_and_a_folder_are_the_same_model(name: str, own: dict[str, Any]) -> None:
    prices = Prices([provider(**own)])
    assert prices.cost_usd("acme", name, MILLION) == prices.cost_usd("acme", "gpt-4o", MILLION)


def test_a_snapshot_may_have_its_own_price() -> None:
    prices = Prices([provider(**{"m": (1.0, 1.0), "m-2024-08-06": (2.0, 2.0)})])
    assert prices.cost_usd("acme", "m-2024-08-06", MILLION) == 2.0
    assert prices.cost_usd("acme", "m-2025-01-01", MILLION) == 1.0


@pytest.mark.parametrize("name", ["gpt-4o-2407", "gpt-4o-2024", "gpt-4o-x", "gpt-4", "", "GPT-4o"])
def test_other_names_are_other_models(name: str) -> None:
    assert Prices([provider()]).cost_usd("acme", name, MILLION) is None


def test_local_models_cost_nothing_whatever_is_known() -> None:
    prices = Prices([])
    assert prices.cost_usd("local", "smollm2-135m", MILLION) == 0.0
    assert prices.cost_usd("local", "smollm2-135m", None) == 0.0


def test_what_is_not_known_is_never_zero() -> None:
    prices = Prices([provider()])
    assert prices.cost_usd("acme", "gpt-4o", None) is None
    assert prices.cost_usd("nobody", "gpt-4o", MILLION) is None
    assert prices.cost_nano_usd("acme", "gpt-4o", 5, None) is None
    assert prices.cost_nano_usd("acme", "gpt-4o", None, 5) is None
    assert prices.find_rates("acme", "no-such") is None


# what a price makes


@pytest.mark.parametrize(
    "cached, cost_usd",
    [(0, 2.0 + 10.0), (400_000, 0.6 * 2.0 + 0.4 * 0.5 + 10.0), (1_000_000, 0.5 + 10.0)],
)
def test_cached_input_is_part_of_the_input(cached: int, cost_usd: float) -> None:
    prices = Prices([provider(m=(2.0, 10.0, 0.5))])
    usage = Usage(input_tokens=1_000_000, output_tokens=1_000_000, cached_tokens=cached)
    assert prices.cost_usd("acme", "m", usage) == pytest.approx(cost_usd)


def test_cached_input_without_a_price_costs_as_input() -> None:
    prices = Prices([provider(m=(2.0, 10.0))])
    usage = Usage(input_tokens=1_000_000, output_tokens=0, cached_tokens=400_000)
    assert prices.cost_usd("acme", "m", usage) == 2.0


def test_more_cached_than_input_costs_no_more_than_the_input() -> None:
    prices = Prices([provider(m=(2.0, 10.0, 0.5))])
    usage = Usage(input_tokens=1_000_000, output_tokens=0, cached_tokens=9_000_000)
    assert prices.cost_usd("acme", "m", usage) == 0.5


def test_a_single_token_is_counted() -> None:
    prices = Prices([provider(m=(0.05, 10.0))])
    assert prices.cost_nano_usd("acme", "m", 1, 0) == 50
    assert prices.cost_usd("acme", "m", Usage(input_tokens=1, output_tokens=0)) == 5e-8


def test_a_long_request_costs_more_whole() -> None:
    row = listed("generativelanguage.googleapis.com", "gemini-2.5-pro")
    assert row.long
    prices = Prices([provider(host="generativelanguage.googleapis.com")])
    limit = row.long.above_tokens
    at = prices.cost_nano_usd("acme", "gemini-2.5-pro", limit, 1000, 0)
    above = prices.cost_nano_usd("acme", "gemini-2.5-pro", limit + 1, 1000, 0)
    assert at == round((limit * row.input + 1000 * row.output) * 1000)
    assert above == round(((limit + 1) * row.long.input + 1000 * row.long.output) * 1000)


# the list


def test_the_list_is_read_only_when_it_is_needed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(openbr.prices, "LIST", tmp_path / "not-there.json")
    prices = Prices([provider(m=(1.0, 2.0))])
    assert prices.cost_usd("acme", "m", MILLION) == 1.0
    assert prices.cost_usd("local", "x", MILLION) == 0.0
    with pytest.raises(FileNotFoundError):
        prices.cost_usd("acme", "gpt-4o", MILLION)


def test_names_without_end_do_not_fill_the_memory() -> None:
    prices = Prices([provider(m=(1.0, 2.0))])
    for number in range(3000):
        assert prices.cost_usd("acme", f"nonsense-{number}", MILLION) is None
    assert prices.cost_usd("acme", "m", MILLION) == 1.0
    assert len(prices._known) <= 1000


@pytest.mark.parametrize("group", load_list(), ids=lambda group: str(group.hosts[0]))
def test_every_row_is_dated_sorted_positive_and_has_a_source(group: PriceList) -> None:
    assert re.fullmatch(r"20\d\d-(0[1-9]|1[0-2])", group.date)
    assert re.fullmatch(r"https://[a-z0-9.-]+/\S+", group.source)
    assert list(group.hosts) == sorted(set(group.hosts))
    names = [row.id for row in group.models]
    assert names == sorted(set(names)) and names
    for row in group.models:
        check(row)
        if row.long:
            check(row.long)
            assert row.long.above_tokens >= 1000
            assert row.long.input > row.input and row.long.output > row.output
            assert (row.long.cached is None) == (row.cached is None)


def check(row: Rates) -> None:
    """Free input is no price that anybody publishes; only embeddings have no output."""
    assert 0 < row.input < 1000
    assert 0 <= row.output < 5000
    assert row.output > 0 or "embed" in getattr(row, "id", "")
    assert row.cached is None or 0 < row.cached <= row.input


def test_every_host_is_there_once_in_order() -> None:
    hosts = [host for group in load_list() for host in group.hosts]
    assert hosts == sorted(set(hosts))
    assert {"api.openai.com", "api.anthropic.com", "generativelanguage.googleapis.com"} <= set(
        hosts
    )


@pytest.mark.parametrize(
    "host, model, price",
    [
        ("api.openai.com", "gpt-4o", (2.5, 10.0, 1.25)),
        ("api.openai.com", "gpt-4o-mini", (0.15, 0.6, 0.075)),
        ("api.openai.com", "text-embedding-3-small", (0.02, 0.0, None)),
        ("api.anthropic.com", "claude-haiku-4-5", (1.0, 5.0, 0.1)),
        ("generativelanguage.googleapis.com", "gemini-2.5-flash", (0.3, 2.5, 0.03)),
        ("api.groq.com", "openai/gpt-oss-120b", (0.15, 0.6, 0.075)),
    ],
)
def test_prices_that_are_well_known(
    host: str, model: str, price: tuple[float, float, float | None]
) -> None:
    row = listed(host, model)
    assert (row.input, row.output, row.cached) == price
