"""The real language model, for the tests that are marked `model`. Fetched once for a checkout."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

from openbr.library import Library
from openbr.library.files import UnreachableError

ROOT = Path(__file__).resolve().parent.parent
NAME = "smollm2-135m"


@pytest.fixture(scope="session")
def local_model() -> Path:
    """A models folder that holds smollm2-135m and nothing else. Read only: copy or link from it."""
    if importlib.util.find_spec("xllamacpp") is None:
        pytest.skip("no xllamacpp wheel for this machine and Python: no local model")
    folder = os.environ.get("OPENBR_TEST_MODELS") or ROOT / ".cache" / "openbr-test-models"
    try:
        return Library(Path(folder)).pull(NAME).path.parent
    except UnreachableError as exc:
        pytest.skip(f"the local model cannot be fetched: {exc}")
