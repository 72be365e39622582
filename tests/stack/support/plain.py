"""A small ASGI app without a framework, for tests of the stack."""

from __future__ import annotations

import json
import os
import time

SHOWN = ("DATABASE_URL", "DATABASE_REPLICA_URLS", "REDIS_URL", "GREETING")


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return
    status, body = answer(scope)
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(body).encode()})


def answer(scope):
    if scope["path"] == "/environment":
        return 200, {name: os.environ.get(name) for name in SHOWN}
    if scope["path"] == "/headers":
        return 200, {name.decode(): value.decode() for name, value in scope["headers"]}
    if scope["path"] == "/broken":
        return 503, {}
    if scope["path"] in ("/", "/metrics"):
        return 200, {"pid": os.getpid()}
    return 404, {}


def make():
    return app


def frozen():
    time.sleep(60)


not_an_app = "text"
