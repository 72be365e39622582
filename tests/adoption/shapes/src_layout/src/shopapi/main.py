"""A package below src, whose settings stand in a .env beside src."""

import os
from pathlib import Path

from fastapi import FastAPI

from shopapi.names import NAMES

for line in Path(".env").read_text().splitlines():
    key, _, value = line.partition("=")
    os.environ.setdefault(key, value)

app = FastAPI(title=os.environ["SHOP_TITLE"])


@app.get("/api/names")
def names() -> list[str]:
    return NAMES
