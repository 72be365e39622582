"""Checks of sharded tables: rows where they belong, a killed shard, and a process with an older directory."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from tenfold.errors import TargetError
from tenfold.settings import Settings
from tenfold.settings.verify import VerifySettings
from tenfold.types import Finding, Stack, Verdict
from tenfold.verify.kit.instances import kill
from tenfold.verify.kit.load_clients import LoadClients, SentRequest, status_summary
from tenfold.verify.kit.session_user import SessionUser, require_login
from tenfold.verify.kit.user_agent import UserAgent

if TYPE_CHECKING:
    from tenfold.stack.servers.shards import ShardServer

PLACED = "rows are on their own shard"
SPREAD = "keys are spread evenly"
ALONE = "a dead shard fails alone"
STALE = "an older directory writes nothing"

_CLIENTS = 6
_AROUND = 60  # requests before and after a kill, and while the server is gone
_WITHIN_S = 20.0
_TIMEOUT_S = 5.0
_RECOVERS_S = 15.0
_LEAST_KEYS = 20  # for each shard, for chi-squared
_UNLIKELY = 0.001
_UNEVEN = 0.2  # of a shard's share: chi-squared finds smaller differences in many keys, which do not matter
_REFUSED = 4
_ROUTE = "write in a session of its key: database.session_for(key), and run tenfold shards check"


# ------------------------------------------------------------------ where rows are


def check_placement(stack: Stack, settings: Settings) -> Finding:
    """Compare the bucket of every row with its key, and with the buckets that its shard has."""
    found = {name: _misplaced(url) for name, url in _admin_urls(stack).items()}
    return judge_placement(found)


def judge_placement(found: Mapping[str, Mapping[str, tuple[int, int]]]) -> Finding:
    """The finding about rows, and misplaced ones among them, by shard and table; pure."""
    tables = {table for counts in found.values() for table in counts}
    rows = sum(total for counts in found.values() for total, _ in counts.values())
    wrong = {
        f"{table} on {name}": bad
        for name, counts in found.items()
        for table, (_, bad) in counts.items()
        if bad
    }
    numbers = {"tables": len(tables), "rows": rows, "misplaced": sum(wrong.values())}
    if not rows:
        claim = "no sharded table has rows: the shards are not used" if tables else "no table is sharded"
        return Finding(PLACED, claim, Verdict.FAIL, numbers, _ROUTE)
    if wrong:
        where = max(wrong, key=lambda place: wrong[place])
        claim = f"{sum(wrong.values()):,} of {rows:,} rows are misplaced, {wrong[where]:,} of {where}"
        return Finding(PLACED, claim, Verdict.FAIL, numbers, _ROUTE)
    claim = f"{rows:,} rows of {len(tables)} tables are on the shard of their key"
    return Finding(PLACED, claim, Verdict.PASS, numbers)


def _misplaced(url: str) -> dict[str, tuple[int, int]]:
    counts = {}
    for table, key in _tables(url):
        query = (
            f"SELECT count(*), count(*) FILTER (WHERE b.bucket IS NULL OR NOT b.owned "  # noqa: S608
            f"OR (t.bucket & 4095) <> tenfold.bucket({key})) "
            f"FROM {table} t LEFT JOIN tenfold.buckets b ON b.bucket = t.bucket"
        )
        ((total, bad), *_) = _fetch(url, query)
        counts[table] = (total, bad)
    return counts


def check_spread(stack: Stack, settings: Settings) -> Finding:
    """Count the different keys on each shard, and compare them with its share of the buckets."""
    keys, shares = {}, {}
    for name, url in _admin_urls(stack).items():
        each = [f"SELECT DISTINCT {key} AS key FROM {table} t" for table, key in _tables(url)]  # noqa: S608
        query = f"SELECT count(DISTINCT key) FROM ({' UNION ALL '.join(each)}) k"  # noqa: S608
        keys[name] = int(_fetch(url, query)[0][0]) if each else 0
        owned = "SELECT count(*) FROM tenfold.buckets WHERE owned AND bucket < 4096"
        shares[name] = int(_fetch(url, owned)[0][0])
    return judge_spread(keys, shares)


def judge_spread(keys: Mapping[str, int], shares: Mapping[str, int]) -> Finding:
    """The finding about the number of keys and of buckets of each shard; pure but for scipy."""
    total, buckets = sum(keys.values()), sum(shares.values())
    used = [name for name in keys if shares[name]]
    numbers: dict[str, float | int | str] = {
        "keys": total,
        **{f"keys on {name}": keys[name] for name in keys},
    }
    if total < _LEAST_KEYS * len(used):
        claim = f"{total} keys say nothing about {len(used)} shards"
        return Finding(SPREAD, claim, Verdict.SKIP, numbers, "let prepare write rows of more keys")
    from scipy.stats import chisquare

    expected = [total * shares[name] / buckets for name in used]
    chance = float(chisquare([keys[name] for name in used], expected).pvalue)
    off = [abs(keys[name] / wanted - 1) for name, wanted in zip(used, expected, strict=True)]
    numbers |= {"chance": round(chance, 4), "most_off": round(max(off), 3)}
    counts = ", ".join(f"{name} {keys[name]:,}" for name in used)
    if chance < _UNLIKELY and max(off) > _UNEVEN:
        claim = f"{total:,} keys are spread unevenly: {counts}"
        return Finding(SPREAD, claim, Verdict.FAIL, numbers, _ROUTE)
    return Finding(SPREAD, f"{total:,} keys, {max(off):.0%} off at most: {counts}", Verdict.PASS, numbers)


# ------------------------------------------------------------------ a dead shard


def check_shard_loss(stack: Stack, settings: Settings) -> Finding:
    """Kill the server of one user's shard while two users write; count what was acknowledged afterwards."""
    users = _users(stack, settings.verify)
    if isinstance(homes := _homes(stack, settings.verify, users, ALONE), Finding):
        return homes
    hurt = _server_of(stack, homes[0].shard)
    line, body = settings.verify.write, settings.verify.write_body
    clients = [users[number % 2].copy() for number in range(_CLIENTS)]
    before = _rows(_admin_urls(stack)[homes[0].shard])

    def send(number: int) -> int:
        return clients[number].status(line, body=body, values={"value": f"shard {time.monotonic_ns()}"})

    with LoadClients(send, clients=_CLIENTS) as load:
        load.wait_for(_AROUND, within_s=_WITHIN_S)
        kill(hurt)
        from_here = len(load.sent)
        load.wait_for(_AROUND, within_s=_WITHIN_S)
        until_here = len(load.sent)
        stack.restart(hurt)
        recovered = _wait_for_success(clients[0], line, body)
        load.wait_for(_AROUND, within_s=_WITHIN_S)
    stored = _rows(_admin_urls(stack)[homes[0].shard]) - before
    return judge_shard_loss(
        load.sent,
        load.sent[from_here:until_here],
        hurt=homes[0].shard,
        lost=_lost(load.sent, stored, homes[0].rows),
        recovered=recovered,
    )


