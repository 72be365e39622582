"""A factory that reads its settings when it is called."""

import os

from fastapi import FastAPI


def create_app() -> FastAPI:
    app = FastAPI()
    limit = int(os.environ["PAGE_LIMIT"])

    @app.get("/pages")
    async def pages() -> list[int]:
        return list(range(limit))

    return app
