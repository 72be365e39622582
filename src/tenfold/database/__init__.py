"""Primary and replicas: writes to the one, reads to those that have seen what their reader has seen."""

from tenfold.database.freshness import FreshnessLimits
from tenfold.database.health import HealthLimits
from tenfold.database.middleware import ConsistencyMiddleware
from tenfold.database.router import DatabaseRouter

__all__ = ["ConsistencyMiddleware", "DatabaseRouter", "FreshnessLimits", "HealthLimits"]
