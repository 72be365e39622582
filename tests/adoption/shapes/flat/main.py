"""A small API in one file."""

from fastapi import FastAPI

app = FastAPI()


@app.get("/items")
def items() -> list[str]:
    return ["tea", "cups"]


@app.get("/items/{item}")
def item(item: int) -> dict[str, int]:
    return {"item": item}
