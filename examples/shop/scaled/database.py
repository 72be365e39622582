"""The engine, and the sessions that endpoints open."""

from __future__ import annotations

import os

from sqlalchemy import create_engine, make_url
from sqlalchemy.orm import sessionmaker

engine = create_engine(
    make_url(os.environ["DATABASE_URL"]).set(drivername="postgresql+psycopg"),
    pool_size=10,  # four instances of 10 + 10 leave room in the database's 100 connections
    max_overflow=10,
    pool_timeout=5,
    # A report must not take every core of the database.
    connect_args={"options": "-c max_parallel_workers_per_gather=0"},
)
Session = sessionmaker(engine)
