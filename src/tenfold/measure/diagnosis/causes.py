"""What uses a limit up: causes with their line, their share and the remedy that fits.

A cause is named from ``SHARE`` of the limit's use on; what uses less is merely present. Shares are of the
limit: of Python's CPU time, of the time in statements, of the time for which an event loop was blocked.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tenfold.measure.diagnosis.bottleneck import Bottleneck, Limit, Severity
from tenfold.measure.diagnosis.explain import IndexProof, MissingIndex
from tenfold.measure.diagnosis.facts import Facts, Sums, Window
from tenfold.measure.diagnosis.limit import call_host
from tenfold.measure.probe.evidence import ROUND_TRIPS, SampleStats, StatementStats

SHARE = 0.2  # of the limit's use
SERIALISATION = 0.3
MANY_ROWS = 500  # of one statement in a request …
ROW_BYTES = 20  # … of which the response shows few: less than this for each row that was read
CONNECTS = 0.05  # per request
CONNECT_TIME = 0.1  # of the time in statements
BACKGROUND = 0.2  # of Python's CPU time
NEIGHBOURS = 4  # lines: as near to each other they are one loop
STATEMENT_SHOWN = 120
STATEMENT_KINDS = ("statement", "rows to objects")  # of library work
COMMITS = 1.5  # per request
MANY_POOLS = 500  # from one line; the probes count no more than 1,000

_COLUMNS = re.compile(r"^SELECT .{40,}? FROM ")
_AGGREGATE = re.compile(r"^SELECT\s+(?:COALESCE\s*\(\s*)?(?:COUNT|SUM|MIN|MAX|AVG|EXISTS)\s*\(")
_HASH = re.compile(
    r"pbkdf2|bcrypt|scrypt|argon2|hash_password|verify_password|check_password|hashpw", re.IGNORECASE
)


@dataclass
class Causes:
    """The causes of one limit; each function yields those of its kind."""

    facts: Facts
    limit: Limit
    found: list[Bottleneck] = field(default_factory=list)

    @property
    def window(self) -> Window:
        return self.facts.limit

    def find(self) -> list[Bottleneck]:
        """Return the causes, those with the largest share first."""
        by_holder: Mapping[str, Callable[[], Iterator[Bottleneck]]] = {
            "db": self._of_statements,
            "run": self._of_python,
            "blocked": self._of_blocked_loop,
            "wal": self._of_commits,
            "leak": self._of_leaks,
        }
        by_resource: Mapping[str, Callable[[], Iterator[Bottleneck]]] = {
            "row locks": self._of_row_locks,
            "external": self._of_calls,
            "lock": self._of_locks,
        }
        if self.limit.resource in by_resource:
            causes = by_resource[self.limit.resource]()
        elif self.limit.resource == "pool" and self.limit.held_by == "pool":
            causes = self._of_deadlocks()
        elif self.limit.held_by in by_holder:
            causes = by_holder[self.limit.held_by]()
        elif self.limit.resource == "pool":
            causes = self._of_holders()
        elif self.limit.resource in ("threads", "delay"):
            causes = self._of_waits()
        else:
            causes = iter(())
        return sorted(causes, key=lambda one: -(one.share or 0.0))

    # Statements

    def _of_statements(self) -> Iterator[Bottleneck]:
        total = sum(one.total_s for one in self.window.statements)
        if not total:
            return
        yield from self._connects(total)
        told: set[str] = set()
        for one in (*self._n_plus_ones(total), *self._missing_indexes(total), *self._over_fetching(total)):
            if (one.share or 0.0) >= SHARE:
                told.add(one.where or "")
                yield one
        if self._commits_per_request() >= COMMITS:
            yield from (one for one in self._of_commits(total) if (one.share or 0.0) >= SHARE)
        yield from self._single_statements(total, told)

    def _n_plus_ones(self, total: float) -> Iterator[Bottleneck]:
        for uses in self._loops():
            yield self._n_plus_one(uses, sum(one.total_s for one in uses) / total)

    def _loops(self) -> list[list[StatementStats]]:
        """Statements that loops repeat, by loop: a line in all its routes, and the lines of the same routes."""
        lines: dict[str, list[StatementStats]] = defaultdict(list)
        for use in self.window.statements:
            if use.repeating_requests and use.fingerprint not in ROUND_TRIPS:
                lines[use.site or use.route].append(use)
        loops: dict[frozenset[str], list[StatementStats]] = defaultdict(list)
        for uses in lines.values():
            loops[frozenset(use.route for use in uses)].extend(uses)
        return [sorted(uses, key=lambda use: -use.total_s) for uses in loops.values()]

    def _n_plus_one(self, uses: list[StatementStats], share: float) -> Bottleneck:
        use = uses[0]
        others = [one for one in uses[1:] if one.site != use.site or one.route == use.route]
        sites = list(dict.fromkeys(one.site for one in others if one.site and one.site != use.site))
        more = f", at {', '.join(sites[:2])}{' …' if sites[2:] else ''}" if sites else ""
        return self._bottleneck(
            "n_plus_one",
            "Database",
            f"N+1 in {route_names(uses)}",
            share=share,
            where=use.site or self._endpoint(use.route),
            evidence=(
                f"one statement runs {use.repetitions_mean:.0f} times a request, at most "
                f"{use.executions_max}, in {use.repeating_requests} of {use.requests} requests",
                *((f"{'as do' if others[1:] else 'as does'} {len(others)} more{more}",) if others else ()),
                executions(*uses),
                abbreviate(use.fingerprint),
            ),
            remedy=repetition_remedy(use.fingerprint),
        )

    def _missing_indexes(self, total: float) -> Iterator[Bottleneck]:
        """Look-ups and sorts by a column without an index; one bottleneck per index, for all its statements."""
        by_index: dict[str, tuple[MissingIndex, list[StatementStats]]] = {}
        for use in self.window.statements:
            plan = self.facts.plans.get(use.fingerprint)
            for missing in plan.missing if plan is not None else ():
                by_index.setdefault(missing.create, (missing, []))[1].append(use)
        for missing, uses in by_index.values():
            proof = missing.proof
            if proof is not None and not proof.helps:
                continue
            needed = "the first ones in order" if missing.ordered else f"{max(missing.rows, 1):,.0f}"
            evidence = [f"reads {missing.table_rows:,} rows to find {needed}", executions(*uses)]
            share = sum(use.total_s for use in uses) / total
            if proof is not None:
                evidence.append(
                    f"one look-up takes {proof.after_ms:.2f} ms with the index, {proof.before_ms:.1f} ms without"
                )
                share *= self._saved(proof, uses)
            yield self._bottleneck(
                "missing_index",
                "Database",
                f"missing index on {missing.table} ({missing.column})",
                share=share,
                where=uses[0].site or self._endpoint(uses[0].route),
                evidence=tuple(evidence),
                remedy=missing.create,
                proven=proof is not None,
            )

    def _saved(self, proof: IndexProof, uses: Sequence[StatementStats]) -> float:
        """Return the share of the statements' time that an index saves.

        It is the planner's estimate for the whole statement, and no more than the look-up's measured saving,
        except where the database is so busy that each look-up is slower than the proof found it.
        """
        saved = 1 - proof.cost_after / proof.cost_before if proof.cost_before else 1.0
        mean_ms = sum(use.total_s for use in uses) * 1000 / max(sum(use.executions for use in uses), 1)
        if self.window.cores_of("database") < 0.3 * self.window.cores and mean_ms > 0:
            saved = min(saved, (proof.before_ms - proof.after_ms) / mean_ms)
        return min(max(saved, 0.0), 1.0)

    def _over_fetching(self, total: float) -> Iterator[Bottleneck]:
        for use in self._large_results():
            yield self._fetched(use, use.total_s / total)

    def _large_results(self) -> Iterator[StatementStats]:
        """Statements that return many rows of which the response can show only few."""
        sent = {route.route: route.bytes / max(route.requests, 1) for route in self.window.evidence.routes}
        for use in self.window.statements:
            rows = use.rows / max(use.requests, 1)
            reads = use.fingerprint.upper().startswith(("SELECT", "WITH"))
            if reads and rows >= MANY_ROWS and sent.get(use.route, 0.0) < ROW_BYTES * rows:
                yield use

    def _fetched(self, use: StatementStats, share: float) -> Bottleneck:
        rows = use.rows / max(use.requests, 1)
        sent = next((one.bytes / max(one.requests, 1) for one in self.window.evidence.routes
                     if one.route == use.route), 0.0)  # fmt: skip
        return self._bottleneck(
            "over_fetching",
            "Database",
            f"{use.route} reads {rows:,.0f} rows",
            share=share,
            where=use.site or self._endpoint(use.route),
            evidence=(
                f"its response has {sent:,.0f} bytes: most of the rows are not shown",
                executions(use),
                abbreviate(use.fingerprint),
            ),
            remedy="read only what is shown: LIMIT, WHERE, or count and sum in the database",
        )

    def _connects(self, total: float) -> Iterator[Bottleneck]:
        """Connections opened within requests: no pool, an engine for each request, a pool that overflows."""
        uses = [use for use in self.window.statements if use.fingerprint == "CONNECT"]
        opened, seconds = sum(use.executions for use in uses), sum(use.total_s for use in uses)
        if opened < CONNECTS * self.window.requests or seconds < CONNECT_TIME * total:
            return
        where, remedy = self._connect_remedy(sorted(uses, key=lambda use: -use.total_s))
        yield self._bottleneck(
            "connect",
            "Connection Pool",
            "many requests open a new connection",
            share=seconds / total,
            where=where or None,
            evidence=(f"{opened:,} opened in {self.window.requests:,} requests", executions(*uses)),
            remedy=remedy,
        )

    def _connect_remedy(self, uses: Sequence[StatementStats]) -> tuple[str, str]:
        evidence = self.window.evidence
        site = next((use.site for use in uses if use.site), "") or self._endpoint(uses[0].route) or ""
        engines = min(evidence.workers + CONNECTS * evidence.requests, MANY_POOLS)
        many = [pool for pool in evidence.pools if pool.pools > engines]
        if many:
            where = max(many, key=lambda pool: pool.pools).site
            return where or site, "create the engine once, when the module is imported, not in each request"
        if not evidence.pools and "NullPool" in evidence.pool_kinds:
            return site, "keep connections open: create the engine without poolclass=NullPool"
        if not evidence.pools:
            return site, "keep connections open in a pool (create_engine has one; Django: CONN_MAX_AGE)"
        pool = max(evidence.pools, key=lambda one: one.checkouts)
        if pool.max_overflow == 0:
            return site, "find why connections close early: pool_recycle, invalidated or detached ones"
        return (
            pool.site or site,
            "raise pool_size to the number of connections used at once, and lower max_overflow",
        )

    def _single_statements(self, total: float, told: set[str]) -> Iterator[Bottleneck]:
        """Statements that take much of the time, and that no cause above explains."""
        by_line: dict[tuple[str, str], list[StatementStats]] = defaultdict(list)
        for use in self.window.statements:
            if use.fingerprint not in ROUND_TRIPS and not use.repeating_requests:
                by_line[use.fingerprint, use.site].append(use)
        for (statement, site), uses in by_line.items():
            share, plan = sum(use.total_s for use in uses) / total, self.facts.plans.get(statement)
            if share < SHARE or site in told or (plan is not None and plan.missing):
                continue
            mean_ms = sum(use.total_s for use in uses) * 1000 / sum(use.executions for use in uses)
            if mean_ms < 0.1 * self.facts.slow_ms:
                continue  # quick, and needed: the work itself is the cost
            yield self._bottleneck(
                "slow_statement",
                "Database",
                f"slow statement in {route_names(uses)}",
                share=share,
                where=site or self._endpoint(uses[0].route),
                evidence=(
                    executions(*uses),
                    abbreviate(statement),
                    *(plan.lines[:6] if plan is not None else ()),
                ),
                remedy="read its plan, fetch fewer rows, or cache the result",
            )

    def _commits_per_request(self) -> float:
        commits = [use for use in self.window.statements if use.fingerprint == "COMMIT"]
        return sum(use.executions for use in commits) / self.window.requests

    def _of_commits(self, total: float | None = None) -> Iterator[Bottleneck]:
        uses = [use for use in self.window.statements if use.fingerprint == "COMMIT"]
        if not uses:
            return
        whole = total or sum(use.total_s for use in self.window.statements) or 1.0
        uses.sort(key=lambda use: -use.total_s)
        yield self._bottleneck(
            "commit",
            "Database",
            f"{self._commits_per_request():.1f} commits a request",
            share=sum(use.total_s for use in uses) / whole,
            where=uses[0].site or self._endpoint(uses[0].route),
            evidence=(executions(*uses),),
            remedy="one transaction for each request, and writes in batches",
        )

    # Locks

    def _of_row_locks(self) -> Iterator[Bottleneck]:
        """The statement that waits, and what the transaction at the head of the queue does."""
        view = self.window.database
        total = sum(view.blockers.values())
        by_waiter: dict[str, Sums[tuple[str, str]]] = defaultdict(Sums)
        for (waiter, blocker, kind), sessions in view.blockers.items():
            by_waiter[waiter][blocker, kind] += sessions
        for waiter, roots in by_waiter.items():
            share = sum(roots.values()) / total
            if share < SHARE:
                continue
            blocker, kind = roots.largest(("", ""))
            use = self._use_of(waiter)
            idle = sum(sessions for (_, of), sessions in roots.items() if of == "open") / sum(roots.values())
            yield self._bottleneck(
                "row_lock",
                "Database",
                f"transactions queue for a row in {use.route if use else 'the database'}",
                share=share,
                where=(use.site if use else "") or None,
                evidence=(
                    f"waits: {abbreviate(waiter)}",
                    f"holds: {abbreviate(blocker)}, {_KINDS.get(kind, kind)}",
                    *self._meanwhile(idle),
                ),
                remedy="take the lock last and commit at once: nothing else inside the transaction; "
                "a counter can be rows that are added up, or SKIP LOCKED"
                if idle < 0.5
                else "commit before other work: the holder waits for the app, not for the database",
            )

    def _meanwhile(self, idle: float) -> Iterator[str]:
        """Say what the app does while a transaction that blocks others is idle."""
        if idle < 0.5:
            return
        states = self.window.states(holds=True)
        for waits in ("db", "pool"):
            states.pop(waits, None)
        if states:
            state = states.largest("")
            line = self.window.lines(holds=True, state=state).largest("")
            yield f"the transaction is idle {100 * idle:.0f} % of that time: {state}{f' at {line}' if line else ''}"

    def _use_of(self, statement: str) -> StatementStats | None:
        return next((one for one in self.window.statements if one.fingerprint == statement), None)

    def _of_locks(self) -> Iterator[Bottleneck]:
        lines = self._grouped(lambda one: one.state == "lock")
        total = sum(lines.values()) or 1.0
        for (route, line, _), seconds in lines.ranked()[:3]:
            if seconds < SHARE * total:
                continue
            inside = self.window.states(route=route)
            for queue in ("lock", "thread"):
                inside.pop(queue, None)
            state = inside.largest("")
            where = self.window.lines(route=route, state=state).largest("")
            yield self._bottleneck(
                "lock",
                "Lock",
                f"requests of {route or 'the app'} wait for a lock",
                share=seconds / total,
                where=line or self._endpoint(route),
                evidence=(f"meanwhile the others: {state}{f' at {where}' if where else ''}",)
                if state
                else (),
                remedy="hold the lock for less time: nothing that waits inside it; or one lock for each key",
            )

    # Python

    def _of_python(self) -> Iterator[Bottleneck]:
        """What uses the CPU, of all samples that want it."""
        weights = self._cpu()
        total = weights.total
        if not total:
            return
        rest = weights
        for cause in (
            self._background, self._python_of_connects, self._python_of_n_plus_ones, self._python_of_rows,
            self._python_of_commits, self._python_of_kinds,
        ):  # fmt: skip
            for one, keys in cause(rest, total):
                yield one
                for key in keys:
                    rest.pop(key, None)
        yield from self._plain_lines(rest, total)

    def _cpu(self) -> Sums[tuple[str, str, str, str]]:
        """CPU seconds by route, line, kind of work and place."""
        samples = [one for one in self.window.evidence.samples if one.state == "run"]
        exact = any(one.cpu_s for one in samples)
        found: Sums[tuple[str, str, str, str]] = Sums()
        for one in samples:
            found[one.route, one.line, one.detail, one.place] += one.cpu_s if exact else one.seconds
        return found

    def _background(self, cpu: _Cpu, total: float) -> Iterator[tuple[Bottleneck, list[_Key]]]:
        """Threads of the app that carry no request and compute."""
        keys = [key for key in cpu if not key[0] and key[1] and key[3] == "thread"]
        for line, near in _clusters({key[1]: 0.0 for key in keys}, lambda one: sum(
            cpu[key] for key in keys if key[1] == one
        )):  # fmt: skip
            mine = [key for key in keys if key[1] in near]
            share = sum(cpu[key] for key in mine) / total
            if share >= BACKGROUND:
                yield (
                    self._bottleneck(
                        "gil",
                        "Threads",
                        "a background thread of the app computes",
                        share=share,
                        where=line,
                        evidence=("it takes the interpreter from the requests of its process",),
                        remedy="compute in another process: a thread takes its time from the requests",
                    ),
                    mine,
                )

    def _python_of_connects(self, cpu: _Cpu, total: float) -> Iterator[tuple[Bottleneck, list[_Key]]]:
        sites = {use.site for use in self.window.statements if use.fingerprint == "CONNECT"}
        mine = [key for key in cpu if key[1] in sites]
        spent = sum(one.total_s for one in self.window.statements)
        for one in self._connects(spent or 1.0):
            yield with_share(one, sum(cpu[key] for key in mine) / total), mine

    def _python_of_commits(self, cpu: _Cpu, total: float) -> Iterator[tuple[Bottleneck, list[_Key]]]:
        sites = {use.site for use in self.window.statements if use.fingerprint == "COMMIT"}
        mine = [key for key in cpu if key[1] in sites]
        share = sum(cpu[key] for key in mine) / total
        if share >= SHARE and self._commits_per_request() >= COMMITS:
            yield from ((with_share(one, share), mine) for one in self._of_commits())

    def _python_of_n_plus_ones(self, cpu: _Cpu, total: float) -> Iterator[tuple[Bottleneck, list[_Key]]]:
        """A statement in a loop costs Python as well: the CPU of its lines, and of its routes' statements."""
        for uses in self._loops():
            sites, routes = {use.site for use in uses}, {use.route for use in uses}
            mine = [
                key
                for key in cpu
                if (key[1] and key[1] in sites)
                or (not key[1] and key[0] in routes and key[2] in STATEMENT_KINDS)
            ]
            share = sum(cpu[key] for key in mine) / total
            if share >= SHARE:
                yield self._n_plus_one(uses, share), mine

    def _python_of_rows(self, cpu: _Cpu, total: float) -> Iterator[tuple[Bottleneck, list[_Key]]]:
        for use in self._large_results():
            mine = [
                key
                for key in cpu
                if (use.site and key[1] == use.site) or (key[0] == use.route and key[2] in STATEMENT_KINDS)
            ]
            share = sum(cpu[key] for key in mine) / total
            if share >= SHARE:
                yield self._fetched(use, share), mine

    def _python_of_kinds(self, cpu: _Cpu, total: float) -> Iterator[tuple[Bottleneck, list[_Key]]]:
        """Kinds of library work: serialisation, password hashes, clients that are made for each request."""
        kinds: dict[str, list[_Key]] = defaultdict(list)
        for key in cpu:
            kind = "password hash" if _HASH.search(self.facts.sources.get(key[1], "")) else key[2]
            kinds[kind].append(key)
        for kind, (cause, least, title, remedy) in _KINDS_OF_WORK.items():
            mine = kinds.get(kind, [])
            share = sum(cpu[key] for key in mine) / total
            if share < least:
                continue
            routes: Sums[str] = Sums()
            lines: Sums[str] = Sums()
            for key in mine:
                routes[key[0]] += cpu[key]
                if key[1]:
                    lines[key[1]] += cpu[key]
            routes.pop("", None)
            route = routes.largest("")
            where = lines.largest("") or self._endpoint(route)
            yield (
                self._bottleneck(
                    cause,
                    "CPU",
                    title.format(route=route or "the app"),
                    share=share,
                    where=where,
                    evidence=self._answer_size(route) if cause == "serialisation" else (),
                    remedy=remedy,
                ),
                mine,
            )

    def _answer_size(self, route: str) -> tuple[str, ...]:
        for one in self.window.evidence.routes:
            if one.route == route and one.requests:
                return (f"a response has {one.bytes / one.requests / 1000:,.1f} kB on average",)
        return ()

    def _plain_lines(self, cpu: _Cpu, total: float) -> Iterator[Bottleneck]:
        lines: Sums[str] = Sums()
        for (_, line, kind, _), seconds in cpu.items():
            if line and kind not in STATEMENT_KINDS:
                lines[line] += seconds
        for line, near in _clusters(lines, lambda one: lines[one]):
            share = sum(lines[one] for one in near) / total
            if share >= SHARE:
                route = max((key for key in cpu if key[1] in near), key=lambda key: cpu[key])[0]
                source = self.facts.sources.get(line, "")
                yield self._bottleneck(
                    "plain_cpu",
                    "CPU",
                    f"{route or 'the app'} computes",
                    share=share,
                    where=line,
                    evidence=(source.strip()[:STATEMENT_SHOWN],) if source else (),
                    remedy="make this cheaper, cache its result, or compute it in a background task",
                )

    # Waiting

    def _of_blocked_loop(self) -> Iterator[Bottleneck]:
        """Calls that block the event loop, by line."""
        lines = self._grouped(lambda one: one.place == "loop" and one.state != "run")
        states = {
            (one.route, one.line, one.detail): one.state
            for one in self.window.evidence.samples
            if one.place == "loop" and one.state != "run"
        }
        total = sum(lines.values()) or 1.0
        for (route, line, detail), seconds in lines.ranked()[:5]:
            if seconds < SHARE * total:
                continue
            state = states[route, line, detail]
            yield self._bottleneck(
                "blocking_call",
                "Event loop",
                f"{route or 'the app'} {_BLOCKS.get(state, 'blocks')}{f' ({detail})' if detail and state in ('http', 'io') else ''} "
                "on the event loop",
                share=seconds / total,
                where=line or self._endpoint(route),
                evidence=("no other request of this worker proceeds meanwhile",),
                remedy=_UNBLOCKS.get(
                    state, "move it to a thread (asyncio.to_thread), or declare the endpoint with def"
                ),
            )
        if any(one.state == "db" and one.place == "loop" for one in self.window.evidence.samples):
            spent = sum(one.total_s for one in self.window.statements) or 1.0
            yield from (one for one in self._n_plus_ones(spent) if (one.share or 0.0) >= SHARE)

    def _of_deadlocks(self) -> Iterator[Bottleneck]:
        lines = self._grouped(lambda one: one.state == "pool" and one.holds)
        for (route, line, _), _ in lines.ranked()[:1]:
            yield self._bottleneck(
                "deadlock",
                "Connection Pool",
                f"{route} waits for a second connection while it holds one",
                share=None,
                where=line or self._endpoint(route),
                evidence=("all who hold a connection wait for another: none is returned before the timeout",),
                remedy="use one connection (one session) in a request, or return it before the next is taken",
            )

    def _of_leaks(self) -> Iterator[Bottleneck]:
        pool = self.window.pools[0]
        site = next((use.site for use in self.window.statements if use.site), "")
        yield self._bottleneck(
            "leak",
            "Connection Pool",
            f"{pool.held_after} connections are held by requests that have ended",
            share=None,
            where=site or pool.site or None,
            evidence=(f"the pool has {pool.size + max(pool.max_overflow, 0)}",),
            remedy="return each connection: with Session(…), or a dependency that closes it",
        )

    def _of_holders(self) -> Iterator[Bottleneck]:
        """What requests do with a connection that they do not use meanwhile."""
        lines = self._grouped(lambda one: one.holds and one.state == self.limit.held_by)
        total = sum(one.seconds for one in self.window.evidence.samples if one.holds) or 1.0
        for (route, line, detail), seconds in lines.ranked()[:3]:
            if seconds < SHARE * total:
                continue
            doing = _HOLDS.get(self.limit.held_by, "does other work")
            yield self._bottleneck(
                "held_during_call",
                "Connection Pool",
                f"{route} {doing}{f' ({detail})' if detail and self.limit.held_by == 'http' else ''} "
                "while it holds a connection",
                share=seconds / total,
                where=line or self._endpoint(route),
                evidence=(f"connections are held {100 * seconds / total:.0f} % of their time for this",),
                remedy="return the connection before this (end the session or transaction), or take it after",
            )
        statements = self.window.states(holds=True)["db"] / total
        if self.limit.held_by != "db" and statements >= SHARE:
            for cause in self._of_statements():
                share = (cause.share or 0.0) * statements
                if share >= SHARE:
                    yield with_share(cause, share)

    def _of_waits(self) -> Iterator[Bottleneck]:
        """What threads wait for."""
        state = self.limit.held_by
        lines = self._grouped(lambda one: one.state == state and bool(one.route))
        total = (
            sum(seconds for one, seconds in self.window.states().items() if one not in ("thread", "loop"))
            or 1.0
        )
        for (route, line, detail), seconds in lines.ranked()[:3]:
            if seconds < SHARE * total:
                continue
            yield self._bottleneck(
                "threads" if self.limit.resource == "threads" else "delay",
                "Threads" if self.limit.resource == "threads" else "Delay",
                f"{route} {_HOLDS.get(state, 'waits')}{f' ({detail})' if detail else ''}",
                share=seconds / total,
                where=line or self._endpoint(route),
                remedy="an async endpoint and client hold no thread meanwhile; more threads do as well"
                if self.limit.resource == "threads"
                else "make it shorter, or do without it",
            )

    def _of_calls(self) -> Iterator[Bottleneck]:
        calls = self.window.calls
        total = sum(one.total_s for one in calls) or 1.0
        by_line: dict[tuple[str, str], list[StatementStats]] = defaultdict(list)
        for one in calls:
            by_line[call_host(one.fingerprint), one.site].append(one)
        for (host, site), uses in by_line.items():
            share = sum(one.total_s for one in uses) / total
            if share >= SHARE:
                yield self._bottleneck(
                    "external_service",
                    "Service",
                    f"{route_names(uses)} waits for {host}",
                    share=share,
                    where=site or self._endpoint(uses[0].route),
                    evidence=(executions(*uses),),
                    remedy=self.limit.remedy,
                )

    # Common parts

    def _grouped(self, wanted: Callable[[SampleStats], bool]) -> Sums[tuple[str, str, str]]:
        """Return sampled seconds by route, line and host; those without a line count for the commonest one."""
        found: Sums[tuple[str, str, str]] = Sums()
        for one in self.window.evidence.samples:
            if wanted(one):
                found[one.route, one.line, one.detail if one.state in ("http", "io") else ""] += one.seconds
        for key in [key for key in found if not key[1]]:
            lined = [other for other in found if other[1] and (other[0], other[2]) == (key[0], key[2])]
            if lined:
                found[max(lined, key=lambda other: found[other])] += found.pop(key)
        return found

    def _endpoint(self, route: str) -> str | None:
        routes = self.window.evidence.routes
        return next((one.endpoint for one in routes if one.route == route), None) or None

    def _bottleneck(
        self,
        cause: str,
        kind: str,
        title: str,
        *,
        share: float | None,
        where: str | None,
        remedy: str,
        evidence: tuple[str, ...] = (),
        proven: bool = False,
    ) -> Bottleneck:
        return Bottleneck(
            cause=cause,
            kind=kind,
            title=title,
            severity=severity(share),
            share=None if share is None else min(share, 1.0),
            where=where,
            evidence=evidence,
            remedy=remedy,
            proof="proven" if proven else "suspected",
        )


