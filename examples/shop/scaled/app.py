"""The service: `granian --interface asgi shop.scaled.app:app`."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles
from sqlalchemy import text

from shop.scaled import orders, products, reports, sessions, users
from shop.scaled.database import router as database
from shop.scaled.tasks import celery
from tenfold.balancing.health import Health, HealthMiddleware
from tenfold.database import ConsistencyMiddleware, PoolMiddleware
from tenfold.deadlines import DeadlineMiddleware
from tenfold.edge import EdgeMiddleware, load_policy
from tenfold.metrics import MetricsEndpoint, MetricsMiddleware
from tenfold.overload import ConcurrencyLimiter
from tenfold.sessions import BearerTransport, SessionMiddleware
from tenfold.tasks.prometheus import TaskCollector


def primary() -> None:
    with database.write() as session:
        session.execute(text("SELECT 1"))


EXAMPLES = Path(__file__).parents[2]

app = FastAPI(title="Shop")
app.include_router(sessions.router)
app.include_router(products.router)
app.include_router(orders.router)
app.include_router(users.router)
app.include_router(reports.router)
app.mount("/static", StaticFiles(directory=EXAMPLES / "shop" / "static"))

# The first one added is the innermost; docs/middlewares.md has the order and the reasons.
app.add_middleware(PoolMiddleware)
app.add_middleware(SessionMiddleware, sessions=sessions.sessions, transport=BearerTransport())
app.add_middleware(ConsistencyMiddleware, router=database)
app.add_middleware(EdgeMiddleware, policy=load_policy(EXAMPLES / "scaled.toml"), behind_edge=True)
app.add_middleware(
    ConcurrencyLimiter, priority={"/api/orders": "critical", "/login": "critical", "/reports": "sheddable"}
)
app.add_middleware(DeadlineMiddleware, timeout_s=10)
app.add_middleware(MetricsMiddleware)
app.add_middleware(MetricsEndpoint, collectors=[TaskCollector(celery)])
app.add_middleware(HealthMiddleware, health=Health({"primary": primary}))
