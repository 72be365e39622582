"""`prepare` of this variant: its tables, filled."""

from __future__ import annotations

from shop import data
from shop.scaled.database import engine
from shop.scaled.models import Base


def load() -> None:
    """Create and fill the tables in the database that DATABASE_URL names."""
    data.load(engine, Base.metadata)
    engine.dispose()
