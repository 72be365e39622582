"""An app whose answers a header of the request dictates, behind the middleware of one of several policies.

POLICIES names a JSON file: a list of [{pattern: rule}, options].
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
from pathlib import Path
from typing import Any

from tenfold.edge import EdgeMiddleware, EdgePolicy, Rule

count = 0


async def answer(scope: Any, receive: Any, send: Any) -> None:
    global count
    while (await receive()).get("more_body"):
        pass
    headers = dict(scope["headers"])
    wanted = json.loads(base64.b64decode(headers.get(b"x-answer", b"e30=")))
    count += 1
    number = count
    await asyncio.sleep(wanted.get("delay", 0))
    body = json.dumps({"count": number, "variants": scope.get("state", {}).get("variants", {})}).encode()
    pairs = [(name.encode(), value.encode("latin-1")) for name, value in wanted.get("headers", [])]
    pairs.append((b"content-type", b"application/json"))
    status = wanted.get("status", 200)
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": body if status not in (204, 304) else b""})


def read_policy(rules: dict[str, Any], options: dict[str, Any]) -> EdgePolicy:
    return EdgePolicy({pattern: Rule(**rule) for pattern, rule in rules.items()}, **options)


policies = [read_policy(*one) for one in json.loads(Path(os.environ["POLICIES"]).read_text())]
apps = [EdgeMiddleware(answer, policy=policy, behind_edge=True, compress=False) for policy in policies]


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "http":
        number = dict(scope["headers"]).get(b"x-policy", b"0")
        target = answer if number == b"none" else apps[int(number)]
        await target(scope, receive, send)
