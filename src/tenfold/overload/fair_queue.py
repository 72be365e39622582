"""Who is served next when not everybody can be: by priority, then by who has least. Pure.

A waiting room with one line for each priority and tenant. Among those of the highest priority that wait, the
tenant with the fewest requests in flight is next, so that a tenant who asks ten times as often gets no more
than the others while they want something. A line is served in order while the service keeps up, and newest
first once it does not: then the oldest have waited too long to be worth an answer (adaptive LIFO, and the
shorter wait below after CoDel: Maurer, "Fail at Scale", ACM Queue 13(8), 2015).

Only tenants who wait or are served now are remembered, so nobody can fill the memory with names.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from tenfold.overload.limits import Limit

__all__ = ["PRIORITIES", "Gate", "Priority", "Ticket", "WaitingRoom"]


Priority = Literal["critical", "normal", "sheddable"]
PRIORITIES: tuple[Priority, ...] = ("critical", "normal", "sheddable")
State = Literal["new", "waiting", "admitted", "shed", "left"]
Reason = Literal["", "full", "waited", "displaced", "deadline"]


@dataclass(slots=True, eq=False)
class Ticket:
    """One request on its way through: waiting, admitted, or shed and why. Times are seconds of one clock."""

    priority: Priority = "normal"
    tenant: str = ""
    deadline_s: float = float("inf")  # useless after this moment
    wake: Callable[[], None] = field(default=lambda: None)  # called once when the wait is over
    state: State = "new"
    reason: Reason = ""
    arrived_s: float = 0.0
    started_s: float = 0.0

    def over(self, state: State, reason: Reason = "") -> None:
        """The wait ends like this."""
        self.state, self.reason = state, reason
        self.wake()


class WaitingRoom:
    """At most ``size`` tickets, each for ``calm_s`` at most, or ``busy_s`` once the service does not keep up.

    Critical tickets may always wait ``calm_s``.
    """

    def __init__(self, *, size: int, calm_s: float, busy_s: float) -> None:
        self.size, self.calm_s, self.busy_s = size, calm_s, busy_s
        self._lines: dict[Priority, dict[str, deque[Ticket]]] = {name: {} for name in PRIORITIES}
        self._waiting = 0
        self._caught_up_s = float("-inf")  # when the room was last empty because all had been served

    def __len__(self) -> int:
        return self._waiting

    def caught_up(self, now_s: float) -> None:
        """Nobody has to wait at this moment."""
        self._caught_up_s = now_s

    def busy(self, now_s: float) -> bool:
        """Whether the room has not been empty for so long that this is no burst any more."""
        return self._waiting > 0 and now_s - self._caught_up_s > self.calm_s

    def enter(self, ticket: Ticket, now_s: float) -> bool:
        """Let it wait; False when there is no room and nobody has less right to be here."""
        self.expire(now_s)
        if self._waiting >= self.size and not self._displace(ticket):
            return False
        ticket.state = "waiting"
        self._lines[ticket.priority].setdefault(ticket.tenant, deque()).append(ticket)
        self._waiting += 1
        return True

    def _displace(self, newcomer: Ticket) -> bool:
        """Shed the oldest of the longest line that has less right.

        That is one of a lower priority, or of the same and longer than the newcomer's own would be.
        """
        for priority in reversed(PRIORITIES):
            lines = self._lines[priority]
            same = priority == newcomer.priority
            if lines:
                longest = max(lines.values(), key=len)
                if not same or len(longest) > len(lines.get(newcomer.tenant, ())) + 1:
                    self.discard(victim := longest[0])
                    victim.over("shed", "displaced")
                    return True
            if same:
                return False
        return False

    def discard(self, ticket: Ticket) -> None:
        """Take a waiting ticket out, without a word to it."""
        lines = self._lines[ticket.priority]
        line = lines[ticket.tenant]
        if line[0] is ticket:
            line.popleft()
        else:
            line.remove(ticket)
        self._left(lines, ticket)

    def _left(self, lines: dict[str, deque[Ticket]], ticket: Ticket) -> None:
        self._waiting -= 1
        if not lines[ticket.tenant]:
            del lines[ticket.tenant]

    def expire(self, now_s: float) -> None:
        """Shed whoever has waited too long."""
        for ticket in list(self._expired(now_s)):
            self.discard(ticket)
            ticket.over("shed", "deadline" if now_s > ticket.deadline_s else "waited")

    def _expired(self, now_s: float) -> Iterator[Ticket]:
        if not self._waiting:
            return
        short_s = self.busy_s if self.busy(now_s) else self.calm_s
        for priority, lines in self._lines.items():
            oldest_s = now_s - (self.calm_s if priority == "critical" else short_s)
            for line in lines.values():
                for ticket in line:
                    if ticket.arrived_s > oldest_s:
                        break
                    yield ticket

    def next(self, now_s: float, in_flight: dict[str, int]) -> Ticket | None:
        """Who is served now; None when nobody waits. ``in_flight`` counts each tenant's admitted requests."""
        newest_first = self.busy(now_s)
        self.expire(now_s)
        for lines in self._lines.values():
            while lines:
                # Python's dicts keep the order in which tenants came, so equals take turns.
                tenant = min(lines, key=lambda name: in_flight.get(name, 0))
                line = lines.pop(tenant)
                ticket = line.pop() if newest_first else line.popleft()
                if line:
                    lines[tenant] = line
                self._waiting -= 1
                if now_s <= ticket.deadline_s:
                    if not self._waiting:
                        self.caught_up(now_s)
                    return ticket
                ticket.over("shed", "deadline")
        return None


