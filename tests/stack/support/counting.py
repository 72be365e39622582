"""An ASGI app that writes down what it was asked to do, so that what ran twice is found."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

LEDGER = Path(os.environ["LEDGER"])
BROKEN = LEDGER.with_name("broken").exists()  # a release that does not come up: only new processes are it


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return
    status = 200
    if scope["path"] == "/ready":
        status = 503 if BROKEN else 200
    elif scope["method"] == "POST":
        write(f"{scope['path']}\n")
        # Some are still at work when their instance has to go.
        await asyncio.sleep(0.5 if int(scope["path"][1:]) % 20 == 0 else 0.03)
    else:
        await asyncio.sleep(0.01)
    body = f"{os.getpid()}".encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def write(line):
    file = os.open(LEDGER, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.write(file, line.encode())
    os.close(file)
