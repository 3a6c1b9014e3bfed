from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_files import FACTS, text, tiny_gguf

from openbr.library import LibraryError
from openbr.library.gguf import GGUFHeader, load_header


def load(tmp_path: Path, data: bytes) -> GGUFHeader:
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    return load_header(path)


def test_a_sound_file(tmp_path: Path) -> None:
    header = load(tmp_path, tiny_gguf())
    assert header == GGUFHeader(
        version=3, architecture="llama", title="Tiny", context_tokens=512, parameters=256
    )


def test_a_file_with_another_alignment(tmp_path: Path) -> None:
    with pytest.raises(LibraryError, match="its alignment is 3"):
        load(tmp_path, tiny_gguf({**FACTS, "general.alignment": 3}))
    load(tmp_path, tiny_gguf({**FACTS, "general.alignment": 16}))


def test_a_type_newer_than_our_table_is_for_llama_to_judge(tmp_path: Path) -> None:
    load(tmp_path, tiny_gguf(kind=99))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not a GGUF file: it is empty"),
        (b"PK\x03\x04 a wheel", "not a GGUF file: it starts with b'PK"),
        (b"GG", "not a GGUF file: it starts with b'GG'"),
        (tiny_gguf(version=1), "GGUF version 1: only 2 and 3"),
        (tiny_gguf(version=3 << 24), "for big-endian machines"),
        (struct.pack("<4sIQQ", b"GGUF", 3, 0, 1), "without weights"),
        (struct.pack("<4sIQQ", b"GGUF", 3, 1 << 60, 1), "it claims 1152921504606846976 tensors"),
        (struct.pack("<4sIQQ", b"GGUF", 3, 1, 1 << 60) + b"x" * 99, "damaged: it claims 1 tensors"),
        (tiny_gguf({"general.type": "model"}), "does not say its architecture"),
        (tiny_gguf({**FACTS, "general.type": "adapter"}), "of the kind 'adapter'"),
        (tiny_gguf({**FACTS, "general.architecture": "clip"}), "a vision projector"),
        (tiny_gguf({**FACTS, "split.count": 3}), "one of 3 parts of a model"),
        (tiny_gguf(dimensions=(1, 1, 1, 1, 256)), "has 5 dimensions"),
        (tiny_gguf(dimensions=(1 << 40, 1 << 40)), "truncated or damaged: its weights need"),
        (tiny_gguf()[:-1], "truncated or damaged: its weights need 1,"),
        (
            struct.pack("<4sIQQ", b"GGUF", 3, 1, 1) + struct.pack("<Q", 1 << 62) + b"x" * 40,
            "truncated or damaged: it ends inside its header",
        ),
        (
            struct.pack("<4sIQQ", b"GGUF", 3, 1, 1) + text("k") + struct.pack("<I", 77) + b"x" * 40,
            "'k' has the unknown type 77",
        ),
        (
            struct.pack("<4sIQQ", b"GGUF", 3, 1, 1)
            + text("k")
            + struct.pack("<IIQ", 9, 9, 1)
            + b"x" * 40,
            "'k' is an array of the unknown type 9",
        ),
        (
            struct.pack("<4sIQQ", b"GGUF", 3, 1, 1)
            + text("k")
            + struct.pack("<IIQ", 9, 10, 1 << 61)
            + b"x" * 40,
            "ends inside its header",
        ),
    ],
)
def test_what_is_refused_and_why(tmp_path: Path, data: bytes, reason: str) -> None:
    with pytest.raises(LibraryError) as caught:
        load(tmp_path, data)
    assert reason in caught.value.message
    assert str(tmp_path / "model.gguf") in caught.value.message


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    whole = tiny_gguf(weights=8)
    for length in range(len(whole)):
        with pytest.raises(LibraryError):
            load(tmp_path, whole[:length])


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_damage_is_refused_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Whatever a file holds, the answer is a header or a LibraryError."""
    damaged = bytearray(tiny_gguf(weights=8))
    for at in data.draw(st.lists(st.integers(0, len(damaged) - 1), min_size=1, max_size=6)):
        damaged[at] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.gguf"
    path.write_bytes(damaged)
    try:
        load_header(path)
    except LibraryError as exc:
        assert exc.message.startswith(str(path))


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(LibraryError, match="not a file"):
            load_header(path)
    with pytest.raises(LibraryError, match="No such file"):
        load_header(tmp_path / "missing.gguf")
