"""The [verify] table, and the requests that a signed-in user makes of it."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import parse_qs

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tenfold.errors import SettingsError, TargetError
from tenfold.settings import Settings, load
from tenfold.settings.verify import MOVED, VerifySettings
from tenfold.verify.kit.user_agent import fill_body, parse_set_cookie
from tenfold.verify.sessions import attacks
from tests.verify.services.own import Shop
from tests.verify.support.served import serve
from tests.verify.support.sessions_cases import BEARER, DECLARED

text = st.text(st.characters(exclude_categories=["Cs"]))


@given(user=text, password=text)
def test_value_cannot_leave_its_placeholder(user: str, password: str) -> None:
    values = {"user": user, "password": password}
    body, kind = fill_body('{"name": "{user}", "nested": {"p": "{password}"}}', values)
    assert json.loads(body) == {"name": user, "nested": {"p": password}}
    assert kind == "application/json"
    form, kind = fill_body("u={user}&p={password}", values)
    assert parse_qs(form.decode(), keep_blank_values=True) == {"u": [user], "p": [password]}
    assert kind == "application/x-www-form-urlencoded"


@pytest.mark.parametrize(
    ("line", "name", "value", "deleted"),
    [
        ("sid=a=b; Path=/; HttpOnly", "sid", "a=b", False),
        ("sid=; Max-Age=0", "sid", "", True),
        ("sid=x; max-age=-1", "sid", "x", True),
        ("sid=x; Max-Age=60; Expires=Thu, 01 Jan 1970 00:00:00 GMT", "sid", "x", False),
        ("sid=''; expires=Thu, 01 Jan 1970 00:00:00 GMT", "sid", "''", True),
        ("sid=x; Expires=soon", "sid", "x", False),
    ],
)
def test_set_cookie_is_read_as_browsers_do(line: str, name: str, value: str, deleted: bool) -> None:
    cookie = parse_set_cookie(line)
    assert (cookie.name, cookie.value, cookie.is_deletion) == (name, value, deleted)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("login", "login"),
        ("login", "POST login"),
        ("whoami", "GET /a b"),
        ("cookie", "a=b"),
        ("cookie", "a;b"),
    ],
)
def test_invalid_request_line_or_cookie_name_is_refused(key: str, value: str) -> None:
    with pytest.raises(ValidationError, match="it has to be"):
        VerifySettings(**{key: value})


def test_passwords_come_from_the_environment_and_are_not_shown(tmp_path: Path) -> None:
    (tmp_path / "tenfold.toml").write_text("[verify]\nuser = 'alice'\n")
    environ = {"TENFOLD_VERIFY__PASSWORD": "12345", "TENFOLD_VERIFY__OTHER_PASSWORD": "67890"}
    verify = load(tmp_path / "tenfold.toml", environ=environ).verify
    assert (verify.password, verify.other_password) == ("12345", "67890")
    assert "12345" not in repr(verify) and "67890" not in repr(verify)
    (tmp_path / "tenfold.toml").write_text("[verify]\npassword = 4711\n")
    with pytest.raises(SettingsError) as refused:
        load(tmp_path / "tenfold.toml", environ={})
    assert "4711" not in str(refused.value)


@pytest.mark.parametrize(("old", "new"), MOVED.items())
def test_former_key_is_refused_with_its_new_name(old: tuple[str, str], new: str, tmp_path: Path) -> None:
    table, key = old
    file = tmp_path / "tenfold.toml"
    file.write_text(f"[{table}]\n{key} = 4711\n")
    with pytest.raises(SettingsError) as refused:
        load(file, environ={})
    assert str(refused.value) == f"{file}: {table}.{key} is now verify.{new}"
    file.write_text("")
    variable = f"TENFOLD_{table}__{key}".upper()
    with pytest.raises(SettingsError) as refused:
        load(file, environ={variable: "4711"})
    assert str(refused.value) == f"{variable} is now TENFOLD_VERIFY__{new.upper()}"


def test_every_former_key_has_a_key_that_exists() -> None:
    assert set(MOVED.values()) <= VerifySettings.model_fields.keys()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (DECLARED.model_copy(update={"password": "wrong"}), "POST /login answers 401: correct"),
        (DECLARED.model_copy(update={"whoami": "GET /work"}), "GET /work answers 2xx to a stranger too"),
        (BEARER.model_copy(update={"token": "data.token"}), "the login's answer has no data.token"),
    ],
)
def test_wrong_declaration_is_named(settings: VerifySettings, sentence: str, tmp_path: Path) -> None:
    shop = Shop(bearer=settings.transport == "bearer")
    with serve(tmp_path, shop) as stack, pytest.raises(TargetError) as said:
        attacks.check_fixation(stack, Settings(verify=settings))
    assert sentence in str(said.value)
    assert "wrong" not in str(said.value)


def test_unreachable_service_is_named(tmp_path: Path) -> None:
    with serve(tmp_path, Shop()) as stack:
        pass
    with pytest.raises(TargetError, match=r"^GET /me at http://127.0.0.1:\d+ is not answered \(Connection"):
        attacks.check_fixation(stack, Settings(verify=DECLARED))
