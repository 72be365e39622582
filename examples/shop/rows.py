"""The shop's data as text for COPY: a pure function of the seed, the same on every machine.

The skew is Zipf's: product k sells in proportion to 1 / (k + ½), user k orders in proportion to
1 / (k + 100), so that product 1 is the best seller and user 1 orders most often. Both are drawn by
inverting the distribution function of the density 1 / (x + c): one uniform number and one power a draw.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import product

from shop.passwords import hashed

USERS = 20_000
PRODUCTS = 10_000
ORDERS = 200_000
PASSWORD = "correct horse battery staple"  # noqa: S105 - of every demo user, also in the README
SEED = 2025

_OPENED = datetime(2025, 1, 1, tzinfo=UTC)
_BETWEEN_ORDERS = timedelta(days=365) / ORDERS
_OFFSET = 100  # flattens the top of the users' skew: the first orders twice as often as the hundredth
_ROWS_A_CHUNK = 5_000

# fmt: off
_LOOKS = ("Amber", "Ash", "Blue", "Bright", "Bronze", "Classic", "Copper", "Dark", "Double", "Early",
          "Field", "Garden", "Golden", "Green", "Grey", "Harbour", "Ivory", "Light", "Little", "Long",
          "Meadow", "Nordic", "Plain", "River", "Round")
_MATERIALS = ("Bamboo", "Beech", "Brass", "Canvas", "Ceramic", "Clay", "Cork", "Cotton", "Felt", "Glass",
              "Hemp", "Iron", "Leather", "Linen", "Maple", "Oak", "Paper", "Steel", "Stone", "Wool")
# fmt: on
_THINGS = {
    "kitchen": ("Bowl", "Jug", "Mug", "Pan", "Tray"),
    "living": ("Basket", "Blanket", "Clock", "Cushion", "Lamp"),
    "office": ("Folder", "Notebook", "Pen Case", "Shelf", "Stool"),
    "outdoors": ("Bag", "Bottle", "Chair", "Hammock", "Lantern"),
}
_KINDS = [(category, thing) for category, things in _THINGS.items() for thing in things]


def email(user_id: int) -> str:
    """Return the address with which user ``user_id`` (1 to USERS) signs in."""
    return f"user{user_id}@shop.example"


def users() -> Iterator[str]:
    """Yield rows of id, email, name, password_hash, created_at.

    All users share one salt and so one hash: 20,000 hashes would take minutes, and a login costs the same.
    """
    password_hash = hashed(PASSWORD, salt=b"one data set....")
    step = timedelta(days=300) / USERS
    for user_id in range(1, USERS + 1):
        created_at = _OPENED - timedelta(days=300) + step * user_id
        yield f"{user_id}\t{email(user_id)}\tUser {user_id}\t{password_hash}\t{created_at.isoformat()}\n"


def prices() -> list[int]:
    """Return the price in cents of product k at index k; index 0 is unused."""
    rng = random.Random(SEED)
    return [0, *(100 * int(5 * 60 ** rng.random()) - 1 for _ in range(PRODUCTS))]


def products() -> Iterator[str]:
    """Yield rows of id, name, description, category, price_cents, stock, created_at."""
    rng = random.Random(SEED + 1)
    names = list(product(_LOOKS, _MATERIALS, _KINDS))
    rng.shuffle(names)
    for product_id, price_cents in enumerate(prices()[1:], start=1):
        look, material, (category, thing) = names[product_id - 1]
        about = (
            f"{look} {thing.lower()} made of {material.lower()}, by a workshop that mends what it sells. "
            f"Kept in our own {category} collection; leaves the store within two days, returns are free."
        )
        stock = 5_000 + 1_000_000 // product_id
        created_at = _OPENED - timedelta(minutes=rng.randrange(60 * 24 * 300))
        yield (
            f"{product_id}\t{look} {material} {thing}\t{about}\t{category}\t{price_cents}\t{stock}\t"
            f"{created_at.isoformat()}\n"
        )


def _draw_products(rng: random.Random) -> list[int]:
    """Return the distinct products of one order, two to five, ascending."""
    count = 2 + int(4 * rng.random() ** 2)
    return sorted({int((PRODUCTS + 1) ** rng.random()) for _ in range(count)})


def orders() -> Iterator[tuple[str, str]]:
    """Yield chunks of two texts, orders and their items.

    Orders: id, user_id, status, total_cents, created_at. Items: order_id, product_id, quantity,
    unit_price_cents.
    """
    rng = random.Random(SEED + 2)
    uniform = rng.random
    price = prices()
    growth = (_OFFSET + USERS) / _OFFSET
    for start in range(1, ORDERS + 1, _ROWS_A_CHUNK):
        placed: list[str] = []
        items: list[str] = []
        for order_id in range(start, min(start + _ROWS_A_CHUNK, ORDERS + 1)):
            total_cents = 0
            for product_id in _draw_products(rng):
                quantity = 1 + int(3 * uniform() ** 3)
                unit = price[product_id]
                total_cents += quantity * unit
                items.append(f"{order_id}\t{product_id}\t{quantity}\t{unit}\n")
            user_id = 1 + int(_OFFSET * (growth ** uniform() - 1))
            status = "delivered" if order_id <= ORDERS - 2_000 else "paid"
            created_at = (_OPENED + (order_id - 1) * _BETWEEN_ORDERS).isoformat()
            placed.append(f"{order_id}\t{user_id}\t{status}\t{total_cents}\t{created_at}\n")
        yield "".join(placed), "".join(items)
