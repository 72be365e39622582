"""Keys: no two different calls have one, and no call has two."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Annotated, Any, Literal, NewType
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from starlette.requests import Request
from starlette.responses import Response

from tenfold.caching.keys import MAX_KEY_CHARS, CallKey, UnkeyableError, encode_key, shorten
from tenfold.errors import SettingsError

UserId = NewType("UserId", int)


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


class Size(enum.StrEnum):
    SMALL = "1"


class Model(BaseModel):
    a: int = 1
    b: str = ""


class OtherModel(BaseModel):
    a: int = 1
    b: str = ""


@dataclass(frozen=True)
class Point:
    x: int
    y: int = 0


class Struct(msgspec.Struct):
    x: int


NAIVE = datetime(2026, 1, 1)  # noqa: DTZ001
UTC_1 = timezone(timedelta(hours=1))

# Values that are easily taken for one another.
DISTINCT: list[Any] = [
    None, True, False, 0, 1, -1, 1.0, 0.0, -0.0, math.nan, math.inf, "1", "", "None", "True", b"1", b"",
    Decimal("1"), Decimal("1.0"), [1], (1,), {1}, frozenset({1}), {}, [], (),
    set(), {1: 2}, {"1": 2}, {1: "2"},
    [[1], [2]], [[1, 2]], [[], [1, 2]], "i1", "s1:1", ["a", "b"], ["a,s1:b"], ("a", "b"), "a,b", Colour.RED,
    Colour.BLUE, Size.SMALL, Model(), Model(a=2), OtherModel(), Point(1), Point(1, 1), Struct(1), 2**70,
    UUID(int=1), date(2026, 1, 1), NAIVE, datetime(2026, 1, 1, tzinfo=UTC),
    datetime(2026, 1, 1, 1, tzinfo=UTC_1), NAIVE.replace(hour=2), NAIVE.replace(hour=2, fold=1),
    time(1), timedelta(1), timedelta(seconds=1), "\ud800", "é", "e\u0301", "a" * 300, "a" * 301,
]  # fmt: skip


def test_values_that_differ_have_different_keys() -> None:
    keys = [encode_key(value) for value in DISTINCT]
    assert len(set(keys)) == len(keys)
    assert len({shorten(key) for key in keys}) == len(keys)


scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
    | st.decimals(allow_nan=False) | st.datetimes() | st.uuids() | st.dates() | st.timedeltas()
)  # fmt: skip
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text() | st.integers(), inner, max_size=4)
    ),
    max_leaves=10,
)


def same(one: Any, other: Any) -> bool:
    """As ==, with types, and without -0.0 == 0.0."""
    if type(one) is not type(other):
        return False
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return len(one) == len(other) and all(
            any(same(key, k) and same(value, v) for k, v in other.items()) for key, value in one.items()
        )
    return repr(one) == repr(other)


@given(values, values)
def test_keys_are_equal_exactly_when_values_are(one: Any, other: Any) -> None:
    assert (encode_key(one) == encode_key(other)) == same(one, other)


@given(st.text())
def test_short_keys_are_printable_and_bounded(text: str) -> None:
    key = shorten(text)
    assert (len(key) <= MAX_KEY_CHARS and key.isascii() and key.isprintable() and " " not in key) or key == ""


class Holder:
    pass


loop: list[Any] = []
loop.append(loop)


@pytest.mark.parametrize("value", [Holder(), object(), len, Holder, [Holder()], {"a": object()}, iter([])])
def test_objects_without_a_canonical_text_are_refused(value: object) -> None:
    with pytest.raises(UnkeyableError):
        encode_key(value)


# ------------------------------------------------------------------ calls


def everything(
    a: int, b: str = "x", /, c: float = 1.0, *rest: int, d: bool = False, e: int | None = None, **more: int
) -> None: ...


def key_of(function: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    call_key = CallKey(function, name=function.__name__)
    return call_key.text(call_key.bind(args, kwargs))


def plain(a: int, b: str = "x", *, c: float = 1.0, d: int | None = None) -> None: ...


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((1,), {}),
        ((1, "x"), {}),
        ((), {"a": 1}),
        ((), {"b": "x", "a": 1}),
        ((1,), {"d": None, "c": 1.0}),
        ((1,), {"c": 1.0, "b": "x", "d": None}),
    ],
)
def test_ways_to_pass_the_same_arguments_have_one_key(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    assert key_of(plain, *args, **kwargs) == key_of(plain, 1)


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [((1,), {}), ((1, "y"), {}), ((1, "y", 2.0, 3), {}), ((1,), {"d": True}), ((1,), {"z": 1, "y": 2})],
)
def test_all_kinds_of_parameters_count(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    calls = [
        ((1,), {}),
        ((1, "y"), {}),
        ((1, "y", 2.0, 3), {}),
        ((1,), {"d": True}),
        ((1,), {"y": 2, "z": 1}),
    ]
    assert [key_of(everything, *a, **k) for a, k in calls].count(key_of(everything, *args, **kwargs)) == 1


@pytest.mark.parametrize(
    ("args", "kwargs"), [((), {}), ((1, 2, 3), {}), ((1,), {"a": 1}), ((1,), {"unknown": 1})]
)
def test_arguments_that_do_not_fit_raise_what_the_function_would(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    with pytest.raises(TypeError):
        key_of(plain, *args, **kwargs)


def test_sessions_and_requests_are_no_part_of_a_key() -> None:
    def function(
        session: Session, a: AsyncSession, request: Request, response: Response | None, number: int
    ) -> None: ...

    assert key_of(function, Session(), None, None, None, 1) == key_of(function, None, 1, 2, 3, 1)
    assert key_of(function, None, None, None, None, 1) != key_of(function, None, None, None, None, 2)


def annotated(
    a: Annotated[int, "of a framework"], b: UserId, c: Literal["x", "y"], d: date | None, e: Colour, f: Model,
    g: Point, h: Struct, i: list[tuple[int, ...]], j: dict[str, list[int]], k: frozenset[str], m: Size,
) -> None: ...  # fmt: skip


def test_annotations_that_can_be_keyed() -> None:
    CallKey(annotated, name="annotated")


class Client:
    pass


class Service:
    def method(self, number: int) -> int:
        return number


def takes_client(client: Client) -> None: ...


def takes_clients(clients: list[Client]) -> None: ...


def takes_callable(call: Callable[[], int]) -> None: ...


def takes_any(anything: Any) -> None: ...


def takes_maybe(client: Client | None) -> None: ...


def takes_unannotated(number) -> None: ...  # type: ignore[no-untyped-def]


def takes_others(*clients: Client) -> None: ...


@pytest.mark.parametrize(
    ("function", "parameter"),
    [
        (Service.method, "self"),
        (takes_client, "client"),
        (takes_clients, "clients"),
        (takes_callable, "call"),
        (takes_any, "anything"),
        (takes_maybe, "client"),
        (takes_unannotated, "number"),
        (takes_others, "clients"),
    ],
)
def test_parameters_that_cannot_be_keyed_are_named(function: Callable[..., Any], parameter: str) -> None:
    with pytest.raises(SettingsError) as caught:
        CallKey(function, name="shop.f")
    message = str(caught.value)
    assert repr(parameter) in message and "shop.f" in message
    assert f"ignore=['{parameter}']" in message and "key=" in message
    assert "\n" not in message


def test_ignored_parameters_may_be_anything() -> None:
    call_key = CallKey(Service.method, name="method", ignore=["self"])
    assert call_key.text(call_key.bind((Service(), 1), {})) == call_key.text(
        call_key.bind((Service(), 1), {})
    )


def test_unknown_name_in_ignore_is_refused() -> None:
    with pytest.raises(SettingsError, match="'slef', which f has no parameter for"):
        CallKey(Service.method, name="f", ignore=["slef"])


def test_annotation_that_cannot_be_resolved_is_said() -> None:
    def function(number: Missing) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    with pytest.raises(SettingsError, match=r"annotations of f cannot be resolved \(name 'Missing'"):
        CallKey(function, name="f")
