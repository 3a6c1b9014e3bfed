"""Pulling over TLS: who is trusted, and where a redirect may lead."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from fake_hub import FakeHub

from openbr.library import Library, LibraryError
from openbr.library.files import UnreachableError

from .conftest import DATA

SOURCE = "hf:owner/repo/tiny.gguf"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a certificate of 127.0.0.1 and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "hub")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "hub.pem"
    secret = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM) + secret)
    return path


@pytest.fixture
def tls_hub(certificate: Path, hub: FakeHub) -> Iterator[FakeHub]:
    """The plain hub beside it keeps proxies and pip's settings out of the way."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    with FakeHub(tls=context) as fake:
        fake.put("owner/repo/tiny.gguf", DATA)
        yield fake


def test_a_certificate_that_nobody_trusts(library: Library, tls_hub: FakeHub) -> None:
    with pytest.raises(UnreachableError, match=r"its certificate is not trusted \(self-signed"):
        library.pull(SOURCE, hub=tls_hub.url)
    assert tls_hub.requests == []


def test_a_certificate_that_pip_trusts(
    library: Library, tls_hub: FakeHub, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_CERT", str(certificate))
    assert library.pull(SOURCE, hub=tls_hub.url).path.read_bytes() == DATA


def test_a_redirect_never_leaves_https(
    library: Library,
    tls_hub: FakeHub,
    hub: FakeHub,
    certificate: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PIP_CERT", str(certificate))
    tls_hub.storage_url = hub.url
    hub.put("owner/repo/tiny.gguf", DATA)
    with pytest.raises(LibraryError, match="an address that is not https: refused"):
        library.pull(SOURCE, hub=tls_hub.url)
    assert hub.requests == [] and library.list() == ()
