"""The TLS files of a store, read again when they change.

Certificates are short-lived in a cluster: a Kubernetes secret is mounted as files, which change
under a process that runs on. gRPC has no client credentials that change, so a connection made with
old files is replaced by one made with the new; ``channels`` does that when it finds here that they
are others than it knows.

What is on the disk may also be half a file, or a certificate without its key yet. So files are
proven before they are used, and until they are good the last good ones serve.
"""

from __future__ import annotations

import logging
import os
import ssl
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from clusterkit.errors import StoreError

from .endpoints import StrPath, TLSFiles

_log = logging.getLogger(__name__)

CHECK_SECONDS = 1.0
"""How long what was read is taken for what is there."""


@dataclass(frozen=True, slots=True)
class Material:
    """The contents of the files, None for those that were not given."""

    ca: bytes | None
    cert: bytes | None
    key: bytes | None = field(repr=False)

    def credentials(self) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(self.ca, self.key, self.cert)


class Certificates:
    """The files of one store. May be used from any thread."""

    def __init__(self, files: TLSFiles) -> None:
        self._files = files
        self._lock = threading.Lock()
        self._material: Material | None = None
        self._check_at = 0.0
        self._complained = False

    def current(self) -> Material:
        """The newest contents that were good; the same object until they change.

        Raises:
            StoreError: There never were good ones; says which file it is.
        """
        with self._lock:
            if self._material is None or time.monotonic() >= self._check_at:
                self._material = self._look(self._material)
                self._check_at = time.monotonic() + CHECK_SECONDS
            return self._material

    def _look(self, old: Material | None) -> Material:
        try:
            found = _read(self._files)
            if found != old:
                _prove(self._files)
                if _read(self._files) != found:
                    raise StoreError("the TLS files are just being written", retryable=True)
        except StoreError as e:
            if old is None:
                raise
            if not self._complained:
                _log.warning("the new TLS files are not used, the last good ones are: %s", e)
            self._complained = True
            return old
        self._complained = False
        if old is None:
            return found
        if found == old:
            return old
        _log.info("the TLS files have changed; new connections use the new ones")
        return found


def _read(files: TLSFiles) -> Material:
    def content(path: StrPath | None) -> bytes | None:
        if path is None:
            return None
        try:
            return Path(path).read_bytes()
        except OSError as e:
            raise StoreError(
                f"the TLS file {os.fspath(path)} cannot be read ({e.strerror}): "
                "check the path and its permissions",
                retryable=True,
            ) from e

    return Material(content(files.ca), content(files.cert), content(files.key))


def _prove(files: TLSFiles) -> None:
    """Loads the files as TLS would. gRPC itself says nothing before a handshake fails.

    Raises:
        StoreError: They cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # How strong a key must be is for the two ends to say, not for this system's OpenSSL.
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    what = f"the TLS file {files.ca} is no list of certificates"
    try:
        if files.ca is not None:
            context.load_verify_locations(cafile=files.ca)
        if files.cert is not None:
            what = f"the TLS files {files.cert} and {files.key} are no certificate with its key"
            context.load_cert_chain(files.cert, files.key, password=_no_password)
    except (OSError, ValueError) as e:
        raise StoreError(
            f"{what} ({e}): they must be in PEM form and whole, the key without a password",
            retryable=True,
        ) from e


def _no_password() -> str:
    # Without this OpenSSL would ask for one at the terminal.
    raise ValueError("the key has a password")
