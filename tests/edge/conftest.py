from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tenfold.settings import Settings
from tenfold.stack.programs import Program, find_nginx


@pytest.fixture(scope="session")
def nginx(requires_server: Callable[[Any, str], Any]) -> Program:
    return requires_server(find_nginx(Settings()), "nginx")
