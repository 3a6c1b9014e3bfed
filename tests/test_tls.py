"""The certificate of our own, files of somebody else's, and https over a real socket."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import os
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from openbr import tls
from openbr.config import TLS
from openbr.errors import ConfigError

AUTO = TLS(mode="auto")
NAMES = ("localhost", "127.0.0.1", "::1", "Machine.Example", "192.168.1.7")
DAY_S = 86400


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state" / "tls"


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


# our own


def test_a_new_certificate_has_every_name_and_a_private_key_of_its_own(folder: Path) -> None:
    old = os.umask(0)
    try:
        made, _ = tls.prepare(AUTO, folder, NAMES)
    finally:
        os.umask(old)
    assert made.made
    assert (mode(folder), mode(made.key), mode(made.cert)) == (0o700, 0o600, 0o600)
    assert sorted(path.name for path in folder.iterdir()) == ["cert.pem", "key.pem"]
    cert = x509.load_pem_x509_certificate(made.cert.read_bytes())
    names = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert set(names.get_values_for_type(x509.DNSName)) == {"localhost", "machine.example"}
    assert set(names.get_values_for_type(x509.IPAddress)) == {
        ipaddress.ip_address(one) for one in ("127.0.0.1", "::1", "192.168.1.7")
    }
    key = cert.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name == "secp256r1"
    digest = cert.fingerprint(hashes.SHA256()).hex(":").upper()
    assert made.fingerprint == digest
    assert made.names == {"localhost", "127.0.0.1", "::1", "machine.example", "192.168.1.7"}
    lasts = made.expires_at - time.time()
    assert 390 * DAY_S < lasts < 398 * DAY_S
    assert not cert.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_it_is_reused_without_the_library_that_made_it(folder: Path) -> None:
    made, _ = tls.prepare(AUTO, folder, NAMES)
    source = """
