"""Every check, one line each, in the order of the patterns."""

from __future__ import annotations

from tenfold.verify.autoscaling import follows
from tenfold.verify.balancing import faults, goodput, load_spread, shares
from tenfold.verify.caching import cached_reads
from tenfold.verify.database import outages, pool_pressure, staleness
from tenfold.verify.edge import attack, hits
from tenfold.verify.measure import baseline
from tenfold.verify.monitoring import counters
from tenfold.verify.runner import Check
from tenfold.verify.sessions import attacks, concurrency, instances, leaks
from tenfold.verify.sharding import shards
from tenfold.verify.tasks import background

_APP = frozenset({"app"})
_INSTANCES = frozenset({"app", "instances"})
_NGINX = frozenset({"app", "nginx", "instances"})
_REDIS = frozenset({"app", "redis"})
_DATABASE = frozenset({"app", "database"})
_REPLICAS = frozenset({"app", "database", "replicas"})
_SHARDS = frozenset({"app", "shards"})
_LOGIN = ("login", "whoami")
_TWO_USERS = ("login", "other_user", "write")
_TASK = ("task", "task_status")

CHECKS: tuple[Check, ...] = (
    Check(baseline.BASELINE, "measure", baseline.check_baseline),
    Check(baseline.PERCENTILES, "measure", baseline.check_percentiles),
    Check(baseline.SLOW_QUERIES, "measure", baseline.check_slow_queries, _DATABASE),
    # ------------------------------------------------------------------ sessions
    Check(attacks.FIXATION, "sessions", attacks.check_fixation, _APP, _LOGIN),
    Check(attacks.GUESSING, "sessions", attacks.check_guessing, _APP, _LOGIN),
    Check(attacks.REPLAY, "sessions", attacks.check_replay, _APP, (*_LOGIN, "logout")),
    Check(concurrency.RESURRECTION, "sessions", concurrency.check_resurrection, _APP, (*_LOGIN, "logout")),
    Check(
        concurrency.LOST_UPDATE,
        "sessions",
        concurrency.check_lost_update,
        _APP,
        (*_LOGIN, "session_write", "session_read"),
    ),
    Check(
        attacks.OVERSIZE,
        "sessions",
        attacks.check_oversize,
        _APP,
        (*_LOGIN, "session_write", "session_read"),
    ),
    Check(leaks.ATTRIBUTES, "sessions", leaks.check_cookie_attributes, _APP, _LOGIN),
    Check(leaks.HIDDEN, "sessions", leaks.check_leaks, _APP, _LOGIN),
    Check(instances.AFFINITY, "sessions", instances.check_affinity, _INSTANCES, _LOGIN),
    Check(instances.SURVIVAL, "sessions", instances.check_kill, _NGINX, _LOGIN, timeout_s=180),
    Check(instances.LOCAL_FILES, "sessions", instances.check_local_files, _APP),  # login or a scenario
    # ------------------------------------------------------------------ balancing
    Check(load_spread.SPREAD, "balancing", load_spread.check_load_spread, _NGINX),
    Check(shares.SLOW, "balancing", shares.check_slow_instance, _NGINX),
    Check(shares.BACKUP, "balancing", shares.check_backups, _NGINX, timeout_s=120),
    Check(faults.KILLED, "balancing", faults.check_kill, _NGINX, timeout_s=180),
    Check(faults.REPEATED, "balancing", faults.check_repeated_writes, _NGINX, ("write",), timeout_s=180),
    Check(faults.REPLACED, "balancing", faults.check_replacement, _NGINX, timeout_s=240),
    Check(goodput.GOODPUT, "balancing", goodput.check_goodput, _APP, timeout_s=120),
    # ------------------------------------------------------------------ autoscaling
    Check(follows.FOLLOWS, "autoscaling", follows.check_scaling, frozenset({"app", "nginx"}), timeout_s=180),
    # ------------------------------------------------------------------ database
    Check(staleness.REACH, "database", staleness.check_replica_share, _REPLICAS, ("read",), timeout_s=120),
    Check(staleness.OWN, "database", staleness.check_own_writes, _REPLICAS, ("write", "read"), timeout_s=120),
    Check(
        staleness.BACK,
        "database",
        staleness.check_monotonic_reads,
        _REPLICAS,
        ("write", "read"),
        timeout_s=120,
    ),
    Check(outages.OUTAGE, "database", outages.check_replica_loss, _REPLICAS, ("read",), timeout_s=180),
    Check(
        outages.SURVIVES, "database", outages.check_primary_kill, _DATABASE, ("write", "read"), timeout_s=120
    ),
    Check(
        pool_pressure.BUDGET, "database", pool_pressure.check_pool_budget, _DATABASE, ("read",), timeout_s=120
    ),
    Check(
        pool_pressure.RETURNED,
        "database",
        pool_pressure.check_returned_connections,
        _DATABASE,
        ("read",),
        timeout_s=120,
    ),
    # ------------------------------------------------------------------ sharding
    Check(shards.PLACED, "sharding", shards.check_placement, _SHARDS),
    Check(shards.SPREAD, "sharding", shards.check_spread, _SHARDS),
    Check(shards.ALONE, "sharding", shards.check_shard_loss, _SHARDS, _TWO_USERS, timeout_s=180),
    Check(shards.STALE, "sharding", shards.check_older_directory, _SHARDS, _TWO_USERS, timeout_s=120),
    # ------------------------------------------------------------------ caching
    Check(
        cached_reads.SPARED,
        "caching",
        cached_reads.check_database_hang,
        _DATABASE,
        ("cached",),
    ),
    Check(cached_reads.OUTAGE, "caching", cached_reads.check_redis_outage, _REDIS, ("cached",)),
    Check(
        cached_reads.FOREIGN,
        "caching",
        cached_reads.check_foreign_answers,
        _APP,
        (*_LOGIN, "other_user"),
        timeout_s=180,
    ),
    # ------------------------------------------------------------------ edge
    Check(hits.HITS, "edge", hits.check_hit_ratio, frozenset({"app", "nginx"}), ("pages",)),
    Check(attack.ATTACKED, "edge", attack.check_attacks, _APP, ("pages",), timeout_s=120),
    # ------------------------------------------------------------------ tasks
    Check(background.LOST, "tasks", background.check_lost_tasks, _APP, _TASK, timeout_s=330),
    Check(
        background.QUICK,
        "tasks",
        background.check_quick_requests,
        _APP,
        (*_TASK, "read"),
        timeout_s=240,
    ),
    Check(background.PROMPT, "tasks", background.check_prompt_requests, _APP, _TASK, timeout_s=90),
    Check(background.KEPT_UP, "tasks", background.check_backlog, _APP, _TASK, timeout_s=120),
    Check(
        background.WATCHED,
        "tasks",
        background.check_watched_queue,
        frozenset({"app", "workers"}),
        (*_TASK, "metrics"),
        timeout_s=120,
    ),
    # ------------------------------------------------------------------ monitoring
    Check(counters.COUNTED, "monitoring", counters.check_counts, frozenset({"app", "nginx"}), ("metrics",)),
    Check(counters.CHEAP, "monitoring", counters.check_cost, _APP, ("metrics",)),
)
