"""Admission control: which requests run now, wait, or are shed. Pure: the clock is passed in.

:class:`AdmissionController` lets as many requests run as its limit allows and keeps the others in a
:class:`FairQueue`, with one line for each priority and tenant. Among those of the highest waiting priority,
the tenant with the fewest requests in flight is next, so that a tenant that sends ten times as many requests
gets no more than the others while they want something. A line is served in order while the service keeps up,
and newest first once it does not: then the oldest have waited too long to be worth an answer (adaptive LIFO,
and the shorter wait below after CoDel: Maurer, "Fail at Scale", ACM Queue 13(8), 2015).

Only tenants with requests waiting or in flight are kept, so that made-up tenant names cannot fill the memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from tenfold.overload.limits import Limit

__all__ = ["PRIORITIES", "AdmissionController", "FairQueue", "Priority", "QueuedRequest"]


Priority = Literal["critical", "normal", "sheddable"]
PRIORITIES: tuple[Priority, ...] = ("critical", "normal", "sheddable")
State = Literal["new", "waiting", "admitted", "shed", "done"]
Reason = Literal["", "full", "waited", "displaced", "deadline"]


@dataclass(slots=True, eq=False)
class QueuedRequest:
    """One request: waiting, admitted, or shed and why. Times are seconds of one clock."""

    priority: Priority = "normal"
    tenant: str = ""
    deadline_s: float = float("inf")  # useless after this moment
    wake: Callable[[], None] = field(default=lambda: None)  # called once when the wait is over
    state: State = "new"
    reason: Reason = ""
    arrived_s: float = 0.0
    started_s: float = 0.0

    def resolve(self, state: State, reason: Reason = "") -> None:
        """End the wait with this outcome."""
        self.state, self.reason = state, reason
        self.wake()


class FairQueue:
    """At most ``size`` requests, each for ``max_wait_s`` at most, or ``busy_wait_s`` under lasting overload.

    Critical requests may always wait ``max_wait_s``. The overload lasts when for ``max_wait_s`` there was
    always one that had waited for longer than ``busy_wait_s``, or one was shed: a queue that is never empty
    but short is what a few clients make who send their next request at once.
    """

    def __init__(self, *, size: int, max_wait_s: float, busy_wait_s: float) -> None:
        self.size, self.max_wait_s, self.busy_wait_s = size, max_wait_s, busy_wait_s
        self._lines: dict[Priority, dict[str, deque[QueuedRequest]]] = {name: {} for name in PRIORITIES}
        self._waiting = 0
        self._kept_up_s = float("-inf")  # when the queue was last empty or short
        self._shed_s = float("-inf")
        self._paused_s: float | None = None  # since when the limit is low to measure something

    def __len__(self) -> int:
        return self._waiting

    def mark_empty(self, now_s: float) -> None:
        """Note that at this moment every request has been served."""
        self._kept_up_s = now_s

    def pause(self, now_s: float) -> None:
        """Let the time until :meth:`resume` not count as overload: the limit is low to measure something."""
        if self._paused_s is None:
            self._paused_s = now_s

    def resume(self, now_s: float) -> None:
        """Let time count again."""
        if self._paused_s is not None:
            self._kept_up_s += now_s - max(self._paused_s, self._kept_up_s)
            self._paused_s = None

    def is_busy(self, now_s: float) -> bool:
        """Return whether the overload lasts for longer than a burst explains (``max_wait_s``)."""
        until_s = now_s if self._paused_s is None else self._paused_s
        return self._waiting > 0 and until_s - self._kept_up_s > self.max_wait_s

    def _note_whether_short(self, now_s: float) -> None:
        if self._paused_s is None and self._is_short(now_s):
            self._kept_up_s = now_s

    def _is_short(self, now_s: float) -> bool:
        if now_s - self._shed_s <= self.max_wait_s:
            return False
        oldest_s = now_s - self.busy_wait_s
        return all(line[0].arrived_s >= oldest_s for lines in self._lines.values() for line in lines.values())

    def push(self, request: QueuedRequest, now_s: float) -> bool:
        """Let the request wait; False when the queue is full and it may displace no other."""
        self.expire(now_s)
        if self._waiting >= self.size:
            self._shed_s = now_s
            if not self._displace(request):
                return False
        request.state = "waiting"
        self._lines[request.priority].setdefault(request.tenant, deque()).append(request)
        self._waiting += 1
        return True

    def _displace(self, newcomer: QueuedRequest) -> bool:
        """Shed the oldest request of the longest line that ranks below the newcomer.

        That is a line of a lower priority, or of the same and longer than the newcomer's own would be.
        """
        for priority in reversed(PRIORITIES):
            lines = self._lines[priority]
            same = priority == newcomer.priority
            if lines:
                longest = max(lines.values(), key=len)
                if not same or len(longest) > len(lines.get(newcomer.tenant, ())) + 1:
                    self.discard(victim := longest[0])
                    victim.resolve("shed", "displaced")
                    return True
            if same:
                return False
        return False

    def discard(self, request: QueuedRequest) -> None:
        """Remove a waiting request without waking it."""
        lines = self._lines[request.priority]
        line = lines[request.tenant]
        if line[0] is request:
            line.popleft()
        else:
            line.remove(request)
        self._waiting -= 1
        if not line:
            del lines[request.tenant]

    def expire(self, now_s: float) -> None:
        """Shed every request that has waited too long."""
        self._note_whether_short(now_s)
        for request in list(self._expired(now_s)):
            self.discard(request)
            self._shed_s = now_s
            request.resolve("shed", "deadline" if now_s > request.deadline_s else "waited")

    def _expired(self, now_s: float) -> Iterator[QueuedRequest]:
        if not self._waiting:
            return
        short_s = self.busy_wait_s if self.is_busy(now_s) else self.max_wait_s
        for priority, lines in self._lines.items():
            oldest_s = now_s - (self.max_wait_s if priority == "critical" else short_s)
            for line in lines.values():
                for request in line:
                    if request.arrived_s > oldest_s:
                        break
                    yield request

    def pop(self, now_s: float, in_flight: dict[str, int]) -> QueuedRequest | None:
        """Remove and return the request to serve next; None when none waits.

        Args:
            now_s: the time; requests past their wait or deadline are shed on the way.
            in_flight: admitted requests of each tenant.
        """
        self._note_whether_short(now_s)
        newest_first = self.is_busy(now_s)
        self.expire(now_s)
        for lines in self._lines.values():
            while lines:
                # Python's dicts keep the order in which tenants came, so equals take turns.
                tenant = min(lines, key=lambda name: in_flight.get(name, 0))
                line = lines.pop(tenant)
                request = line.pop() if newest_first else line.popleft()
                if line:
                    lines[tenant] = line
                self._waiting -= 1
                if now_s <= request.deadline_s:
                    if not self._waiting:
                        self.mark_empty(now_s)
                    return request
                request.resolve("shed", "deadline")
        return None


class AdmissionController:
    """Admits, queues, or sheds. Every admitted request has to be given to :meth:`release` exactly once.

    The simulation in the tests and the middleware run this same code.
    """

    def __init__(self, limit: Limit, queue: FairQueue) -> None:
        self.limit, self.queue = limit, queue
        self.in_flight = 0
        self._tenants: dict[str, int] = {}

    def submit(self, request: QueuedRequest, now_s: float) -> None:
        """Decide about a new request: its ``state`` is admitted, waiting or shed afterwards."""
        request.arrived_s = now_s
        if self.in_flight < self.limit.limit and not len(self.queue):
            self.queue.mark_empty(now_s)
            self.admit(request, now_s)
        elif self.queue.push(request, now_s):
            self._fill(now_s)  # the limit may have grown since the last release
        else:
            request.state, request.reason = "shed", "full"

    def admit(self, request: QueuedRequest, now_s: float) -> None:
        """Let it run now, whatever the limit is."""
        self.in_flight += 1
        self._tenants[request.tenant] = self._tenants.get(request.tenant, 0) + 1
        request.started_s = now_s
        request.resolve("admitted")

    def release(
        self,
        request: QueuedRequest,
        now_s: float,
        *,
        ended_s: float,
        kind: Hashable = None,
        dropped: bool = False,
    ) -> None:
        """Take back the slot of an admitted request that is done, and give it to the next one.

        Args:
            request: the request.
            now_s: the time.
            ended_s: when it was answered; its background work after that is no part of the latency.
            kind: requests of one kind cost about the same; see :meth:`Limit.record`.
            dropped: it failed because something below is overloaded too.
        """
        in_flight = self.in_flight
        self._remove(request)
        self.limit.record(request.started_s, ended_s, in_flight=in_flight, kind=kind, dropped=dropped)
        if getattr(self.limit, "is_probing", False):
            self.queue.pause(now_s)
        else:
            self.queue.resume(now_s)
        self._fill(now_s)

    def cancel(self, request: QueuedRequest, now_s: float) -> None:
        """Withdraw a request that has not run; its slot, if it had one, goes to the next one."""
        if request.state == "waiting":
            request.state = "done"
            self.queue.discard(request)
        elif request.state == "admitted":
            self._remove(request)
            self._fill(now_s)

    def expire(self, now_s: float) -> None:
        """Shed requests that have waited too long; call it while some wait and none arrives or ends."""
        self.queue.expire(now_s)
        self._fill(now_s)

    def _fill(self, now_s: float) -> None:
        while self.in_flight < self.limit.limit and len(self.queue):
            request = self.queue.pop(now_s, self._tenants)
            if request is None:
                return
            self.admit(request, now_s)

    def _remove(self, request: QueuedRequest) -> None:
        request.state = "done"
        self.in_flight -= 1
        self._tenants[request.tenant] -= 1
        if not self._tenants[request.tenant]:
            del self._tenants[request.tenant]
