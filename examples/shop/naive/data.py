"""`prepare` of this variant: creates and fills its tables."""

from __future__ import annotations

from shop import data
from shop.naive.database import engine
from shop.naive.models import Base


def load() -> None:
    """Create and fill the tables in the database that DATABASE_URL names."""
    data.load(engine, Base.metadata)
    engine.dispose()
