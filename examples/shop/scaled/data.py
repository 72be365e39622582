"""`prepare` of this variant: creates and fills its tables."""

from __future__ import annotations

import os

from sqlalchemy import create_engine, make_url

from shop import data
from shop.scaled.models import Base


def load() -> None:
    """Create and fill the tables in the database that DATABASE_URL names."""
    engine = create_engine(make_url(os.environ["DATABASE_URL"]).set(drivername="postgresql+psycopg"))
    data.load(engine, Base.metadata)
    engine.dispose()
