"""Every exported name, pinned."""

from __future__ import annotations

import pkgutil
from importlib import import_module

import pytest

import tenfold

# A package that is not listed exports nothing.
PACKAGES: dict[str, list[str]] = {
    "tenfold.caching": ["InvalidationLog", "QueryCache"],
    "tenfold.cli": ["main"],
    "tenfold.database": [
        "ConsistencyMiddleware",
        "DatabaseRouter",
        "FreshnessLimits",
        "HealthLimits",
        "PoolMiddleware",
        "pool_options",
    ],
    "tenfold.edge": [
        "EdgeMiddleware",
        "EdgePolicy",
        "Purger",
        "Rule",
        "immutable",
        "load_policy",
        "no_store",
        "precondition",
        "private",
        "public",
    ],
    "tenfold.hashing": [
        "BoundedLoads",
        "HashRing",
        "Jump",
        "Key",
        "Placement",
        "Preview",
        "Rendezvous",
        "RingState",
        "disagreement",
        "jump",
    ],
    "tenfold.measure": ["BottleneckDetector", "Probe", "profile_function"],
    "tenfold.overload": [
        "AIMDLimit",
        "ConcurrencyLimiter",
        "FixedLimit",
        "GradientLimit",
        "MemoryRates",
        "Rate",
        "RateLimiter",
        "RedisRates",
    ],
    "tenfold.sharding": [
        "DirectoryStore",
        "Page",
        "Sharded",
        "ShardedDatabase",
        "decode_id",
        "make_uuid",
        "next_id",
        "parse_shard_urls",
        "shard_table",
    ],
    "tenfold.sessions": [
        "BearerTransport",
        "CookieSessions",
        "CookieTransport",
        "MemoryStore",
        "RedisStore",
        "SQLStore",
        "ServerSessions",
        "Session",
        "SessionMiddleware",
        "current",
    ],
    "tenfold.settings": ["FILE_NAME", "PLACEHOLDERS", "ServiceSettings", "Settings", "StackSettings", "load"],
    "tenfold.stack": ["Stack"],
    "tenfold.tasks": ["Outbox", "QueueSettings", "Schedule", "TaskSettings", "create_celery", "once"],
    "tenfold.verify": ["CHECKS", "Check", "Outcome", "run", "select"],
}
MODULES: dict[str, list[str]] = {
    "tenfold.commits": ["after_commit", "find_action", "sync_session"],
    "tenfold.process_thread": ["ProcessThread"],
    "tenfold.reads": ["PERSONAL", "ReadLog"],
    "tenfold.balancing.health": ["Health", "HealthMiddleware"],
    "tenfold.asgi": [
        "ASGIApp",
        "Header",
        "Message",
        "Receive",
        "Scope",
        "Send",
        "ends_answer",
        "is_below",
        "longest_prefix",
        "mount_path",
        "path_in_app",
        "plain_answer",
        "prefix_matcher",
        "route_template",
        "send_answer",
    ],
    "tenfold.breaker": ["Breaker"],
    "tenfold.overload.gcra": ["Decision", "MemoryRates", "Rate", "RateStore", "decide"],
    "tenfold.overload.httpx": ["propagate_deadline", "propagate_deadline_async"],
    "tenfold.overload.limits": ["AIMDLimit", "FixedLimit", "GradientLimit", "Limit"],
    "tenfold.database.pools.statement_timeout": ["enforce_deadlines"],
    "tenfold.deadlines": [
        "DeadlineMiddleware",
        "RetryBudget",
        "budget_s",
        "check_deadline",
        "deadline",
        "remaining_s",
    ],
    "tenfold.redis_pool": ["RedisClient", "RedisLoopError", "RedisPool"],
    "tenfold.sessions.stores.store": ["Store", "StoredPayload"],
    "tenfold.signing": ["Sealer", "Signer", "generate_key"],
    "tenfold.database.pytest": ["StaleReadGuard", "replica_admin_urls", "stale_read_guard"],
    "tenfold.positions": [
        "SEGMENT_BYTES",
        "Token",
        "format_position",
        "merge_tokens",
        "normalize_position",
        "parse_position",
        "renew_token",
    ],
    "tenfold.metrics": [
        "METRICS",
        "REQUEST_SECONDS",
        "Metric",
        "MetricsEndpoint",
        "MetricsMiddleware",
        "exposition",
        "instrument",
    ],
}


def packages() -> list[str]:
    found = pkgutil.walk_packages(tenfold.__path__, "tenfold.")
    return [module.name for module in found if module.ispkg]


@pytest.mark.parametrize("name", packages())
def test_package_exports(name: str) -> None:
    assert sorted(getattr(import_module(name), "__all__", [])) == sorted(PACKAGES.get(name, []))


@pytest.mark.parametrize(("name", "exports"), MODULES.items())
def test_module_exports(name: str, exports: list[str]) -> None:
    assert sorted(import_module(name).__all__) == sorted(exports)


@pytest.mark.parametrize("name", [*PACKAGES, *MODULES])
def test_exported_names_exist(name: str) -> None:
    module = import_module(name)
    assert all(hasattr(module, export) for export in module.__all__)


def test_top_level_package_exports_its_version_only() -> None:
    assert [name for name in vars(tenfold) if not name.startswith("_") and name not in _submodules()] == []
    assert tenfold.__version__


def _submodules() -> set[str]:
    return {module.name for module in pkgutil.iter_modules(tenfold.__path__)}
