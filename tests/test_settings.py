"""tenfold.toml and TENFOLD_ variables: accepted values, and one sentence for each refusal."""

from __future__ import annotations

import os
import string
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tenfold import schema
from tenfold.errors import SettingsError
from tenfold.settings import Settings, load

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    monkeypatch.chdir(tmp_path)

    def write(text: str) -> Path:
        Path("tenfold.toml").write_text(text)
        return Path("tenfold.toml")

    return write


def refusal(toml: str, write: Write, **environ: str) -> str:
    with pytest.raises(SettingsError) as caught:
        load(write(toml), environ=environ)
    assert "\n" not in str(caught.value)
    hidden = caught.value.__context__ is None or caught.value.__suppress_context__
    assert hidden, "the validation error, values and all, would be shown with it"
    return str(caught.value)


def test_defaults_without_a_file(write: Write, tmp_path: Path) -> None:
    settings = load(environ={})
    assert settings == Settings(root=tmp_path)


def test_file_and_its_folder(write: Write, tmp_path: Path) -> None:
    write('[service]\napp = "shop.app:app"\n[measure.objective]\nslow_ms = 150')
    settings = load(environ={})
    assert (settings.root, settings.service.app) == (tmp_path, "shop.app:app")
    assert settings.measure.objective.slow_ms == 150.0


def test_the_environment_of_the_process_is_read(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENFOLD_STACK__REPLICAS", "2")
    assert load().stack.replicas == 2


@pytest.mark.parametrize(
    ("variable", "value", "key", "expected"),
    [
        ("TENFOLD_STACK__REPLICAS", "2", "stack.replicas", 2),
        ("TENFOLD_STACK__REDIS", "false", "stack.redis", False),
        ("TENFOLD_MEASURE__BUDGET_S", "60", "measure.budget_s", 60.0),
        ("TENFOLD_MEASURE__OBJECTIVE__SLOW_MS", "1e2", "measure.objective.slow_ms", 100.0),
        ("TENFOLD_MEASURE__SCENARIO", "3", "measure.scenario", Path("3")),
        ("TENFOLD_STACK__NGINX_BINARY", "/usr/sbin/nginx", "stack.nginx_binary", Path("/usr/sbin/nginx")),
        ("TENFOLD_STACK__NGINX_BINARY", "", "stack.nginx_binary", None),
        ("TENFOLD_SERVICE__APP", "main:app", "service.app", "main:app"),
        ("TENFOLD_SERVICE__ENVIRONMENT__Debug", "1", "service.environment", {"Debug": "1"}),
        ("TENFOLD_SERVICE__ENVIRONMENT__A__B", "true", "service.environment", {"A__B": "true"}),
        ("TENFOLD_SERVICE__ENVIRONMENT", '{A = "b"}', "service.environment", {"A": "b"}),
        ("TENFOLD_APP", "of the stack's own", "stack.replicas", 0),
    ],
)
def test_variables_override_the_file(
    write: Write, variable: str, value: str, key: str, expected: object
) -> None:
    found: object = load(write("[stack]\nreplicas = 0"), environ={variable: value})
    for part in key.split("."):
        found = getattr(found, part)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("toml", "sentence"),
    [
        ("[stack]\nreplica = 1", "tenfold.toml: unknown key stack.replica; did you mean stack.replicas?"),
        ("[stak]\nreplicas = 1", "tenfold.toml: unknown key stak; did you mean stack?"),
        ("replicas = 1", "tenfold.toml: unknown key replicas; did you mean stack.replicas?"),
        (
            "[service]\nbudget_s = 60",
            "tenfold.toml: unknown key service.budget_s; did you mean measure.budget_s?",
        ),
        (
            "[measure.objective]\nzzz = 1",
            "tenfold.toml: unknown key measure.objective.zzz; "
            "[measure.objective] can hold slow_ms, bad_share, achieved_share",
        ),
        ('root = "/"', "tenfold.toml: unknown key root"),
        ("[stack]\nreplicas = -1", "tenfold.toml: stack.replicas is -1; it has to be at least 0"),
        ("[stack]\ninstances = 65", "tenfold.toml: stack.instances is 65; it has to be at most 64"),
        ("[measure]\nmax_users = 0", "tenfold.toml: measure.max_users is 0; it has to be at least 1"),
        ("[measure]\nwidth = 0", "tenfold.toml: measure.width is 0; it has to be more than 0"),
        ("[measure]\nwidth = 1", "tenfold.toml: measure.width is 1; it has to be less than 1"),
        ("[measure.objective]\nslow_ms = inf", "has to be a finite number"),
        ('[stack]\nreplicas = "2"', 'tenfold.toml: stack.replicas is "2"; it has to be a whole number'),
        ("[stack]\nreplicas = true", "tenfold.toml: stack.replicas is true; it has to be a whole number"),
        ("[stack]\nredis = 1", "tenfold.toml: stack.redis is 1; it has to be true or false"),
        ("stack = 1", "tenfold.toml: stack is 1; it has to be a table"),
        ("[service.app]", "tenfold.toml: service.app is a table; it has to be text in quotation marks"),
        (
            '[service]\napp = "shop/app.py:app"',
            'tenfold.toml: service.app is "shop/app.py:app"; '
            'it has to be "package.module:attribute", for example "main:app"',
        ),
        ('[service]\napp = "shop.app"', "it has to be"),
        ('[service]\napp = ":app"', "it has to be"),
        ('[service]\nprepare = "a \'b"', "close every quotation mark in it"),
        ('[service]\nready_path = "health"', 'it has to begin with "/" and hold no spaces'),
        ('[service]\nready_path = "/a\\r\\nb"', 'it has to begin with "/" and hold no spaces'),
        (
            "[stack]\nreplicas = 2\ndatabase = false",
            "tenfold.toml: stack.replicas is 2 but stack.database is false; "
            "set stack.database = true or stack.replicas = 0",
        ),
        ("[stack]\ninstances = 2\nnginx = false", "set stack.nginx = true or stack.instances = 1"),
        (
            '[service.environment]\nCACHE = "{redis_url}"\n[stack]\nredis = false',
            "tenfold.toml: service.environment.CACHE needs what stack.redis = false leaves out; "
            "set stack.redis = true or remove the variable",
        ),
        (
            '[service.environment]\nDB = "{replica_urls}"\n[stack]\ndatabase = false',
            "set stack.database = true or remove the variable",
        ),
        (
            '[service.environment]\n"A=B" = "1"',
            "a variable has a name without = and a value without a zero byte",
        ),
        (
            '[stack]\nreplicas = "x"\ninstances = 0\nport = -1',
            "tenfold.toml: stack.instances is 0; it has to be at least 1 (and 2 more)",
        ),
        ("[stack]\nreplicas =\n", "tenfold.toml, line 2, column 11: invalid value"),
        ("[stack]\n[stack]", "tenfold.toml, line 2, column 7: cannot declare ('stack',) twice"),
        ("a = [1,\n2", "tenfold.toml, line 2, column 2: unclosed array"),
    ],
)
def test_one_sentence_says_what_is_wrong(write: Write, toml: str, sentence: str) -> None:
    said = refusal(toml, write)
    assert said == sentence if sentence.startswith("tenfold.toml") else sentence in said


