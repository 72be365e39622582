"""Keys, delays and JSON of tasks: the pure parts."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu.utils import json as kombu_json

from tenfold.errors import TaskError
from tenfold.tasks import QueueSettings, TaskSettings
from tenfold.tasks.states import decode, encode, retry_delay_s, task_id


@given(st.text(), st.text(), st.text(), st.text())
def test_two_tasks_or_keys_never_share_an_id(first: str, key: str, second: str, other: str) -> None:
    assert (task_id(first, key) == task_id(second, other)) == ((first, key) == (second, other))


def test_task_without_a_key_is_always_a_new_one() -> None:
    assert task_id("a", None) != task_id("a", None)


@given(st.integers(1, 50), st.floats(0.01, 1000), st.floats(0, 1))
def test_delay_doubles_within_a_quarter_and_never_is_zero(attempt: int, base_s: float, jitter: float) -> None:
    delay_s = retry_delay_s(attempt, base_s=base_s, jitter=jitter)
    expected = min(base_s * 2 ** (attempt - 1), 86_400)
    assert 0 < 0.75 * expected <= delay_s <= 1.25 * expected


TEXT = st.text(st.characters(exclude_categories=["Cs"]))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | TEXT | st.uuids() | st.datetimes()
    | st.floats(allow_nan=False, allow_infinity=False) | st.decimals(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=10,
)  # fmt: skip


@given(JSON)
def test_what_is_encoded_comes_back(value: Any) -> None:
    text = encode(value, "it")
    assert kombu_json.loads(text) == value
    assert kombu_json.loads(kombu_json.dumps(decode(text))) == value  # the way of the relay


@given(st.binary() | st.complex_numbers() | st.just(object()) | st.floats().filter(lambda f: f != f))
def test_what_does_not_encode_is_one_sentence(value: Any) -> None:
    try:
        encode(value, "the arguments of f")
    except TaskError as error:
        assert str(error).startswith("the arguments of f cannot be written as JSON")


def test_recursive_value_is_one_sentence() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(TaskError, match="cannot be written as JSON"):
        encode(value, "it")


@pytest.mark.parametrize(
    ("task", "queue"),
    [("shop.send_email", "emails"), ("shop.monthly", "reports"), ("shop.other", "default"), ("", "default")],
)
def test_first_queue_that_names_a_task_gets_it(task: str, queue: str) -> None:
    queues = {
        "emails": QueueSettings(tasks=("*.send_email",)),
        "reports": QueueSettings(tasks=("shop.month*",)),
    }
    assert TaskSettings(queues=queues).find_queue(task) == queue
