"""Values: what comes back is what was stored, or it is not stored."""

from __future__ import annotations

import contextlib
import enum
import math
import zlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Coroutine, Generator, Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any, Literal, NamedTuple, TypedDict
from uuid import UUID, uuid4

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, computed_field
from sqlalchemy import Row
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from tenfold.caching.values import Codec, UnstorableError
from tenfold.errors import SettingsError


class Colour(enum.Enum):
    RED = "red"


class Product(BaseModel):
    id: int
    price: Decimal
    at: datetime
    tags: tuple[str, ...] = ()
    colour: Colour = Colour.RED
    alias: int = Field(1, alias="someAlias")
    weight: float = 1.0

    @computed_field  # type: ignore[prop-decorator]
    @property
    def double(self) -> int:
        return 2 * self.id


class SpecialProduct(Product):
    secret: str = "x"


class WithExcluded(BaseModel):
    name: str
    note: str = Field("", exclude=True)


class WithPrivate(BaseModel):
    name: str
    _count: int = PrivateAttr(default=0)


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")
    name: str


@dataclass
class Line:
    number: int
    product: Product | None = None
    hidden: str = field(default="", repr=False)


@dataclass(frozen=True)
class Frozen:
    numbers: tuple[int, ...]
    when: date | None = None


@dataclass(frozen=True)
class NotDeeplyFrozen:
    numbers: list[int]


class FrozenModel(BaseModel):
    model_config = ConfigDict(frozen=True)
    name: str


class Struct(msgspec.Struct, frozen=True):
    a: int
    b: Decimal


class Typed(TypedDict):
    a: int
    b: list[int]


class Pair(NamedTuple):
    left: int
    right: str


def product(**changes: Any) -> Product:
    return Product(**{"id": 1, "price": Decimal("1.10"), "at": datetime(2026, 1, 2, tzinfo=UTC), **changes})


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (int | None, None),
        (int | None, 0),
        (bool, True),
        (list[int], []),
        (Decimal, Decimal("1.10")),
        (datetime, datetime(2026, 1, 2, 3, 4, 5, 6)),  # noqa: DTZ001
        (datetime, datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC)),
        (UUID, uuid4()),
        (timedelta, timedelta(days=1, microseconds=1)),
        (tuple[int, str], (1, "a")),
        (dict[int, str], {1: "a"}),
        (dict[str, tuple[Decimal, date]], {"a": (Decimal("0.1"), date(2026, 1, 2))}),
        (set[int], {1, 2}),
        (frozenset[str], frozenset("a")),  # the order of several differs from process to process
        (float, math.nan),
        (list[float], [math.inf, -0.0]),
        (bytes, b"\x00\xff"),
        (str, "é\x00"),
        (dict[str, Any], {"a": [1, {"b": None}], "c": 1.5, "d": True}),
        (Literal["a", "b"], "b"),
        (Colour, Colour.RED),
        (Product, product()),
        (Product, product(id=2**63 - 1)),
        (Product, Product.model_validate({"id": 1, "price": "2", "at": "2026-01-01", "someAlias": 5})),
        (list[Product], [product(), product(id=2)]),
        (Product | None, None),
        (Product | Line, Line(1)),
        (Line, Line(1, product())),
        (Frozen, Frozen((1, 2), date(2026, 1, 2))),
        (Struct, Struct(1, Decimal("1.0"))),
        (Typed, {"a": 1, "b": [1]}),
        (Pair, Pair(1, "a")),
        (Open, Open(name="a", more=1)),
        (list[tuple[Product, int]], [(product(), 3)]),
    ],
)
def test_values_come_back_as_they_were(annotation: Any, value: Any) -> None:
    codec = Codec(annotation, name="f")
    found = codec.decode(codec.encode(value))
    assert type(found) is type(value)
    assert found == value or (math.isnan(found) and math.isnan(value))
    assert repr(found).replace("TzInfo(0)", "datetime.timezone.utc") == repr(value)  # pydantic's own UTC


class Markup(str):
    """As of a template engine: text that is safe to show."""


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (int, 2**70),
        (int, True),
        (dict[str, Any], {"a": (1, 2)}),
        (dict[str, Any], {"a": Decimal(1)}),
        (dict[str, Any], {"a": date(2026, 1, 1)}),
        (dict[str, Any], {"a": {1, 2}}),
        (dict[str, Any], OrderedDict(a=1)),
        (str, Markup("<b>")),
        (list[str], [Markup("<b>")]),
        (str, "\ud800"),
        (Product, product(weight=math.nan)),
        (Product, SpecialProduct(**product().model_dump(by_alias=True))),
        (list[Product], [SpecialProduct(**product().model_dump(by_alias=True))]),
        (WithExcluded, WithExcluded(name="a", note="b")),
        (Product, {"id": 1}),
        (Product, None),
        (list[int], ["a"]),
        (list[int], (1, 2)),
        (dict[str, Any], {"a": object()}),
    ],
)
def test_values_that_would_come_back_changed_are_not_stored(annotation: Any, value: Any) -> None:
    with pytest.raises(UnstorableError):
        codec = Codec(annotation, name="f")
        codec.encode(value)