_Key = tuple[str, str, str, str]  # route, line, kind of work, place
_Cpu = Sums[_Key]

_KINDS = {"open": "idle in its transaction", "cpu": "computing", "other": "running", "wal": "committing"}
_BLOCKS = {"db": "waits for a statement", "http": "waits for another service", "sleep": "sleeps",
           "lock": "waits for a lock", "io": "waits for a socket or file"}  # fmt: skip
_UNBLOCKS = {
    "db": "use an async driver, or declare the endpoint with def: it then runs in a thread",
    "http": "use an async client (httpx.AsyncClient), or declare the endpoint with def",
    "sleep": "await asyncio.sleep(…) in place of time.sleep(…)",
}
_HOLDS = {"http": "waits for another service", "run": "computes", "sleep": "sleeps",
          "lock": "waits for a lock", "io": "waits for a socket or file", "send": "sends its response",
          "loop": "waits for the event loop", "db": "waits for statements"}  # fmt: skip
_KINDS_OF_WORK: Mapping[str, tuple[str, float, str, str]] = {
    "password hash": (
        "password_hash", SHARE, "{route} computes a password hash",
        "hash in a thread (asyncio.to_thread, or a def endpoint): it releases the interpreter; and limit logins",
    ),
    "client set-up": (
        "client_per_request", SHARE, "{route} sets up a client for each request",
        "create the client (or engine) once, at start-up, and share it between requests",
    ),
    "serialisation": (
        "serialisation", SERIALISATION, "{route} serialises its response",
        "answer with fewer objects (pages, fewer fields), or cache the serialised response",
    ),
    "instrumentation": (
        "instrumentation", SHARE, "instrumentation takes CPU in {route}",
        "sample fewer requests, or switch off what is not read",
    ),
    "middleware": (
        "middleware", SHARE, "BaseHTTPMiddleware takes CPU in {route}",
        "write the middleware as a plain ASGI class",
    ),
}  # fmt: skip