import sys, pathlib
from openbr import tls
from openbr.config import TLS
found, _ = tls.prepare(TLS(mode="auto"), pathlib.Path(sys.argv[1]), sys.argv[2:])
print(found.made, "cryptography" in sys.modules, found.fingerprint)
"""
    said = subprocess.run(
        [sys.executable, "-c", source, str(folder), *NAMES[:3]],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert said.split() == ["False", "False", made.fingerprint]


def test_it_is_made_anew_for_a_name_that_is_missing(folder: Path) -> None:
    first, _ = tls.prepare(AUTO, folder, ["localhost", "127.0.0.1"])
    assert not tls.prepare(AUTO, folder, ["localhost"])[0].made
    second, _ = tls.prepare(AUTO, folder, ["localhost", "10.0.0.1"])
    assert second.made
    assert second.fingerprint != first.fingerprint


def test_it_is_made_anew_before_it_expires(folder: Path) -> None:
    first, _ = tls.prepare(AUTO, folder, NAMES)
    early = first.expires_at - 31 * DAY_S
    assert not tls.prepare(AUTO, folder, NAMES, now=early)[0].made
    late = first.expires_at - 29 * DAY_S
    second, _ = tls.prepare(AUTO, folder, NAMES, now=late)
    assert second.made and second.expires_at > first.expires_at


@pytest.mark.parametrize("damage", ["no cert", "no key", "other key", "nonsense", "open key"])
def test_it_is_made_anew_when_what_is_there_does_not_serve(folder: Path, damage: str) -> None:
    first, _ = tls.prepare(AUTO, folder, NAMES)
    if damage == "no cert":
        first.cert.unlink()
    elif damage == "no key":
        first.key.unlink()
    elif damage == "nonsense":
        first.cert.write_text("nonsense")
    elif damage == "open key":
        first.key.chmod(0o644)
    else:
        other, _ = tls.prepare(AUTO, folder.with_name("other"), NAMES)
        first.key.write_bytes(other.key.read_bytes())
    second, _ = tls.prepare(AUTO, folder, NAMES)
    assert second.made and second.fingerprint != first.fingerprint
    assert mode(second.key) == 0o600


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be kept there"):
        tls.prepare(AUTO, tmp_path / "file" / "tls", NAMES)


# files of somebody else's


class Files:
    """A certificate and key as an administrator has them."""

    def __init__(self, folder: Path) -> None:
        self.cert, self.key = folder / "site.crt", folder / "site.key"
        self.write()

    @property
    def tls(self) -> TLS:
        return TLS(mode="files", cert=self.cert, key=self.key)

    def write(self, days: float = 90, encryption: Any = None) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, "site")])
        end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)
        cert = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(1)
            .not_valid_before(end - datetime.timedelta(days=365))
            .not_valid_after(end)
            .sign(key, hashes.SHA256())
        )
        pem = serialization.Encoding.PEM
        self.cert.write_bytes(b"# a comment\n" + cert.public_bytes(pem))
        self.key.write_bytes(
            key.private_bytes(
                pem,
                serialization.PrivateFormat.PKCS8,
                encryption or serialization.NoEncryption(),
            )
        )


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def refusal(files: Files, folder: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        tls.prepare(files.tls, folder, NAMES)
    message = str(caught.value)
    assert "\n" not in message
    assert not folder.exists()
    return message


def test_files_are_used_as_they_are(files: Files, folder: Path) -> None:
    found, _ = tls.prepare(files.tls, folder, NAMES)
    cert = x509.load_pem_x509_certificate(files.cert.read_bytes())
    assert found.fingerprint == cert.fingerprint(hashes.SHA256()).hex(":").upper()
    assert (found.cert, found.key, found.made) == (files.cert, files.key, False)
    assert not folder.exists()


def test_a_missing_file(files: Files, folder: Path) -> None:
    files.key.unlink()
    assert refusal(files, folder).startswith(f"{files.key}: the TLS key cannot be read: No such")
    files.cert.unlink()
    assert refusal(files, folder).startswith(f"{files.cert}: the TLS certificate cannot be read")


def test_a_key_of_another_certificate(files: Files, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    files.key.write_bytes(Files(tmp_path / "b").key.read_bytes())
    assert f"{files.key}: this TLS key does not belong to {files.cert}" in refusal(files, folder)


def test_an_expired_certificate(files: Files, folder: Path) -> None:
    files.write(days=-1)
    assert refusal(files, folder).startswith(f"{files.cert}: this certificate expired on 20")


def test_an_encrypted_key_does_not_ask_anybody(files: Files, folder: Path) -> None:
    files.write(encryption=serialization.BestAvailableEncryption(b"secret-password"))
    message = refusal(files, folder)
    assert f"{files.key}: the TLS key is encrypted" in message


def test_files_that_are_something_else(files: Files, folder: Path) -> None:
    files.key.write_text("no key")
    assert f"{files.key}: there is no private key in PEM" in refusal(files, folder)
    files.cert.write_text("no certificate")
    assert f"{files.cert}: there is no certificate in PEM" in refusal(files, folder)
    files.write()
    files.cert.write_bytes(b"\xff\xfe\0")
    assert f"{files.cert}: there is no certificate in PEM" in refusal(files, folder)


def test_swapped_files(files: Files, folder: Path) -> None:
    files.cert, files.key = files.key, files.cert
    assert f"{files.cert}: there is no certificate in PEM" in refusal(files, folder)


# over a socket


def test_https_that_a_client_verifies(folder: Path) -> None:
    """With verification on, by name and by both addresses, TLS 1.2 and later only."""
    made, context = tls.prepare(AUTO, folder, ("localhost", "127.0.0.1", "::1"))

    async def scenario() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.readline())
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
        port = server.sockets[0].getsockname()[1]
        trusting = ssl.create_default_context(cafile=str(made.cert))
        for name in ("localhost", "127.0.0.1", "::1"):
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", port, ssl=trusting, server_hostname=name
            )
            writer.write(b"hello\n")
            assert await reader.read() == b"hello\n"
            assert writer.get_extra_info("ssl_object").version() in ("TLSv1.2", "TLSv1.3")
            writer.close()
            await writer.wait_closed()
        with pytest.raises(ssl.SSLCertVerificationError):
            await asyncio.open_connection(
                "127.0.0.1", port, ssl=trusting, server_hostname=socket.gethostname() + ".x"
            )
        server.close()
        await server.wait_closed()

    asyncio.run(scenario())
