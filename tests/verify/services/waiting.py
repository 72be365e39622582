"""Services whose instances are limited by waiting, not by the CPU: two requests at a time, 40 ms each."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from fastapi import FastAPI, HTTPException


def own() -> FastAPI:
    """Each instance has places of its own: 50 requests/s."""
    app, places = FastAPI(), asyncio.Semaphore(2)

    @app.api_route("/work", methods=["GET", "POST"])
    async def work() -> int:
        async with places:
            await asyncio.sleep(0.04)
        return os.getpid()

    return app


def lonely() -> FastAPI:
    """Only the first instance knows what it is asked for, as with state in its memory."""
    app, places = FastAPI(), asyncio.Semaphore(2)
    first = Path(os.environ["FIRST"])
    is_first = not first.exists()
    first.touch()

    @app.get("/ready")
    async def ready() -> bool:
        return True

    @app.get("/work")
    async def work() -> int:
        async with places:
            await asyncio.sleep(0.04)
        if not is_first:
            raise HTTPException(500)
        return os.getpid()

    return app
