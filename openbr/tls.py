"""The certificate of an https gateway: one of our own, or files that somebody else made.

In: where files are, the names to answer to. Out: an ssl context, and the certificate's fingerprint.
The rules that live only here: our key never leaves its 0600 file; our certificate is made anew
when a name is missing or less than 30 days are left, and otherwise reused without loading the
library that makes it; files that cannot work are refused before anything listens for long.
"""

from __future__ import annotations

import _ssl
import datetime
import hashlib
import ipaddress
import os
import ssl
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from openbr.config import TLS
from openbr.errors import ConfigError

VALID_DAYS = 397
"""No browser takes more of a certificate that its user has chosen to trust."""
RENEW_DAYS = 30
_DAY_S = 86400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """`fingerprint` is SHA-256, as browsers show it; `made` says that it is new."""

    cert: Path
    key: Path
    fingerprint: str
    names: frozenset[str]
    expires_at: float
    made: bool = False


def prepare(
    tls: TLS, folder: Path, names: Iterable[str], *, now: float | None = None
) -> tuple[Certificate, ssl.SSLContext]:
    """The certificate to use and a context that serves it. Raises: ConfigError."""
    now = time.time() if now is None else now
    if tls.mode == "files":
        assert tls.cert is not None and tls.key is not None
        context = _load_files(tls.cert, tls.key)
        certificate = _read(tls.cert, tls.key)
        if certificate.expires_at <= now:
            day = time.strftime("%Y-%m-%d", time.gmtime(certificate.expires_at))
            raise ConfigError(f"{tls.cert}: this certificate expired on {day}; renew it")
        return certificate, context
    wanted = frozenset(_normal(name) for name in names)
    found = _find_own(folder, wanted, now)
    return found if found is not None else _make_own(folder, wanted, now)


def _context(cert: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    context.load_cert_chain(cert, key, password=_refuse_password)
    return context


def _refuse_password() -> NoReturn:
    # Without this OpenSSL asks on the terminal, and a service would wait for ever.
    raise PermissionError("it is encrypted")


def _load_files(cert: Path, key: Path) -> ssl.SSLContext:
    for what, path in (("certificate", cert), ("key", key)):
        try:
            path.read_bytes()
        except OSError as exc:
            raise ConfigError(f"{path}: the TLS {what} cannot be read: {exc.strerror}") from exc
    try:
        return _context(cert, key)
    except PermissionError as exc:
        raise ConfigError(f"{key}: the TLS key is encrypted; give it without a password") from exc
    except ssl.SSLError as exc:
        if exc.reason == "KEY_VALUES_MISMATCH":
            raise ConfigError(f"{key}: this TLS key does not belong to {cert}") from exc
        _read(cert, key)  # raises when it is the certificate that cannot be used
        raise ConfigError(f"{key}: there is no private key in PEM in this file") from exc


def _read(cert: Path, key: Path) -> Certificate:
    """What stands in a certificate. The decoder is the one behind SSLSocket.getpeercert(), which
    has no public name for files; the other way is a library of 8 MB in memory."""
    try:
        decoded = _ssl._test_decode_cert(str(cert))  # type: ignore[attr-defined]
        text = cert.read_text("ascii")
        begin = text.index(ssl.PEM_HEADER)
        end = text.index(ssl.PEM_FOOTER, begin) + len(ssl.PEM_FOOTER)
        der = ssl.PEM_cert_to_DER_cert(text[begin:end])
    except (OSError, ValueError) as exc:
        raise ConfigError(f"{cert}: there is no certificate in PEM in this file") from exc
    digest = hashlib.sha256(der).hexdigest().upper()
    return Certificate(
        cert=cert,
        key=key,
        fingerprint=":".join(digest[i : i + 2] for i in range(0, len(digest), 2)),
        names=frozenset(_normal(value) for _, value in decoded.get("subjectAltName", ())),
        expires_at=float(ssl.cert_time_to_seconds(decoded["notAfter"])),
    )


def _normal(name: str) -> str:
    """One spelling for each name and address."""
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        return name.lower()


def _find_own(
    folder: Path, wanted: frozenset[str], now: float
) -> tuple[Certificate, ssl.SSLContext] | None:
    """The certificate that is there, if it still serves. Anything wrong with it means: make one."""
    cert, key = folder / "cert.pem", folder / "key.pem"
    try:
        found = _read(cert, key)
        if not wanted <= found.names or found.expires_at - now < RENEW_DAYS * _DAY_S:
            return None
        if key.stat().st_mode & 0o077:
            return None  # others could read the key: it is not secret any more
        return found, _context(cert, key)
    except (ConfigError, OSError):  # SSLError is an OSError
        return None


def _make_own(
    folder: Path, names: frozenset[str], now: float
) -> tuple[Certificate, ssl.SSLContext]:
    cert, key = folder / "cert.pem", folder / "key.pem"
    cert_pem, key_pem = _generate(names, now)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # The key first: a new key beside an old certificate does not fit, and is replaced.
        _write(key, key_pem)
        _write(cert, cert_pem)
        made = _read(cert, key)
        context = _context(cert, key)
    except OSError as exc:
        raise ConfigError(
            f"{folder}: the TLS certificate cannot be kept there: {exc.strerror or exc}"
        ) from exc
    return replace(made, made=True), context


def _write(path: Path, data: bytes) -> None:
    unfinished = path.with_name(path.name + ".part")
    unfinished.unlink(missing_ok=True)
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def _generate(names: frozenset[str], now: float) -> tuple[bytes, bytes]:
    """A self-signed certificate for a server, and its key: EC P-256, PEM."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    alternatives: list[x509.GeneralName] = []
    for name in sorted(names):
        try:
            alternatives.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            alternatives.append(x509.DNSName(name))
    key = ec.generate_private_key(ec.SECP256R1())
    public = key.public_key()
    begin = datetime.datetime.fromtimestamp(now, datetime.UTC).replace(microsecond=0)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "openbr")])
    identifier = x509.SubjectKeyIdentifier.from_public_key(public)
    usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        # A day back: a browser on a machine whose clock is behind must not refuse it.
        .not_valid_before(begin - datetime.timedelta(days=1))
        .not_valid_after(begin + datetime.timedelta(days=VALID_DAYS - 1))
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)
        .add_extension(identifier, critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), False
        )
        .sign(key, hashes.SHA256())
    )
    return (
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
    )
