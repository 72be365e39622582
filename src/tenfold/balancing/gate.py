"""The door of a service: lets in as many requests as the limit says, and keeps exact account of them. Pure.

The clock is passed in, so that the simulation in the tests and the middleware run the same code.
"""

from __future__ import annotations

from collections.abc import Hashable

from tenfold.balancing.fairness import Ticket, WaitingRoom
from tenfold.balancing.limits import Limit

__all__ = ["Gate"]


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
