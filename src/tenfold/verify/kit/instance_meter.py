"""What a stack's app instances use: CPU by the processes of each, requests by nginx's log."""

from __future__ import annotations

import socket
import time
from collections import deque
from urllib.parse import urlsplit

import psutil

from tenfold.autoscaling.live import Observed
from tenfold.autoscaling.proposals import Pod, Sample
from tenfold.types import Stack
from tenfold.verify.kit.access_log import AccessLog

_KEPT_S = 120.0


class InstanceMeter:
    """Call it with the wanted number of instances: it observes them, over the last ``window_s`` seconds.

    Args:
        cpu_request: milli-cores that utilizations are a share of.
    """

    def __init__(self, stack: Stack, *, cpu_request: int, window_s: float = 30.0) -> None:
        if stack.access_log is None:
            raise ValueError("the stack has no nginx")
        self._stack, self._request, self._window_s = stack, cpu_request, window_s
        self._log = AccessLog(stack.access_log)
        self._began = time.monotonic()
        self._requests: deque[tuple[float, str]] = deque()
        self._cpu: dict[str, deque[tuple[float, float]]] = {}
        self._started: dict[str, float] = {}
        self._ready: dict[str, tuple[bool, float]] = {}

    def __call__(self, replicas: int) -> Observed:
        """What is seen now."""
        now = time.monotonic()
        instances = [server for server in self._stack.servers if server.kind == "app"]
        for entry in self._log.read_new():
            if entry.upstreams:
                self._requests.append((now, entry.upstreams[-1]))
        while self._requests and self._requests[0][0] < now - self._window_s:
            self._requests.popleft()
        pods, cpu, requests = [], {}, {}
        for server in instances:
            name, pids = server.name, server.pids()
            started = self._started.setdefault(name, now) if pids else None
            is_ready = bool(pids) and _accepts(server.url)
            was_ready, changed = self._ready.get(name, (not is_ready, now))
            if was_ready != is_ready:
                changed = now
            self._ready[name] = is_ready, changed
            pods.append(
                Pod(
                    name=name,
                    phase="Running" if pids else "Pending",
                    is_ready=is_ready,
                    ready_changed=changed,
                    started=started,
                    request=self._request,
                )
            )
            if not is_ready:
                continue
            used = self._cpu.setdefault(name, deque())
            used.append((now, _cpu_seconds(pids)))
            while len(used) > 2 and used[1][0] <= now - self._window_s:
                used.popleft()
            if len(used) > 1 and now > used[0][0]:
                cores = max(used[-1][1] - used[0][1], 0.0) / (now - used[0][0])
                cpu[name] = Sample(int(cores * 1000), now, 0.0)
            span = min(self._window_s, max(now - self._began, 1e-9))
            address = urlsplit(server.url).netloc
            count = sum(used_by == address for _, used_by in self._requests)
            requests[name] = Sample(int(count / span * 1000), now, 0.0)
        return Observed(now, replicas, tuple(pods), cpu, requests)


def _accepts(url: str) -> bool:
    """Whether an instance takes connections: granian does when the app has started."""
    parts = urlsplit(url)
    try:
        socket.create_connection((parts.hostname or "", parts.port or 80), timeout=1).close()
    except OSError:
        return False
    return True


def _cpu_seconds(pids: tuple[int, ...]) -> float:
    total = 0.0
    for pid in pids:
        try:
            times = psutil.Process(pid).cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system
    return float(total)
