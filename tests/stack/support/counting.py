"""An ASGI app that records every POST, so that one that ran twice is found."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

RECORD = Path(os.environ["RECORD"])
BROKEN = RECORD.with_name(
    "broken"
).exists()  # a release that never becomes ready; only new processes read this


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
        append(f"{scope['path']}\n")
        # Some are still running when their instance is replaced.
        await asyncio.sleep(0.5 if int(scope["path"][1:]) % 20 == 0 else 0.03)
    else:
        await asyncio.sleep(0.01)
    body = f"{os.getpid()}".encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def append(line):
    file = os.open(RECORD, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.write(file, line.encode())
    os.close(file)
