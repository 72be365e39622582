"""The service: `granian --interface asgi shop.sharded.app:app`. The catalogue, and orders on shards."""

from __future__ import annotations

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse

from shop.scaled import products, sessions
from shop.scaled.database import router as catalogue
from shop.sharded import orders
from shop.sharded.database import shards
from tenfold.balancing.health import Health, HealthMiddleware
from tenfold.database import ConsistencyMiddleware, PoolMiddleware
from tenfold.deadlines import DeadlineMiddleware
from tenfold.errors import PageTokenError, ShardingError
from tenfold.metrics import MetricsEndpoint, MetricsMiddleware
from tenfold.sessions import BearerTransport, SessionMiddleware

app = FastAPI(title="Shop, sharded")
browse = APIRouter(prefix="/api/products")
browse.get("")(products.list_products)
browse.get("/{product_id}")(products.show_product)
app.include_router(sessions.router)
app.include_router(browse)
app.include_router(orders.router)


@app.exception_handler(ShardingError)
def refuse(_: Request, error: ShardingError) -> JSONResponse:
    """A shard is down, or the directory is: other users are not affected."""
    return JSONResponse({"detail": str(error)}, 503, headers={"Retry-After": "1"})


@app.exception_handler(PageTokenError)
def refuse_token(_: Request, error: PageTokenError) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, 422)


# The first one added is the innermost; docs/middlewares.md has the order and the reasons.
app.add_middleware(PoolMiddleware)
app.add_middleware(SessionMiddleware, sessions=sessions.sessions, transport=BearerTransport())
app.add_middleware(ConsistencyMiddleware, router=catalogue)
app.add_middleware(ConsistencyMiddleware, router=shards, cookie="tenfold_shards")
app.add_middleware(DeadlineMiddleware, timeout_s=10)
app.add_middleware(MetricsMiddleware)
app.add_middleware(MetricsEndpoint)
app.add_middleware(HealthMiddleware, health=Health())
