"""Signed and sealed values: any other key, purpose, context or change is refused."""

from __future__ import annotations

import base64
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenfold.errors import SettingsError, SignatureError, TenfoldError
from tenfold.signing import Sealer, Signer, generate_key

KEY, FORMER, OTHER = (generate_key() for _ in range(3))
PURPOSE = "a test"


class Clock:
    now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


def variants(text: str) -> list[str]:
    """Return all texts with one character changed in four ways, and some one character shorter or longer."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    changed = [
        text[:at] + new + text[at + 1 :]
        for at, old in enumerate(text)
        for new in (letters[(letters.index(old) + 1) % 64], letters[letters.index(old) ^ 32], "+", "é")
    ]
    return [*changed, *(text[:at] + text[at + 1 :] for at in range(len(text))), text + "A", text + "=", ""]


# ------------------------------------------------------------------ signed values


@settings(deadline=None)
@given(
    payload=st.binary(max_size=4096), purpose=st.text(max_size=40), expires=st.none() | st.floats(0.001, 1e9)
)
def test_signed_payload_is_verified(payload: bytes, purpose: str, expires: float | None) -> None:
    signer = Signer([KEY], clock=Clock())
    token = signer.sign(payload, purpose=purpose, expires_s=expires)
    assert re.fullmatch(r"[A-Za-z0-9_-]+", token)
    assert signer.verify(token, purpose=purpose) == payload


@pytest.mark.guarantee(
    "a value that was not signed or sealed with these keys for this purpose is refused",
    pattern="signing",
    under="any character or byte changed, another purpose, context or key",
)
@pytest.mark.parametrize("expires", [None, 60.0])
@pytest.mark.parametrize("payload", [b"", b"1", b"12", b"123", bytes(range(64))])
def test_change_of_any_character_is_refused(payload: bytes, expires: float | None) -> None:
    signer = Signer([KEY])
    token = signer.sign(payload, purpose=PURPOSE, expires_s=expires)
    for changed in variants(token):
        with pytest.raises(SignatureError):
            signer.verify(changed, purpose=PURPOSE)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=200) | st.text("ABCabc012-_", max_size=200))
def test_arbitrary_text_is_refused(text: str) -> None:
    with pytest.raises(SignatureError):
        Signer([KEY]).verify(text, purpose=PURPOSE)


@pytest.mark.guarantee("a value that was not signed or sealed with these keys for this purpose is refused")
def test_token_is_valid_for_its_purpose_only() -> None:
    signer = Signer([KEY])
    token = signer.sign(b"42", purpose="unsubscribe")
    with pytest.raises(SignatureError, match="for this use"):
        signer.verify(token, purpose="log in")


@pytest.mark.control("a value that was not signed or sealed with these keys for this purpose is refused")
def test_the_control_same_purpose_is_accepted() -> None:
    assert Signer([KEY]).verify(Signer([KEY]).sign(b"42", purpose="log in"), purpose="log in") == b"42"


def test_boundary_between_purpose_and_payload_cannot_be_moved() -> None:
    signer = Signer([KEY])
    token = signer.sign(b"c", purpose="ab")
    with pytest.raises(SignatureError):
        signer.verify(token, purpose="abc")


@pytest.mark.guarantee("an expired value is refused", pattern="signing", under="time")
def test_token_expires_at_its_millisecond() -> None:
    clock = Clock()
    signer = Signer([KEY], clock=clock)
    token = signer.sign(b"42", purpose=PURPOSE, expires_s=0.25)
    clock.now += 0.249
    assert signer.verify(token, purpose=PURPOSE) == b"42"
    clock.now += 0.002
    with pytest.raises(SignatureError, match="expired"):
        signer.verify(token, purpose=PURPOSE)


@pytest.mark.control("an expired value is refused")
def test_the_control_token_without_expiry_stays_valid() -> None:
    clock = Clock()
    signer = Signer([KEY], clock=clock)
    token = signer.sign(b"42", purpose=PURPOSE)
    clock.now += 1e9
    assert signer.verify(token, purpose=PURPOSE) == b"42"


def test_payload_cannot_pass_for_an_expiry() -> None:
    signer = Signer([KEY])
    forever = signer.sign(bytes(6) + b"42", purpose=PURPOSE)
    raw = bytearray(base64.urlsafe_b64decode(forever + "=="))
    raw[0] = 2
    with pytest.raises(SignatureError, match="not one that these keys made"):
        signer.verify(base64.urlsafe_b64encode(raw).rstrip(b"=").decode(), purpose=PURPOSE)


def test_oversized_payload_is_refused_when_signed_and_verified() -> None:
    token = Signer([KEY]).sign(bytes(100), purpose=PURPOSE)
    small = Signer([KEY], max_bytes=10)
    with pytest.raises(SignatureError, match=r"100 bytes.*limit of 10"):
        small.sign(bytes(100), purpose=PURPOSE)
    with pytest.raises(SignatureError):
        small.verify(token, purpose=PURPOSE)


def test_token_length() -> None:
    assert len(Signer([KEY]).sign(bytes(20), purpose=PURPOSE, expires_s=5)) == 63


# ------------------------------------------------------------------ sealed values


@pytest.mark.control("a value that was not signed or sealed with these keys for this purpose is refused")
@settings(deadline=None)
@given(data=st.binary(max_size=2000), context=st.binary(max_size=100))
def test_sealed_data_is_hidden_and_opens(data: bytes, context: bytes) -> None:
    sealer = Sealer([KEY], purpose=PURPOSE)
    sealed = sealer.seal(data, context)
    assert sealer.open(sealed, context) == data
    assert len(data) < 4 or data not in sealed
    assert sealed != sealer.seal(data, context)
    assert len(sealed) == len(data) + 33


@pytest.mark.guarantee("a value that was not signed or sealed with these keys for this purpose is refused")
def test_change_of_any_byte_of_a_sealed_value_is_refused() -> None:
    sealer = Sealer([KEY], purpose=PURPOSE)
    sealed = sealer.seal(b"a secret", b"row 1")
    for at in range(len(sealed)):
        for changed in (sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :], sealed[:at]):
            with pytest.raises(SignatureError):
                sealer.open(changed, b"row 1")


@pytest.mark.guarantee("a value that was not signed or sealed with these keys for this purpose is refused")
@pytest.mark.parametrize(
    ("purpose", "context"), [(PURPOSE, b"row 2"), (PURPOSE, b""), ("another", b"row 1"), ("", b"row 1")]
)
def test_sealed_value_opens_only_with_its_purpose_and_context(purpose: str, context: bytes) -> None:
    sealed = Sealer([KEY], purpose=PURPOSE).seal(b"a secret", b"row 1")
    with pytest.raises(SignatureError, match="for this use"):
        Sealer([KEY], purpose=purpose).open(sealed, context)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused(sealed: bytes) -> None:
    with pytest.raises(SignatureError):
        Sealer([KEY], purpose=PURPOSE).open(sealed)


def test_oversized_data_is_not_sealed() -> None:
    with pytest.raises(SignatureError, match="limit of 10"):
        Sealer([KEY], purpose=PURPOSE, max_bytes=10).seal(bytes(11))


# ------------------------------------------------------------------ keys


@pytest.mark.guarantee(
    "keys rotate without invalid tokens, and are never shown",
    pattern="signing",
    control="the same test: a removed key verifies no more",
)
def test_rotation_every_key_verifies_and_the_first_signs() -> None:
    before, during, after = Signer([FORMER]), Signer([KEY, FORMER]), Signer([KEY])
    old, new = before.sign(b"1", purpose=PURPOSE), during.sign(b"2", purpose=PURPOSE)
    assert during.verify(old, purpose=PURPOSE) == b"1"
    assert after.verify(new, purpose=PURPOSE) == b"2"
    with pytest.raises(SignatureError, match="names a key that is not here"):
        after.verify(old, purpose=PURPOSE)
    with pytest.raises(SignatureError, match="names a key that is not here"):
        before.verify(new, purpose=PURPOSE)


def test_rotation_of_sealed_values() -> None:
    before, during, after = (Sealer(keys, purpose=PURPOSE) for keys in ([FORMER], [KEY, FORMER], [KEY]))
    old, new = before.seal(b"1"), during.seal(b"2")
    assert (during.open(old), after.open(new)) == (b"1", b"2")
    with pytest.raises(SignatureError, match="names a key that is not here"):
        after.open(old)


def test_signature_of_another_key_under_a_known_id_is_refused() -> None:
    ours, theirs = Signer([KEY]), Signer([OTHER])
    good = base64.urlsafe_b64decode(ours.sign(b"1", purpose=PURPOSE) + "==")
    forged = base64.urlsafe_b64decode(theirs.sign(b"1", purpose=PURPOSE) + "==")
    mixed = base64.urlsafe_b64encode(good[:5] + forged[5:]).rstrip(b"=").decode()
    with pytest.raises(SignatureError, match="not one that these keys made"):
        ours.verify(mixed, purpose=PURPOSE)


@pytest.mark.parametrize(
    "keys",
    [[], "", b"", "short", [KEY, "short"], "x" * 64, b"\0" * 32, [KEY, generate_key()[:31]]],
    ids=["none", "empty", "empty bytes", "short", "second short", "repetition", "zeros", "31 bytes"],
)
def test_weak_keys_are_refused(keys: list[str] | str | bytes) -> None:
    for refuses in (Signer, lambda keys: Sealer(keys, purpose=PURPOSE)):
        with pytest.raises(SettingsError, match="generate_key"):
            refuses(keys)


@pytest.mark.parametrize(
    "key",
    [KEY, KEY.encode(), [KEY], (KEY,), bytes(range(32)), "ключ" * 8 + "0123456789"],
    ids=["text", "bytes", "list", "tuple", "any bytes", "any letters"],
)
def test_keys_are_text_or_bytes_one_or_several(key: str | bytes | list[str]) -> None:
    assert Signer(key).verify(Signer(key).sign(b"1", purpose=PURPOSE), purpose=PURPOSE) == b"1"


@pytest.mark.guarantee("keys rotate without invalid tokens, and are never shown")
def test_keys_appear_in_no_repr_or_error() -> None:
    texts = [repr(Signer([KEY])), repr(Sealer([KEY], purpose=PURPOSE)), str(Signer([KEY]))]
    for call in (
        lambda: Signer([KEY, KEY[:20]]),
        lambda: Signer([KEY]).verify(Signer([OTHER]).sign(b"", purpose=PURPOSE), purpose=PURPOSE),
        lambda: Sealer([KEY], purpose=PURPOSE).open(Sealer([OTHER], purpose=PURPOSE).seal(b"")),
    ):
        with pytest.raises(TenfoldError) as caught:
            call()
        texts.append(str(caught.value))
    assert not any(KEY in text or KEY[:20] in text or OTHER in text for text in texts)


def test_derived_keys_are_those_of_rfc_5869() -> None:
    """Another implementation of HKDF and of AES-GCM-SIV opens a sealed value."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCMSIV
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    derived = HKDF(SHA256(), 32, salt=b"tenfold", info=b"tenfold seal 1\0orders").derive(KEY.encode())
    sealed = Sealer([KEY], purpose="orders").seal(b"a secret", b"row 1")
    assert AESGCMSIV(derived).decrypt(sealed[5:17], sealed[17:], sealed[:5] + b"row 1") == b"a secret"