@pytest.mark.parametrize(
    ("variable", "value", "sentence"),
    [
        (
            "TENFOLD_STACK__REPLICA",
            "2",
            "TENFOLD_STACK__REPLICA: unknown key stack.replica; did you mean TENFOLD_STACK__REPLICAS?",
        ),
        (
            "TENFOLD_STAK__REPLICAS",
            "2",
            "TENFOLD_STAK__REPLICAS: unknown key stak.replicas; did you mean TENFOLD_STACK__REPLICAS?",
        ),
        (
            "TENFOLD_STACK__REPLICAS",
            "two",
            'TENFOLD_STACK__REPLICAS: stack.replicas is "two"; it has to be a whole number',
        ),
        ("TENFOLD_STACK__REDIS", "1", "TENFOLD_STACK__REDIS: stack.redis is 1; it has to be true or false"),
        ("TENFOLD_STACK__PORT", "1\nroot = 2", 'stack.port is "1\\nroot = 2"; it has to be a whole number'),
        ("TENFOLD_STACK__PORT", "\udcff", "TENFOLD_STACK__PORT is not UTF-8; set it again as plain text"),
    ],
)
def test_variables_are_validated_like_the_file(
    write: Write, variable: str, value: str, sentence: str
) -> None:
    assert sentence in refusal("", write, **{variable: value})


