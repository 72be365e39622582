"""What limits a service: from the part of a request's time that grew, to those who hold what it waits for.

A queue is never the limit itself. The search starts at the part that grew most between low load and the
limit, looks at what the holders of the thing that is waited for do, and goes on there, until it comes to
something that works, sleeps or waits outside of the stack. That has to be in use and to have a queue, by the
thresholds below; without one, nothing is named. Utilisation, saturation and errors of each resource are
Gregg's USE method ("Thinking Methodically about Performance", ACM Queue 2012); it leaves following the
holders to the reader.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tenfold.measure.diagnosis.bottleneck import Limit
from tenfold.measure.diagnosis.facts import Facts, Sums, Window
from tenfold.measure.report.wording import part_name

STARTS = 0.15  # of the growth: a smaller part is no start
GROWS = 0.2  # of the mean at low load: less growth is no queue
LOOP_BUSY = 0.8  # of an event loop's time
WORKER_BUSY = 0.7  # cores of a worker: the event loop, or its threads together, on one interpreter lock …
WORKER_FULL = 0.85  # … and where something else is full as well: it is Python that fills it
MACHINE_FULL = 0.9  # of the cores
FOREIGN = 0.5  # cores of programs that are neither the stack nor the generator
POOL_FULL = 0.3  # of the time, in the trial in which it was fullest
POOL_IN_USE = 0.6  # of its connections, on average
POOL_WAIT = 0.1  # of the objective: a longer p95 of the wait
WAITING = 0.3  # of the active sessions of the database wait for a lock, or for the log
SESSIONS = 0.3  # of one session: fewer waiting ones are no queue
DATABASE_BUSY = 0.8  # of the cores, or as many sessions that compute
DATABASE_SHARE = 0.4  # of a full machine
LATE = 2.0  # times longer in the app than on the server: the difference is the app's
CALL_GROWS = 1.5  # times longer at the limit: the other service queues
REFUSED = 0.05  # of the calls
DEADLOCK = 0.4  # of the holders' time
LEAKED = 0.5  # of the pool's connections
THROTTLED = 0.05  # of the time
ONE_THREAD = 0.8  # of a core: Redis runs commands in one thread; nginx has a worker for each core


@dataclass
class _Search:
    """One search; its steps return the limit, or None when they lead nowhere."""

    facts: Facts
    chain: list[str] = field(default_factory=list)
    visited: set[str] = field(default_factory=set)

    @property
    def window(self) -> Window:
        return self.facts.limit

    def find(self) -> Limit:
        if (outside := self._quota() or self._others()) is not None:
            return outside
        growth = self.facts.growth
        total = sum(max(seconds, 0.0) for seconds in growth.values())
        low = sum(self.facts.low.parts.values()) if self.facts.low is not None else 0.0
        if self.facts.low is not None and total < GROWS * low and not self._is_saturated():
            return self._external() or self._delay(self.facts.low.parts, "at low load, too")
        for part, seconds in growth.items():
            if seconds >= STARTS * total > 0 and (found := self._start(part)) is not None:
                return found
        if (found := self._saturated()) is not None:
            return found
        if self.facts.low is None and total:
            return self._delay(self.window.parts, "alone")
        return self._unknown(growth)

    def _start(self, part: str) -> Limit | None:
        self.chain, self.visited = [], set()
        return self._follow(part)

    def _follow(self, part: str) -> Limit | None:
        steps: Mapping[str, Callable[[], Limit | None]] = {
            "front": self._front,
            "pool": self._pool,
            "db": self._database,
            "http": self._external,
            "run": self._compute,
            "loop": self._loop,
            "thread": self._threads,
            "lock": self._lock,
            "io": self._cache,
            "other": self._cache,
        }
        if part not in steps or part in self.visited:
            return None
        self.visited.add(part)
        return steps[part]()

    def _limit(
        self,
        resource: str,
        title: str,
        *,
        held_by: str = "",
        evidence: tuple[str, ...] = (),
        remedy: str = "",
    ) -> Limit:
        return Limit(
            resource=resource, title=title, held_by=held_by, chain=tuple(self.chain), evidence=evidence,
            remedy=remedy,
        )  # fmt: skip

    def _quota(self) -> Limit | None:
        """A container's quota of CPU time is used up."""
        if self.window.throttled < THROTTLED:
            return None
        return self._limit(
            "quota",
            f"the container's CPU quota of {self.window.allowed_cores:.1f} cores, "
            f"throttled {_percent(self.window.throttled)} of the time",
            held_by="run",
            remedy="raise the quota, and start no more threads and processes than it has cores",
        )

    def _others(self) -> Limit | None:
        """Programs that have nothing to do with the measurement fill the machine."""
        foreign = self.window.other_cores - self.facts.generator_cores
        if self.window.machine_cpu < MACHINE_FULL or foreign < FOREIGN:
            return None
        return self._limit(
            "others",
            f"other programs on this machine use {foreign:.1f} of its {self.window.cores:.0f} cores",
            remedy="stop them and measure again: these numbers are not the service's",
        )

    def _front(self) -> Limit | None:
        """Requests wait before a worker takes them."""
        self.chain.append("requests wait for a worker to take them")
        if self._loop_busy() >= LOOP_BUSY:
            return self._follow("loop")
        if not self.window.evidence.seen.get("event loop"):
            return self._follow("thread")
        return self._follow("run") or self._proxy()

    def _proxy(self) -> Limit | None:
        """nginx, in front of the app."""
        used = self.window.cores_of("proxy")
        if used < ONE_THREAD:
            return None
        return self._limit(
            "proxy",
            f"nginx, {used:.2f} cores used",
            remedy="keep connections to the app open (keepalive), or more workers while cores are free",
        )

    def _cache(self) -> Limit | None:
        """Redis, which runs all commands in one thread."""
        used = self.window.cores_of("cache")
        if used < ONE_THREAD:
            return None
        return self._limit(
            "redis",
            f"Redis, {used:.2f} of the one core on which it runs commands",
            held_by="io",
            remedy="fewer and smaller commands: pipelines, no KEYS, no large values, no long Lua scripts",
        )

    def _loop_busy(self) -> float:
        clock = self.window.loop_clock
        return clock.busy_share if clock is not None else 0.0

    def _loop(self) -> Limit | None:
        """The event loop comes late: it computes, waits for a core or the interpreter, or is blocked."""
        clock = self.window.loop_clock
        if clock is None or clock.busy_share < LOOP_BUSY:
            return self._follow("run")
        self.chain.append(f"the event loop is busy {_percent(clock.busy_share)} of the time")
        computes = clock.cpu_s + clock.gil_s
        if clock.blocked_s >= max(computes, clock.runqueue_s):
            return self._limit(
                "loop",
                f"the event loop, blocked {_percent(clock.blocked_s / clock.wall_s)} of the time",
                held_by="blocked",
                evidence=(f"it computes {_percent(clock.cpu_s / clock.wall_s)} of the time",),
                remedy="find the synchronous call: no line of the service stands out",
            )
        if clock.runqueue_s > computes:
            return self._machine()
        return self._python(sure=True)

    def _compute(self) -> Limit | None:
        """Requests want the CPU."""
        return self._python() or self._machine()

    def _python(self, *, sure: bool = False) -> Limit | None:
        """Python runs on one core in each worker."""
        used = self.window.app_cores
        if used < WORKER_BUSY and not sure:
            return None
        workers = max(self.window.evidence.workers, 1)
        free = self.window.cores * (1 - self.window.machine_cpu)
        more = (
            "run more instances" if free >= 0.5 else "more instances help only with more cores: none is free"
        )
        return self._limit(
            "python",
            f"Python in the app, {used:.2f} cores used by {'each of its' if workers > 1 else 'its'} "
            f"{_count(workers, 'worker')}",
            held_by="run",
            evidence=(
                "one worker runs Python on one core at a time",
                f"of the machine's {self.window.cores:.0f} cores {free:.1f} are free",
            ),
            remedy=f"nothing stands out to repair: {more}",
        )

    def _machine(self) -> Limit | None:
        """All cores are in use."""
        if self.window.machine_cpu < MACHINE_FULL:
            return None
        groups = dict(self.window.resources.busiest[0]) if self.window.resources is not None else {}
        groups["generator"] = self.facts.generator_cores
        most = max(groups, key=lambda name: groups[name])
        used = ", ".join(f"{name} {cores:.2f}" for name, cores in groups.items() if cores >= 0.005)
        return self._limit(
            "machine",
            f"the machine's {self.window.cores:.0f} cores, {_percent(self.window.machine_cpu)} in use",
            held_by="db" if most == "database" else "run",
            evidence=(f"cores used: {used}",),
            remedy="less work per request, or more cores",
        )

    def _threads(self) -> Limit | None:
        """All worker threads are taken: by what?"""
        threads = self.window.evidence.threads
        states: Sums[str] = Sums()
        for one in self.window.evidence.samples:
            if one.route and one.state not in ("thread", "loop", "other"):
                states[one.state] += one.seconds
        busy = states.total / max(self.window.evidence.seconds, 1e-9)
        self.chain.append("requests wait for a worker thread")
        state = states.largest("")
        if not state or (threads is not None and threads.total and threads.busy_max < threads.total):
            return None
        if state in ("db", "pool", "run", "lock"):
            self.chain.append(f"the threads {_doing(state)}")
            if (found := self._follow(state)) is not None:
                return found
        elif state == "http" and (found := self._follow("http")) is not None:
            return found
        elif state != "http":
            self.chain.append(f"the threads {_doing(state)}")
        count = (
            f"all {threads.total} in use" if threads is not None and threads.total else f"{busy:.0f} in use"
        )
        return self._limit(
            "threads",
            f"the worker threads, {count}",
            held_by=state,
            remedy="shorten what they wait for; more threads help while CPU and database have room",
        )

    def _pool(self) -> Limit | None:
        """No connection is free: what do those who hold them do?"""
        pool = next(iter(self.window.pools), None)
        if pool is None:
            return self._unhooked_pool()
        waits = pool.wait_p95_ms >= POOL_WAIT * self.facts.slow_ms or pool.timeouts or pool.waiting
        if pool.full_share < POOL_FULL and not waits:
            return None
        if pool.in_use < POOL_IN_USE and not (pool.timeouts or pool.waiting):
            return None  # by Little's law it carries far more than this: its waits have another cause
        size = pool.size + max(pool.max_overflow, 0)
        self.chain.append("requests wait for a connection")
        holders = self._holders()
        state, total = holders.largest(""), holders.total
        if pool.held_after >= LEAKED * size:
            state = "leak"
        elif holders["pool"] >= DEADLOCK * total:
            state = "pool"
        elif state in ("db", "run", "loop", "http", "lock"):
            self.chain.append(f"connections are held by requests that {_doing(state)}")
            python_has_room = state == "run" and self.window.app_cores < WORKER_FULL
            if not python_has_room and (found := self._follow(state)) is not None:
                return found
        hold_ms = pool.held_s * 1000 / max(pool.checkouts, 1)
        return self._limit(
            "pool",
            f"the connection pool, full {_percent(pool.full_share)} of the time "
            f"({_count(size, 'connection')}{' per worker' if self.window.evidence.workers > 1 else ''})",
            held_by=state,
            evidence=(
                f"a connection is held for {hold_ms:.1f} ms; "
                f"checkouts wait {pool.wait_p95_ms:.0f} ms at p95, {pool.timeouts:,} timed out",
            ),
            remedy=f"hold connections for less time, or enlarge the pool: {size} of them carry at most "
            f"{size * max(pool.pools, 1) * 1000 / hold_ms:,.0f} checkouts/s"
            if hold_ms
            else "find what holds the connections",
        )

    def _holders(self) -> Sums[str]:
        states: Sums[str] = Sums()
        for one in self.window.holders:
            states[one.state] += one.seconds
        return states

    def _unhooked_pool(self) -> Limit | None:
        """A pool of asyncpg or psycopg, whose waits are seen on the stacks."""
        waiting = self.window.states()["pool"] / max(self.window.evidence.seconds, 1e-9)
        if waiting < SESSIONS:
            return None
        self.chain.append("requests wait for a connection")
        state = self._holders().largest("")
        if state in ("db", "run", "loop", "http", "lock"):
            self.chain.append(f"others {_doing(state)}")
            if (found := self._follow(state)) is not None:
                return found
        return self._limit(
            "pool",
            f"a connection pool, for which {waiting:.1f} requests wait at a time",
            held_by=state,
            remedy="hold connections for less time, or enlarge the pool",
        )

    def _database(self) -> Limit | None:
        """Statements take the time: is it the database, or do their results wait for the app?"""
        window, view = self.window, self.window.database
        if view.sessions.get("lock", 0.0) >= max(WAITING * view.active, SESSIONS):
            self.chain.append("statements wait for locks of other transactions")
            return self._limit(
                "row locks",
                f"locks in the database, for which {view.sessions['lock']:.1f} sessions wait at a time",
                held_by="lock",
                remedy="shorten the transactions that hold them",
            )
        in_app = window.parts["db"] * window.requests / max(window.evidence.seconds, 1e-9)
        if in_app > LATE * view.active and view.samples:
            for step in (self._loop_if_busy, self._python):
                if (found := step()) is not None:
                    return found
        cpu, cores = window.cores_of("database"), window.cores
        full = window.machine_cpu >= MACHINE_FULL and cpu >= DATABASE_SHARE * cores
        if full or cpu >= DATABASE_BUSY * cores or view.sessions.get("cpu", 0.0) > cores:
            return self._limit(
                "database",
                f"the database's CPU, {cpu:.1f} of {cores:.0f} cores used",
                held_by="db",
                remedy="cache results, or read from replicas: no statement stands out",
            )
        if view.sessions.get("wal", 0.0) >= max(WAITING * view.active, SESSIONS):
            self.chain.append("commits wait for the log to reach the disk")
            return self._limit(
                "commit",
                f"commits, for which {view.sessions['wal']:.1f} sessions wait at a time",
                held_by="wal",
                remedy="fewer commits: one transaction for each request, writes in batches",
            )
        return None

    def _loop_if_busy(self) -> Limit | None:
        return self._follow("loop") if self._loop_busy() >= LOOP_BUSY else None

    def _external(self) -> Limit | None:
        """Another service answers more slowly under load, or refuses."""
        calls = self.window.calls
        if not calls:
            return None
        host = call_host(calls[0].fingerprint)
        mine = [one for one in calls if call_host(one.fingerprint) == host]
        count = sum(one.executions for one in mine)
        mean = sum(one.total_s for one in mine) / max(count, 1)
        refused = sum(one.executions for one in mine if ": " in one.fingerprint)
        calm = self.facts.low.calls if self.facts.low is not None else []
        before = [one for one in calm if call_host(one.fingerprint) == host]
        low = sum(one.total_s for one in before) / max(sum(one.executions for one in before), 1)
        slower = bool(before) and mean >= CALL_GROWS * low and self._loop_busy() < LOOP_BUSY
        if not slower and refused < REFUSED * count:
            return None
        rate = (count - refused) / max(self.window.evidence.seconds, 1e-9)
        says = f"answers in {mean * 1000:.0f} ms, {low * 1000:.0f} ms at low load"
        return self._limit(
            "external",
            f"the other service {host}, which "
            + (f"refuses {_percent(refused / count)} of the calls" if refused >= REFUSED * count else says),
            held_by="http",
            evidence=(f"{rate:.1f} calls/s succeed",),
            remedy="cache its responses, call it less often or in batches, or have its limit raised",
        )

    def _lock(self) -> Limit:
        """Requests queue for a lock of the app."""
        routes = {one.route for one in self.window.evidence.samples if one.state == "lock"}
        inside: Sums[str] = Sums()
        for one in self.window.evidence.samples:
            if one.route in routes and one.state != "lock":
                inside[one.state] += one.seconds
        state = inside.largest("")
        waiting = self.window.states()["lock"] / max(self.window.evidence.seconds, 1e-9)
        return self._limit(
            "lock",
            f"a lock in the app, for which {waiting:.1f} requests wait at a time",
            held_by=state,
            remedy="hold it for less time: take it last, and wait for nothing inside",
        )

    def _is_saturated(self) -> bool:
        window = self.window
        full = any(pool.full_share >= POOL_FULL for pool in window.pools)
        return (
            full
            or window.app_cores >= WORKER_BUSY
            or self._loop_busy() >= LOOP_BUSY
            or window.machine_cpu >= MACHINE_FULL
        )

    def _saturated(self) -> Limit | None:
        """No part of a request's time led to the limit: is any resource full all the same?"""
        for part in ("pool", "loop", "run", "db", "http", "io"):
            if (found := self._start(part)) is not None:
                return found
        return None

    def _delay(self, parts: Mapping[str, float], when: str) -> Limit:
        """Nothing grows, or nothing is in use: the request itself takes as long."""
        part = max(parts, key=lambda one: parts[one])
        return self._limit(
            "delay",
            f"no queue: a request takes {sum(parts.values()) * 1000:.0f} ms {when}, "
            f"{parts[part] * 1000:.0f} ms of it {part_name(part)}",
            held_by=part,
            remedy="make that shorter, or accept it with a looser objective (--p95-ms)",
        )

    def _unknown(self, growth: Mapping[str, float]) -> Limit:
        """No resource is in use: say what grew; what takes most of it is a candidate, no more."""
        part = next(iter(growth))
        grown = [f"{part_name(part)} +{s * 1000:.0f} ms" for part, s in growth.items() if s > 0][:3]
        return Limit(
            resource="none",
            title="no limit found in what was measured",
            held_by=part if growth[part] > 0 else "",
            evidence=(f"what grew: {', '.join(grown)}",) if grown else (),
        )


def find_limit(facts: Facts) -> Limit:
    """Return what stops the service, or a limit that is false when nothing that was measured explains it."""
    return _Search(facts).find()


def call_host(statement: str) -> str:
    """Return the host of a recorded call.

    >>> call_host("HTTP api.pay.example: 503")
    'api.pay.example'
    """
    return statement.removeprefix("HTTP ").partition(": ")[0]


def _doing(state: str) -> str:
    return {
        "db": "wait for statements",
        "pool": "wait for a connection",
        "run": "compute",
        "loop": "wait for the event loop",
        "http": "wait for another service",
        "lock": "wait for a lock",
        "sleep": "sleep",
        "io": "wait for a socket or a file",
        "send": "wait for their client",
    }.get(state, "do something that was not seen")


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
