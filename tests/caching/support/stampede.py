"""One of several processes that miss at once: `python -m tests.caching.support.stampede URL THREADS SECONDS`.

Prints a line when it is ready, begins at a line on stdin, and prints how often it loaded and what it got.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time

from tenfold.caching import QueryCache


def main(url: str, callers: int, load_s: float, kind: str) -> None:
    cache = QueryCache(url, metrics=False)
    loads: list[float] = []

    @cache.query(ttl=60, tags=["stampede"], name="stampede")
    def read(number: int) -> list[int]:
        loads.append(time.time())
        print("loading", flush=True)
        time.sleep(load_s)
        return [number]

    @cache.query(ttl=60, tags=["stampede"], name="stampede async")
    async def read_async(number: int) -> list[int]:
        loads.append(time.time())
        print("loading", flush=True)
        await asyncio.sleep(load_s)
        return [number]

    values: list[list[int]] = []
    cache.get_or_load("warm", lambda: 1)  # connects
    print("ready", flush=True)
    sys.stdin.readline()
    if kind == "async":

        async def run() -> None:
            values.extend(await asyncio.gather(*(read_async(7) for _ in range(callers))))
            await cache.aclose()

        asyncio.run(run())
    else:
        threads = [threading.Thread(target=lambda: values.append(read(7))) for _ in range(callers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        cache.close()
    print(
        json.dumps({"loads": len(loads), "values": len(values), "wrong": sum(v != [7] for v in values)}),
        flush=True,
    )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4])