def test_private_attributes_are_not_lost() -> None:
    value = WithPrivate(name="a")
    codec = Codec(WithPrivate, name="f")
    assert codec.decode(codec.encode(value)) == value
    value._count = 3
    with pytest.raises(UnstorableError):
        codec.encode(value)


def test_hidden_field_of_a_dataclass_is_kept() -> None:
    codec = Codec(Line, name="f")
    assert codec.decode(codec.encode(Line(1, hidden="x"))).hidden == "x"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(json_values)
def test_builtins_come_back(value: Any) -> None:
    codec = Codec(Any, name="f")
    assert codec.is_same(value, codec.decode(codec.encode(value)))


# ------------------------------------------------------------------ sizes and damage


def test_large_values_are_compressed_and_bounded() -> None:
    codec = Codec(str, name="f", max_bytes=100_000)
    packed = codec.encode("a" * 90_000)
    assert len(packed) < 2000 and codec.decode(packed) == "a" * 90_000
    with pytest.raises(UnstorableError, match="100,00"):
        codec.encode("a" * 100_001)


def test_compression_bomb_is_refused() -> None:
    codec = Codec(bytes, name="f", max_bytes=10_000)
    bomb = b"\x01" + zlib.compress(bytes(100_000_000))
    with pytest.raises(UnstorableError, match="larger than max_value_bytes"):
        codec.decode(bomb)


@given(st.binary(max_size=100))
def test_damaged_bytes_do_not_decode_to_something_else(data: bytes) -> None:
    codec = Codec(Product, name="f")
    with contextlib.suppress(UnstorableError):
        assert isinstance(codec.decode(data), Product)


def test_schema_is_part_of_the_version() -> None:
    def model(**fields: Any) -> Any:
        return type("Same", (BaseModel,), {"__annotations__": fields, "__module__": "m"})

    one, other = Codec(model(a=int), name="f"), Codec(model(a=int, b=int | None), name="f")
    assert one.schema != other.schema
    assert one.schema == Codec(model(a=int), name="f").schema
    assert Codec(list[int], name="f").schema != Codec(list[str], name="f").schema
    assert Codec(Frozen, name="f").schema != Codec(NotDeeplyFrozen, name="f").schema


# ------------------------------------------------------------------ refusals


class Base(DeclarativeBase):
    pass


class Lock:
    pass


class Node(msgspec.Struct):
    children: list[Node]


def test_recursive_types() -> None:
    codec = Codec(Node, name="f")
    assert codec.decode(codec.encode(Node([Node([])]))) == Node([Node([])])


class User(Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (User, "the ORM entity User"),
        (list[User], "the ORM entity User"),
        (User | None, "the ORM entity User"),
        (Row[Any], "SQLAlchemy's Row"),
        (list[Row[Any]], "SQLAlchemy's Row"),
        (Iterator[int], "consumed only once"),
        (Generator[int, None, None], "consumed only once"),
        (AsyncIterator[int], "consumed only once"),
        (Awaitable[int], "consumed only once"),
        (Coroutine[Any, Any, int], "consumed only once"),
        (object, "says nothing of its values"),
        (Lock, "cannot be cached"),
        (list[Lock], "cannot be cached"),
        (dict[str, Lock | None], "cannot be cached"),
    ],
)
def test_types_that_cannot_be_stored_are_refused(annotation: Any, words: str) -> None:
    with pytest.raises(SettingsError, match=words) as caught:
        Codec(annotation, name="shop.f")
    assert "shop.f" in str(caught.value) and ": " in str(caught.value)


@pytest.mark.parametrize(
    "annotation",
    [int, str | None, tuple[int, ...], frozenset[str], Frozen, FrozenModel, Struct, Colour, bytes],
)
def test_immutable_types(annotation: Any) -> None:
    assert Codec(annotation, name="f").is_immutable


@pytest.mark.parametrize(
    "annotation", [list[int], dict[str, int], set[int], Product, Line, NotDeeplyFrozen, tuple[list[int], ...]]
)
def test_mutable_types(annotation: Any) -> None:
    assert not Codec(annotation, name="f").is_immutable