@pytest.mark.parametrize(
    "toml",
    [
        "[service.environment]\nSTRIPE = 5318008",
        "[service]\nenvironment = 5318008",
        "[stack]\napi_token = 5318008",
        "[stack]\ndatabase_url = 5318008",
        '[stack]\nredis_server = ["redis://:53/18008@localhost/5318008"]',
        '[stack]\nredis_server = ["postgresql://shop:5318008@localhost/shop"]',
    ],
)
def test_possible_secret_is_not_shown(write: Write, toml: str) -> None:
    assert "5318008" not in refusal(toml, write)


def test_escape_codes_are_not_printed(write: Write) -> None:
    said = refusal('"\\u001b[2J" = 1\n', write)
    assert said.isprintable()
    assert said.startswith("tenfold.toml: unknown key \\x1b[2J; the file can hold service, stack, measure")


def test_the_control_other_value_is_shown(write: Write) -> None:
    assert "5318008" in refusal("[stack]\nport = 5318008", write)


def test_unknown_placeholder_is_left_alone(write: Write) -> None:
    write('[service.environment]\nLOG = \'{"level": "{name}"}\'')
    assert load(environ={}).service.environment == {"LOG": '{"level": "{name}"}'}


def test_missing_file_is_refused(write: Write, tmp_path: Path) -> None:
    write("")
    with pytest.raises(SettingsError, match=r"^no file tenfold\.tml; did you mean tenfold\.toml\?$"):
        load(Path("tenfold.tml"))
    with pytest.raises(SettingsError, match=r"^no file gone/x; write one with: tenfold init$"):
        load(Path("gone/x"))


def test_folder_or_binary_file_is_refused(write: Write) -> None:
    with pytest.raises(SettingsError, match=r"^\. cannot be read: is a directory$"):
        load(Path())
    write("").write_bytes(b'a = "\xff"')
    with pytest.raises(SettingsError, match=r"^tenfold\.toml is not UTF-8 at byte 5; save it as UTF-8$"):
        load()


def test_settings_are_frozen(write: Write) -> None:
    with pytest.raises(ValueError, match="frozen"):
        load(environ={}).stack.replicas = 3  # type: ignore[misc]


# ------------------------------------------------------------------ properties

KEYS = list(schema.keys(Settings))
LEAVES = [path for path in KEYS if not schema.is_table(schema.annotation(Settings, path))]


def test_every_key_has_a_description() -> None:
    for path in LEAVES:
        model = schema.annotation(Settings, path[:-1])
        assert model.model_fields[path[-1]].description, path


@given(path=st.sampled_from(LEAVES), place=st.integers(0, 40), letter=st.sampled_from(string.ascii_lowercase))
@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_misspelt_key_finds_the_right_one(
    write: Write, path: tuple[str, ...], place: int, letter: str
) -> None:
    name = path[-1]
    wrong = name[: place % len(name)] + letter + name[place % len(name) :]
    others = {key[-1] for key in KEYS if key[:-1] == path[:-1]}
    if len(name) < 4 or wrong in others:
        return
    said = refusal(f"[{'.'.join(path[:-1])}]\n{wrong} = 1", write)
    assert f"did you mean {'.'.join(path)}?" in said


@given(
    path=st.sampled_from(KEYS),
    value=st.one_of(
        st.integers(), st.floats(), st.booleans(), st.text(), st.lists(st.integers(), max_size=2)
    ),
)
@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_value_is_accepted_or_refused_in_one_sentence(
    write: Write, path: tuple[str, ...], value: object
) -> None:
    text = toml_value(value)
    try:
        settings = load(write(f"{'.'.join(path)} = {text}"), environ={})
    except SettingsError as error:
        said = str(error)
        assert said.startswith("tenfold.toml")
        assert ".".join(path) in said
        assert said.splitlines() == [said]
    else:
        assert isinstance(settings, Settings)


def toml_value(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        escaped = "".join(
            letter if letter.isalnum() and letter.isascii() else f"\\U{ord(letter):08x}" for letter in value
        )
        return f'"{escaped}"'
    return str(value)


@given(value=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30))
def test_any_text_reaches_the_app_unchanged(value: str) -> None:
    if "{" in value:
        return
    environ = {"TENFOLD_SERVICE__ENVIRONMENT__X": value}
    settings = load(Path(os.devnull), environ=environ)
    assert settings.service.environment == ({"X": value} if value else {})