# The door of a service: lets in as many requests as the limit says, and keeps exact account of them. Pure.
#
# The clock is passed in, so that the simulation in the tests and the middleware run the same code.
class Gate:
    """Admits, lets wait, or sheds. Every admitted ticket has to :meth:`leave` exactly once."""

    def __init__(self, limit: Limit, room: WaitingRoom) -> None:
        self.limit, self.room = limit, room
        self.in_flight = 0
        self._tenants: dict[str, int] = {}

    def arrive(self, ticket: Ticket, now_s: float) -> None:
        """Decide about a new request: ``ticket.state`` is admitted, waiting or shed afterwards."""
        ticket.arrived_s = now_s
        if self.in_flight < self.limit.limit and not len(self.room):
            self.room.caught_up(now_s)
            self._admit(ticket, now_s)
        elif self.room.enter(ticket, now_s):
            self._fill(now_s)  # the limit may have grown since the last one left
        else:
            ticket.state, ticket.reason = "shed", "full"

    def leave(
        self, ticket: Ticket, now_s: float, *, ended_s: float, kind: Hashable = None, dropped: bool = False
    ) -> None:
        """An admitted request is done: its place goes to the next one.

        ``ended_s`` is when it was answered; what it did afterwards was nobody's waiting time.
        """
        in_flight = self.in_flight
        self._count_out(ticket)
        self.limit.record(ticket.started_s, ended_s, in_flight=in_flight, kind=kind, dropped=dropped)
        self._fill(now_s)

    def abandon(self, ticket: Ticket, now_s: float) -> None:
        """A request went away before it ran: its place, if it had one, goes to the next one."""
        if ticket.state == "waiting":
            ticket.state = "left"
            self.room.discard(ticket)
        elif ticket.state == "admitted":
            self._count_out(ticket)
            self._fill(now_s)

    def expire(self, now_s: float) -> None:
        """Shed whoever has waited too long; to be called while somebody waits and nothing else happens."""
        self.room.expire(now_s)
        self._fill(now_s)

    def force(self, ticket: Ticket, now_s: float) -> None:
        """Admit it whatever the limit says: the shadow mode."""
        ticket.arrived_s = now_s
        self._admit(ticket, now_s)

    def _fill(self, now_s: float) -> None:
        while self.in_flight < self.limit.limit and len(self.room):
            ticket = self.room.next(now_s, self._tenants)
            if ticket is None:
                return
            self._admit(ticket, now_s)

    def _admit(self, ticket: Ticket, now_s: float) -> None:
        self.in_flight += 1
        self._tenants[ticket.tenant] = self._tenants.get(ticket.tenant, 0) + 1
        ticket.started_s = now_s
        ticket.over("admitted")

    def _count_out(self, ticket: Ticket) -> None:
        ticket.state = "left"
        self.in_flight -= 1
        self._tenants[ticket.tenant] -= 1
        if not self._tenants[ticket.tenant]:
            del self._tenants[ticket.tenant]