def find_causes(facts: Facts, limit: Limit) -> list[Bottleneck]:
    """Return what uses the limit up, the largest share first; empty when nothing stands out."""
    return Causes(facts, limit).find() if limit else []


def severity(share: float | None) -> Severity:
    """Return the severity of a share of the limit's use."""
    if share is None or share >= 0.5:
        return "critical"
    return "high" if share >= SHARE else "medium"


def repetition_remedy(statement: str) -> str:
    """Return how to run a repeated statement once, by its kind."""
    text = statement.upper()
    if text.startswith("INSERT"):
        return "write all rows with one statement (session.add_all, or insert() with a list of values)"
    if text.startswith(("UPDATE", "DELETE")):
        return "change all rows with one statement (WHERE … IN), or in batches"
    if " FOR UPDATE" in text or " FOR SHARE" in text:
        return "lock all rows with one statement (WHERE … IN … FOR UPDATE), in the order of their keys"
    if _AGGREGATE.search(text):
        return "compute all of them with one statement (GROUP BY the key), or count in the first statement"
    if not text.startswith(("SELECT", "WITH")) or " FROM " not in text:
        return "run it once for all of them, outside of the loop"
    if " WHERE " not in text:
        return "run it once and keep its rows, outside of the loop"
    return (
        "load the related rows with the first statement (selectinload or joinedload), "
        "or query all keys at once (IN)"
    )


