"""Tools that tenfold can use: purpose, location, version, and the way to install each."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

Group = Literal["server", "library", "load", "containers", "prometheus", "database"]

_VERSION = re.compile(r"\d+(?:\.\d+)+")
_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Tool:
    """A program on PATH, or a Python distribution when ``group`` is ``library``."""

    name: str
    group: Group
    purpose: str
    remedy: str  # how to install it
    version_option: str = "--version"  # empty when the program has none


@dataclass(frozen=True, slots=True)
class ToolStatus:
    """The result of looking for a tool, with path and version if it was found."""

    tool: Tool
    found: bool
    required: bool = False
    version: str = ""
    source: str = ""
    path: str = ""


_COMPARED = "a load tool to compare with"
TOOLS = (
    Tool("granian", "library", "serves the app", "pip install 'tenfold[stack]'"),
    Tool("locust", "library", "runs scenarios", "pip install 'tenfold[measure]'"),
    Tool("psutil", "library", "CPU and memory of processes", "pip install 'tenfold[measure]'"),
    Tool("prometheus-client", "library", "metrics", "pip install 'tenfold[measure]'"),
    Tool("SQLAlchemy", "library", "replicas, pools", "pip install 'tenfold[database]'"),
    Tool("redis", "library", "sessions, rate limits", "pip install 'tenfold[redis]'"),
    Tool("celery", "library", "background tasks", "pip install 'tenfold[tasks]'"),
    Tool("ab", "load", _COMPARED, "apt-get install apache2-utils", "-V"),
    Tool("wrk", "load", _COMPARED, "apt-get install wrk, or brew install wrk", "-v"),
    Tool("hey", "load", _COMPARED, "apt-get install hey, or brew install hey", ""),
    Tool("docker", "containers", "images, compose files", "apt-get install docker.io, or docker.com"),
    Tool("podman", "containers", "images", "apt-get install podman, or brew install podman"),
    Tool(
        "kubectl", "containers", "checks manifests", "see kubernetes.io/docs/tasks/tools", "version --client"
    ),
    Tool(
        "prometheus", "prometheus", "stores metrics", "apt-get install prometheus, or brew install prometheus"
    ),
    Tool(
        "promtool",
        "prometheus",
        "tests alert rules",
        "apt-get install prometheus, or brew install prometheus",
    ),
    Tool(
        "pgbouncer", "database", "pools connections", "apt-get install pgbouncer, or brew install pgbouncer"
    ),
)


def find_tools(tools: Sequence[Tool]) -> list[ToolStatus]:
    """Look for programs on PATH and for libraries in this environment, in parallel."""
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(_find_tool, tools))


def _find_tool(tool: Tool) -> ToolStatus:
    if tool.group == "library":
        try:
            return ToolStatus(tool, True, version=version(tool.name), source="Python package")
        except PackageNotFoundError:
            return ToolStatus(tool, False)
    path = shutil.which(tool.name)
    if path is None:
        return ToolStatus(tool, False)
    return ToolStatus(tool, True, version=_version(path, tool.version_option), source="PATH", path=path)


def _version(path: str, option: str) -> str:
    """Ask the program for its version; wrk prints it on stdout and exits with 1."""
    if not option:
        return ""
    try:
        done = subprocess.run(  # noqa: S603 - a list, and no shell
            [path, *option.split()],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
            cwd=tempfile.gettempdir(),
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    found = _VERSION.search(done.stdout) or _VERSION.search(done.stderr)
    return found[0] if found else ""
