"""A minimal sealer with the interface of ``tenfold.signing.Sealer``: the first key seals, every key opens."""

from __future__ import annotations

import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM


class PlainSealer:
    def __init__(self, *keys: bytes) -> None:
        self._ciphers = [AESGCM(key) for key in keys]

    def seal(self, data: bytes, context: bytes) -> bytes:
        nonce = os.urandom(12)
        return nonce + self._ciphers[0].encrypt(nonce, data, context)

    def open(self, sealed: bytes, context: bytes) -> bytes:
        for cipher in self._ciphers:
            try:
                return cipher.decrypt(sealed[:12], sealed[12:], context)
            except InvalidTag:
                continue
        raise ValueError("no key opens it")