def route_names(uses: Sequence[StatementStats]) -> str:
    """Return the route that spends the most time there, and the number of the others."""
    first, *others = dict.fromkeys(use.route for use in sorted(uses, key=lambda use: -use.total_s))
    return f"{first} and {len(others)} more route{'s' if others[1:] else ''}" if others else first


def executions(*uses: StatementStats) -> str:
    """Return how often statements ran, and how long each took."""
    total, count = sum(use.total_s for use in uses), sum(use.executions for use in uses)
    return f"{count:,} executions, {total * 1000 / max(count, 1):.1f} ms each"


def abbreviate(statement: str) -> str:
    """Shorten a statement to one line of a report: tables matter more than a long list of columns."""
    statement = _COLUMNS.sub("SELECT … FROM ", statement)
    return statement if len(statement) <= STATEMENT_SHOWN else f"{statement[: STATEMENT_SHOWN - 1]}…"


def with_share(one: Bottleneck, share: float) -> Bottleneck:
    """Return a cause with another share of the limit's use."""
    return replace(one, share=min(share, 1.0), severity=severity(share))


def _clusters(
    lines: Iterable[str] | Mapping[str, float], weight: Callable[[str], float]
) -> Iterator[tuple[str, set[str]]]:
    """Yield groups of neighbouring lines of one file with their heaviest line, the heaviest line first."""
    left = dict.fromkeys(lines)
    while left:
        heaviest = max(left, key=weight)
        file, number = _split(heaviest)
        near = {one for one in left if _split(one)[0] == file and abs(_split(one)[1] - number) <= NEIGHBOURS}
        yield heaviest, near
        for one in near:
            del left[one]


def _split(line: str) -> tuple[str, int]:
    file, _, number = line.rpartition(":")
    return file, int(number) if number.isdigit() else 0
