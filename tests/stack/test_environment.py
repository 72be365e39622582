"""The app's environment variables."""

from __future__ import annotations

import pytest

from tenfold.errors import SettingsError
from tenfold.stack.environment import fill_placeholders, merge_placeholders, standard_variables

DATABASE = {"database_url": "postgresql://u:p@h:1/n", "database_user": "u"}


def test_server_addresses_become_standard_variables() -> None:
    placeholders = merge_placeholders(
        [DATABASE, {"redis_url": "redis://r"}, {"replica_urls": "a"}, {"replica_urls": "b"}]
    )
    assert standard_variables(placeholders) == {
        "DATABASE_URL": "postgresql://u:p@h:1/n",
        "DATABASE_REPLICA_URLS": "a,b",
        "REDIS_URL": "redis://r",
    }


def test_replica_urls_are_empty_without_replicas() -> None:
    assert standard_variables(merge_placeholders([DATABASE]))["DATABASE_REPLICA_URLS"] == ""
    assert "DATABASE_REPLICA_URLS" not in standard_variables(merge_placeholders([{"redis_url": "redis://r"}]))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("plain", "plain"),
        ("{database_user}", "u"),
        ("a {database_user} b {database_user}", "a u b u"),
        ('{"a": 1, "b": {}}', '{"a": 1, "b": {}}'),
        ("{0} {} { database_user } {Name}", "{0} {} { database_user } {Name}"),
    ],
)
def test_fill_replaces_known_placeholders_only(text: str, value: str) -> None:
    assert fill_placeholders({"KEY": text}, DATABASE) == {"KEY": value}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{database_usr}", "there is no {database_usr}; did you mean {database_user}?"),
        ("{weather}", "there is no {weather}; known: {database_url}, {database_user}"),
        ("{redis_url}", "{redis_url} needs [stack] redis = true"),
    ],
)
def test_unknown_placeholder_is_refused(text: str, said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        fill_placeholders({"KEY": text}, DATABASE)
    assert str(caught.value) == f"service.environment.KEY: {said}"
