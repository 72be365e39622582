"""The query cache: in each instance's memory, and in the Redis that all of them share."""

from __future__ import annotations

import os

from shop.scaled.database import router
from tenfold.caching import QueryCache

cache = QueryCache(os.environ["REDIS_URL"], fence=router.fence, prefix="shop:cache:")
