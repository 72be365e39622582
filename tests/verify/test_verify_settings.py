"""What a visitor sends and keeps, and what cannot be declared."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import parse_qs

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tenfold.errors import SettingsError, TargetError
from tenfold.settings import load
from tenfold.settings.verify import SessionsSettings
from tenfold.verify.kit.useragent import filled, parsed_cookie
from tenfold.verify.sessions import attacks
from tests.verify.services.own import Shop
from tests.verify.support.served import standing
from tests.verify.support.sessions_cases import BEARER, DECLARED

text = st.text(st.characters(exclude_categories=["Cs"]))


@given(user=text, password=text)
def test_a_value_stays_in_its_place(user: str, password: str) -> None:
    values = {"user": user, "password": password}
    body, kind = filled('{"name": "{user}", "nested": {"p": "{password}"}}', values)
    assert json.loads(body) == {"name": user, "nested": {"p": password}}
    assert kind == "application/json"
    form, kind = filled("u={user}&p={password}", values)
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
def test_a_cookie_is_read_as_browsers_do(line: str, name: str, value: str, deleted: bool) -> None:
    cookie = parsed_cookie(line)
    assert (cookie.name, cookie.value, cookie.deleted) == (name, value, deleted)


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
def test_what_is_no_request_or_cookie_is_refused(key: str, value: str) -> None:
    with pytest.raises(ValidationError, match="it has to be"):
        SessionsSettings(**{key: value})


def test_passwords_come_from_the_environment_and_stay_out_of_sight(tmp_path: Path) -> None:
    (tmp_path / "tenfold.toml").write_text("[sessions]\nuser = 'alice'\n")
    environ = {"TENFOLD_SESSIONS__PASSWORD": "12345", "TENFOLD_SESSIONS__OTHER_PASSWORD": "67890"}
    sessions = load(tmp_path / "tenfold.toml", environ=environ).sessions
    assert (sessions.password, sessions.other_password) == ("12345", "67890")
    assert "12345" not in repr(sessions) and "67890" not in repr(sessions)
    (tmp_path / "tenfold.toml").write_text("[sessions]\npassword = 4711\n")
    with pytest.raises(SettingsError) as refused:
        load(tmp_path / "tenfold.toml", environ={})
    assert "4711" not in str(refused.value)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (DECLARED.model_copy(update={"password": "wrong"}), "POST /login answers 401: correct"),
        (DECLARED.model_copy(update={"whoami": "GET /work"}), "GET /work answers 2xx to a stranger too"),
        (BEARER.model_copy(update={"token": "data.token"}), "the login's answer has no data.token"),
    ],
)
def test_what_is_declared_wrongly_is_said(settings: SessionsSettings, sentence: str, tmp_path: Path) -> None:
    shop = Shop(bearer=settings.transport == "bearer")
    with standing(tmp_path, shop) as stack, pytest.raises(TargetError) as said:
        attacks.fixation(stack, settings)
    assert sentence in str(said.value)
    assert "wrong" not in str(said.value)


def test_nobody_there_is_said(tmp_path: Path) -> None:
    with standing(tmp_path, Shop()) as stack:
        pass
    with pytest.raises(TargetError, match=r"^GET /me at http://127.0.0.1:\d+ is not answered \(Connection"):
        attacks.fixation(stack, DECLARED)
