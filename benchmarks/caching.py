"""The cost of a query cache's hits, and the loads of a stampede, beside other caches.

    python -m benchmarks.caching [--rounds 20] [--calls 200] [--json]

One process calls one function that returns twenty products, through each cache, against one real Redis. The
caches take turns of some calls, so that other load on the machine affects all alike; ratios are medians of
each round's. Values from memory: a list of pydantic models, of which each caller of tenfold gets its own,
beside the decoding alone; and a frozen tuple, which all share as peers do. Values from Redis: beside a
plain ``client.get`` of the same size by redis-py. A stampede: 200 callers at once in asyncio, 50 in
threads, while the cache is empty. The peers are used as their documentation shows, with their locks where
they have them: dogpile.cache, cashews and aiocache, which pickle. fastapi-redis-sdk caches answers of
endpoints, not functions.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
import redis
import redis.asyncio
from pydantic import BaseModel

from benchmarks.support.results import Result, benchmark_parser, print_results
from benchmarks.support.rounds import median_result, ratio_result, turns
from benchmarks.support.servers import redis_url
from tenfold.caching import QueryCache
from tenfold.caching.values import Codec
from tenfold.errors import DependencyError

CALLERS, THREADS = 200, 50  # in asyncio, in threads
LOAD_S = 0.1


class Product(BaseModel):
    id: int
    name: str
    category: str
    price_cents: int
    stock: int


class FrozenProduct(msgspec.Struct, frozen=True):
    id: int
    name: str
    category: str
    price_cents: int
    stock: int


FIELDS = [
    {"id": number, "name": f"Product {number}", "category": "Books", "price_cents": 1999, "stock": 7}
    for number in range(20)
]
PRODUCTS = [Product(**fields) for fields in FIELDS]
FROZEN = tuple(FrozenProduct(**fields) for fields in FIELDS)


@dataclass
class Contender:
    """A cached function; ``call`` is awaited if ``is_async``."""

    name: str
    call: Callable[[int], Any]
    is_async: bool = False


def peers() -> tuple[Any, Any, Any]:
    """The peers' modules.

    Raises:
        DependencyError: they are not installed.
    """
    try:
        import aiocache
        import cashews
        import dogpile.cache
    except ImportError:
        raise DependencyError(
            "the peers are not installed: pip install 'tenfold[bench]', or make bench"
        ) from None
    return dogpile.cache, cashews, aiocache


# ------------------------------------------------------------------ contenders


def memory_contenders() -> list[Contender]:
    dogpile, cashews, aiocache = peers()
    cache = QueryCache(metrics=False)
    region = dogpile.make_region().configure("dogpile.cache.memory")
    other = cashews.Cache()
    other.setup("mem://")

    @cache.query(ttl=600, tags=["products"])
    def own_list(page: int) -> list[Product]:
        return PRODUCTS

    @cache.query(ttl=600, tags=["products"], frozen=True)
    def own_frozen(page: int) -> tuple[FrozenProduct, ...]:
        return FROZEN

    @region.cache_on_arguments(expiration_time=600)
    def of_dogpile(page: int) -> Any:
        return FROZEN

    @other(ttl=600, key="products:{page}")
    async def of_cashews(page: int) -> Any:
        return FROZEN

    @aiocache.cached(ttl=600)
    async def of_aiocache(page: int) -> Any:
        return FROZEN

    codec = Codec(list[Product], name="decode")
    packed = codec.encode(PRODUCTS)
    return [
        Contender("decode alone", lambda _: codec.decode(packed)),
        Contender("tenfold", own_list),
        Contender("tenfold frozen", own_frozen),
        Contender("dogpile.cache", of_dogpile),
        Contender("cashews", of_cashews, is_async=True),
        Contender("aiocache", of_aiocache, is_async=True),
    ]


def redis_contenders(url: str) -> list[Contender]:
    dogpile, cashews, aiocache = peers()
    cache = QueryCache(url, metrics=False, memory_bytes=0)
    region = dogpile.make_region().configure("dogpile.cache.redis", arguments={"url": url})
    other = cashews.Cache()
    other.setup(url, client_side=False)
    client, aclient = redis.Redis.from_url(url), redis.asyncio.Redis.from_url(url)
    client.set("bare", Codec(list[Product], name="bare").encode(PRODUCTS))

    @cache.query(ttl=600, tags=["products"], name="sync")
    def own(page: int) -> list[Product]:
        return PRODUCTS

    @cache.query(ttl=600, tags=["products"], name="async")
    async def own_async(page: int) -> list[Product]:
        return PRODUCTS

    @region.cache_on_arguments(expiration_time=600)
    def of_dogpile(page: int) -> Any:
        return PRODUCTS

    @other(ttl=600, key="products:{page}")
    async def of_cashews(page: int) -> Any:
        return PRODUCTS

    address = client.connection_pool.connection_kwargs
    serializer = aiocache.serializers.PickleSerializer()

    @aiocache.cached(
        ttl=600, cache=aiocache.Cache.REDIS, endpoint=address["host"], port=address["port"],
        password=address.get("password"), serializer=serializer,
    )  # fmt: skip
    async def of_aiocache(page: int) -> Any:
        return PRODUCTS

    return [
        Contender("client.get", lambda _: client.get("bare")),
        Contender("tenfold", own),
        Contender("dogpile.cache", of_dogpile),
        Contender("client.get async", lambda _: aclient.get("bare"), is_async=True),
        Contender("tenfold async", own_async, is_async=True),
        Contender("cashews", of_cashews, is_async=True),
        Contender("aiocache", of_aiocache, is_async=True),
    ]


# ------------------------------------------------------------------ time


async def measure(contenders: list[Contender], *, rounds: int, calls: int) -> dict[str, list[float]]:
    """Microseconds a call, for each round of each contender."""
    times: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for contender in contenders:
        await run(contender, 50)
    for contender in turns(contenders, rounds):
        started = time.perf_counter()
        await run(contender, calls)
        times[contender.name].append((time.perf_counter() - started) / calls * 1e6)
    return times


async def run(contender: Contender, calls: int) -> None:
    call = contender.call
    if contender.is_async:
        for _ in range(calls):
            await call(1)
    else:
        for _ in range(calls):
            call(1)


def memory_results(times: dict[str, list[float]]) -> Iterator[Result]:
    for name, values in times.items():
        yield median_result(f"memory hit: {name}, µs", values)
    yield ratio_result(
        "memory hit: tenfold / decode alone", times["tenfold"], times["decode alone"], goal=1.2
    )
    fastest = min(("dogpile.cache", "cashews", "aiocache"), key=lambda name: sorted(times[name])[0])
    yield ratio_result(
        "memory hit: tenfold frozen / fastest peer",
        times["tenfold frozen"],
        times[fastest],
        goal=1.0,
        note=fastest,
    )


def redis_results(times: dict[str, list[float]]) -> Iterator[Result]:
    for name, values in times.items():
        yield median_result(f"Redis hit: {name}, µs", values)
    bare, abare = times["client.get"], times["client.get async"]
    yield ratio_result("Redis hit: tenfold / client.get", times["tenfold"], bare, goal=1.3)
    yield ratio_result("Redis hit: dogpile.cache / client.get", times["dogpile.cache"], bare)
    yield ratio_result("Redis hit async: tenfold / client.get", times["tenfold async"], abare, goal=1.3)
    yield ratio_result("Redis hit async: cashews / client.get", times["cashews"], abare)
    yield ratio_result("Redis hit async: aiocache / client.get", times["aiocache"], abare)


# ------------------------------------------------------------------ stampede


class Loads:
    """Counts the loads of one function."""

    def __init__(self) -> None:
        self.count = 0

    def load(self, page: int) -> list[dict[str, Any]]:
        self.count += 1
        time.sleep(LOAD_S)
        return FIELDS

    async def load_async(self, page: int) -> list[dict[str, Any]]:
        self.count += 1
        await asyncio.sleep(LOAD_S)
        return FIELDS


def in_threads(call: Callable[[int], Any]) -> None:
    threads = [threading.Thread(target=call, args=(7,)) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


async def at_once(call: Callable[[int], Awaitable[Any]]) -> None:
    await asyncio.gather(*(call(7) for _ in range(CALLERS)))


async def stampedes(url: str) -> Iterator[Result]:
    dogpile, cashews, aiocache = peers()
    counts = {name: Loads() for name in ("tenfold", "tenfold async", "dogpile.cache", "cashews", "aiocache")}
    cache = QueryCache(url, metrics=False)

    def own(page: int) -> list[dict[str, Any]]:
        return counts["tenfold"].load(page)

    async def own_async(page: int) -> list[dict[str, Any]]:
        return await counts["tenfold async"].load_async(page)

    region = dogpile.make_region().configure(
        "dogpile.cache.redis", arguments={"url": url, "distributed_lock": True, "thread_local_lock": False}
    )
    other = cashews.Cache()
    other.setup(url, client_side=False)
    in_threads(cache.query(ttl=60, tags=["stampede"], name="stampede")(own))
    await at_once(cache.query(ttl=60, tags=["stampede"], name="stampede async")(own_async))

    def of_dogpile(page: int) -> list[dict[str, Any]]:  # a function: it takes no methods
        return counts["dogpile.cache"].load(page)

    in_threads(region.cache_on_arguments()(of_dogpile))
    locked = other(ttl=60, key="stampede:{page}", lock=True)(counts["cashews"].load_async)
    await at_once(locked)
    await at_once(aiocache.cached_stampede(lease=2, ttl=60)(counts["aiocache"].load_async))
    await cache.aclose()
    fewest = min(counts[name].count for name in ("dogpile.cache", "cashews", "aiocache"))
    return iter(
        [Result(f"loads for all callers: {name}", loads.count) for name, loads in counts.items()]
        + [
            Result(
                "most loads: tenfold",
                max(counts["tenfold"].count, counts["tenfold async"].count),
                goal=1,
            ),
            Result("most loads: best peer", fewest),
        ]
    )


async def results(url: str, *, rounds: int, calls: int) -> list[Result]:
    found = list(memory_results(await measure(memory_contenders(), rounds=rounds, calls=10 * calls)))
    found += redis_results(await measure(redis_contenders(url), rounds=rounds, calls=calls))
    found += await stampedes(url)
    return found


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument(
        "--calls", type=int, default=200, help="from Redis, a round; ten times as many from memory"
    )
    options = parser.parse_args()
    with redis_url() as url:
        found = asyncio.run(results(url, rounds=options.rounds, calls=options.calls))
    print_results(found, as_json=options.json)


if __name__ == "__main__":
    main()
