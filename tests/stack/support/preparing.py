"""Callables for ``[service] prepare``."""

import os

import psycopg


async def fill():
    with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
        connection.execute("create table filled as select n from generate_series(1, 1000) n")


def fail():
    raise ValueError("no data today")