def judge_shard_loss(
    sent: Sequence[SentRequest], during: Sequence[SentRequest], *, hurt: str, lost: int, recovered: bool
) -> Finding:
    """The finding about two users' writes, the even clients those of the dead shard's; pure."""
    others = [one for one in sent if one.client % 2 and not 200 <= one.status < 300]
    own = [one for one in during if not one.client % 2]
    disorderly = [one for one in sent if one.status in (0, 500, 502, 504) and not one.client % 2]
    numbers = {"requests": len(sent), "others_failed": len(others), "own_failed": len(own), "lost": lost}
    if others:
        count = sum(one.client % 2 for one in sent)
        claim = f"without {hurt}, {len(others)} of {count} writes of others failed ({status_summary(others)})"
        remedy = "let a request open a session on the shard of its key only"
    elif lost:
        claim = f"{lost} writes that were answered with 2xx are missing on {hurt}"
        remedy = "keep PostgreSQL's fsync and synchronous_commit"
    elif not recovered:
        claim = f"{_RECOVERS_S:g} s after {hurt} was back, its writes fail"
        remedy = "let the pool test its connections: DatabaseRouter does"
    elif len(disorderly) > _CLIENTS:
        claim = f"without {hurt}, its writes are answered with {status_summary(disorderly)}"
        remedy = "answer ShardDownError with 503 and Retry-After"
    elif not own:
        claim = f"no write reached {hurt} while it was down"
        return Finding(ALONE, claim, Verdict.SKIP, numbers, "repeat it, on an idle machine")
    else:
        claim = f"without {hurt} its {len(own)} writes were refused, none of the others; none was lost"
        return Finding(ALONE, claim, Verdict.PASS, numbers)
    return Finding(ALONE, claim, Verdict.FAIL, numbers, remedy)


