"""A gateway in a process of its own over a fake upstream in a thread, one pair for a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fake_upstream import OpenAIUpstream
from gateway_process import GatewayProcess

from tests.data_plane.upstreams import TOML


@pytest.fixture(scope="module")
def upstream() -> Iterator[OpenAIUpstream]:
    with OpenAIUpstream() as fake:
        yield fake


@pytest.fixture(scope="module")
def gateway(
    upstream: OpenAIUpstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayProcess]:
    folder = tmp_path_factory.mktemp("gateway")
    with GatewayProcess(folder, TOML.format(url=upstream.base_url)) as running:
        yield running
        assert "defect" not in running.log() and "Traceback" not in running.log()
