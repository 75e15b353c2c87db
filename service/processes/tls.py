"""TLS: the context of all encrypted connections, made from the settings, and its certificate changed in place."""

from __future__ import annotations

import ssl
from pathlib import Path

from service.processes.errors import CannotServe
from service.settings import Settings


def make_context(settings: Settings) -> ssl.SSLContext | None:
    """TLS 1.2 or newer with the certificate of the settings; None where they name none.

    With `tls_ca_file` a client has to show a certificate that one of its authorities signed.
    Raises `CannotServe`, which names the file that cannot be used.
    """
    if settings.tls_cert_file is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    _load_certificate(context, settings.tls_cert_file, settings)
    if settings.tls_ca_file is not None:
        _load_authorities(context, settings.tls_ca_file)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def renew_certificate(context: ssl.SSLContext, settings: Settings) -> None:
    """Read certificate and key again, for connections that come from now on; `CannotServe` leaves the old ones in force.

    The authorities of `tls_ca_file` stay: what a context once trusts it trusts to its end.
    """
    make_context(settings)  # a certificate that does not fit its key must not come half into the context in use
    if settings.tls_cert_file is not None:
        _load_certificate(context, settings.tls_cert_file, settings)


def _load_certificate(context: ssl.SSLContext, cert_file: Path, settings: Settings) -> None:
    key_file = settings.tls_key_file or cert_file
    # OpenSSL does not say which file it could not open.
    for file in (cert_file, key_file):
        _read(file)
    password = _password(settings.tls_key_password_file)
    try:
        context.load_cert_chain(cert_file, key_file, password=lambda: password)
    except ssl.SSLError as error:
        raise CannotServe(
            f"the certificate of {cert_file} cannot be used with the key of {key_file}: {_reason(error)}; both are PEM, "
            "and the password of an encrypted key stands in a file of its own (tls_key_password_file)"
        ) from error


def _load_authorities(context: ssl.SSLContext, ca_file: Path) -> None:
    _read(ca_file)
    try:
        context.load_verify_locations(ca_file)
    except ssl.SSLError as error:
        raise CannotServe(
            f"the authorities of {ca_file} cannot be used: {_reason(error)}; allowed: certificates, as PEM"
        ) from error


def _password(file: Path | None) -> bytes:
    """The password of the key. Without a file it is empty: with no password at all OpenSSL would ask the terminal."""
    return b"" if file is None else _read(file).rstrip(b"\r\n")


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise CannotServe(f"{file} cannot be read: {error.strerror or error}") from error


def _reason(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).lower().replace("_", " ")