def _lost(sent: Sequence[SentRequest], stored: int, rows: int) -> int:
    """Acknowledged writes of the hurt shard's user that have no rows; each writes ``rows`` of them."""
    acknowledged = sum(200 <= one.status < 300 for one in sent if not one.client % 2)
    return max(0, acknowledged - stored // rows)


def _wait_for_success(user: UserAgent, line: str, body: str) -> bool:
    deadline = time.monotonic() + _RECOVERS_S
    while time.monotonic() < deadline:
        if 200 <= user.status(line, body=body, values={"value": "back"}) < 300:
            return True
        time.sleep(0.1)
    return False


# ------------------------------------------------------------------ an older directory


def check_older_directory(stack: Stack, settings: Settings) -> Finding:
    """Let a shard be one epoch ahead of the directory, which is then an older one: nothing may be written."""
    users = _users(stack, settings.verify)
    if isinstance(homes := _homes(stack, settings.verify, users, STALE), Finding):
        return homes
    known, shard = settings.verify, homes[0].shard
    url = _admin_urls(stack)[shard]
    with _one_epoch_ahead(url):
        before = _rows(url)
        writes = [_status(users[0], known.write, known.write_body) for _ in range(_REFUSED)]
        read = _status(users[0], known.read) if known.read else 0
        other = _status(users[1], known.write, known.write_body)
        written = _rows(url) - before
    numbers = {"writes": len(writes), "rows_written": written, "read": read, "other": other}
    accepted = sum(200 <= status < 300 for status in writes)
    if accepted or written:
        claim = f"{accepted} of {len(writes)} writes to {shard} were accepted in an epoch that it has left"
        return Finding(STALE, claim, Verdict.FAIL, numbers, _ROUTE)
    if 200 <= read < 300:
        claim = f"{known.read} was answered from {shard} in an epoch that it has left"
        return Finding(STALE, claim, Verdict.FAIL, numbers, _ROUTE)
    if not 200 <= other < 300:
        claim = f"a user of another shard was answered with {other}"
        return Finding(STALE, claim, Verdict.FAIL, numbers, "let a request use the shard of its key only")
    claim = f"{len(writes)} writes and a read in an epoch that {shard} has left were refused, others worked"
    return Finding(STALE, claim, Verdict.PASS, numbers)


@contextmanager
def _one_epoch_ahead(url: str) -> Iterator[None]:
    _fetch(url, "UPDATE tenfold.buckets SET epoch = epoch + 1 RETURNING 1")
    try:
        yield
    finally:
        _fetch(url, "UPDATE tenfold.buckets SET epoch = epoch - 1 RETURNING 1")


def _status(user: UserAgent, line: str, body: str = "") -> int:
    return user.status(line, body=body, values={"value": f"epoch {time.monotonic_ns()}"})


# ------------------------------------------------------------------ users and their shards


class _Home(NamedTuple):
    """A user's shard, and how many rows a write of theirs makes there."""

    shard: str
    rows: int


def _users(stack: Stack, known: VerifySettings) -> list[SessionUser]:
    users = []
    for as_other_user in (False, True):
        user = SessionUser(stack.url, settings=known)
        user.timeout_s = _TIMEOUT_S
        require_login(user.sign_in(as_other_user=as_other_user), known)
        users.append(user)
    return users


def _homes(
    stack: Stack, known: VerifySettings, users: Sequence[UserAgent], check: str
) -> list[_Home] | Finding:
    """Find each user's shard by a write; a SKIP finding where one server has both."""
    urls = _admin_urls(stack)
    homes: list[_Home] = []
    for user in users:
        before = {name: _rows(url) for name, url in urls.items()}
        answer = user.request(known.write, body=known.write_body, values={"value": "whose shard"})
        if not answer.ok:
            raise TargetError(f"{known.write} answers {answer.status}: see the log of the app")
        more = {name: _rows(url) - before[name] for name, url in urls.items()}
        changed = {name: rows for name, rows in more.items() if rows > 0}
        if len(changed) != 1:
            raise TargetError(
                f"{known.write} wrote rows on {len(changed)} shards, not on one: correct verify.write"
            )
        homes.append(_Home(*changed.popitem()))
    if _server_of(stack, homes[0].shard) is _server_of(stack, homes[1].shard):
        where = f"{homes[0].shard} and {homes[1].shard}"
        claim = f"both users are on one server: {where}"
        return Finding(check, claim, Verdict.SKIP, remedy="name another verify.other_user")
    return homes


def _shard_servers(stack: Stack) -> list[ShardServer]:
    return [cast("ShardServer", server) for server in stack.servers if server.kind == "shard server"]


def _server_of(stack: Stack, shard: str) -> ShardServer:
    return next(server for server in _shard_servers(stack) if shard in server.shards)


def _admin_urls(stack: Stack) -> dict[str, str]:
    urls = {name: url for server in _shard_servers(stack) for name, url in server.shard_admin_urls().items()}
    return dict(sorted(urls.items()))


def _tables(url: str) -> list[tuple[str, str]]:
    """The sharded tables of a shard and the expression of their key, both quoted."""
    rows = _fetch(
        url,
        "SELECT name::regclass::text, (SELECT string_agg(format('tenfold.key(t.%I)', k), ' || ' ORDER BY n) "
        "FROM unnest(key) WITH ORDINALITY u(k, n)) FROM tenfold.tables WHERE to_regclass(name) IS NOT NULL",
    )
    return [(table, key) for table, key in rows]


def _rows(url: str) -> int:
    tables = [table for table, _ in _tables(url)]
    return sum(int(_fetch(url, f"SELECT count(*) FROM {table}")[0][0]) for table in tables)  # noqa: S608


def _fetch(url: str, query: str) -> list[tuple[Any, ...]]:
    import psycopg

    with psycopg.connect(url, autocommit=True, connect_timeout=5) as connection:
        return connection.execute(query.encode()).fetchall()
