"""The engine, and the sessions that endpoints open."""

from __future__ import annotations

import os

from sqlalchemy import create_engine, make_url
from sqlalchemy.orm import sessionmaker

engine = create_engine(
    make_url(os.environ["DATABASE_URL"]).set(drivername="postgresql+psycopg"),
    pool_size=2,  # the smallest database plan allows ten connections, for four instances
    max_overflow=0,
    pool_timeout=10,
    # A report must not take every core of the database.
    connect_args={"options": "-c max_parallel_workers_per_gather=0"},
)
Session = sessionmaker(engine)
