"""The lease of the directory, in virtual time; and a database of the directory that does not answer."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable

import pytest

from tenfold.errors import DirectoryError
from tenfold.sharding import ShardedDatabase
from tenfold.sharding.directory import Directory
from tenfold.sharding.lease import DirectoryLease
from tests.sharding.conftest import Shards
from tests.sharding.support.models import Order
from tests.support.waiting import eventually

FIRST = Directory.create(["a"], ("int",))


class Source:
    """A directory to read, which can fail or hang; and the clock."""

    def __init__(self) -> None:
        self.now = 100.0
        self.reads = 0
        self.directory = FIRST
        self.error: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()

    def load(self, known: Directory | None) -> Directory:
        self.reads += 1
        self.gate.wait(20)
        if self.error:
            raise self.error
        return self.directory

    def lease(self) -> DirectoryLease:
        return DirectoryLease(self.load, lease_s=6.0, clock=lambda: self.now)


def test_directory_is_read_once_for_many() -> None:
    source = Source()
    lease = source.lease()
    source.gate.clear()
    found: list[Directory] = []
    threads = [threading.Thread(target=lambda: found.append(lease.get())) for _ in range(20)]
    for thread in threads:
        thread.start()
    eventually(lambda: source.reads == 1)
    source.gate.set()
    for thread in threads:
        thread.join(10)
    assert found == [FIRST] * 20 and source.reads == 1


def test_directory_is_renewed_beside_its_users() -> None:
    source = Source()
    lease = source.lease()
    lease.get()
    source.directory = second = FIRST.add_shards(["b"])
    source.now += 2.5  # above a third of the lease
    source.gate.clear()
    assert lease.get() is FIRST  # without waiting for the read
    source.gate.set()
    eventually(lambda: lease.get() is second)


@pytest.mark.guarantee(
    "past its lease a process routes nothing", pattern="sharding", under="a directory that cannot be read"
)
def test_expired_lease_that_cannot_be_renewed_routes_nothing() -> None:
    source = Source()
    lease = source.lease()
    lease.get()
    source.error = DirectoryError("the directory of shards cannot be read: it is down")
    source.now += 5.9
    assert lease.get() is FIRST
    source.now += 0.2
    for _ in range(3):
        with pytest.raises(DirectoryError, match=r"it is down; last read 6 s ago, so that nothing is routed"):
            lease.get()
    reads = source.reads
    source.error = None
    source.now += 1  # failures are remembered for half a second
    assert lease.get() is FIRST and source.reads == reads + 1


@pytest.mark.control("past its lease a process routes nothing", "with a lease without end")
def test_the_control_endless_lease_goes_on_routing() -> None:
    source = Source()
    lease = DirectoryLease(source.load, lease_s=1e9, clock=lambda: source.now)
    lease.get()
    source.error = DirectoryError("down")
    source.now += 3600
    assert lease.get() is FIRST


def test_renewal_begins_after_the_call() -> None:
    source = Source()
    lease = source.lease()
    source.gate.clear()
    first = threading.Thread(target=lease.get)
    first.start()
    eventually(lambda: source.reads == 1)
    found: list[Directory] = []
    waiting = [threading.Thread(target=lambda: found.append(lease.renew())) for _ in range(5)]
    for thread in waiting:
        thread.start()
    source.gate.set()
    for thread in (first, *waiting):
        thread.join(10)
    assert len(found) == 5 and source.reads == 2  # one read for the five, after that of the first


def test_directory_that_hangs_is_waited_for_two_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tenfold.sharding.lease._WAIT_S", 0.05)
    source = Source()
    source.gate.clear()
    lease = source.lease()
    with pytest.raises(DirectoryError, match="does not answer within"):
        lease.get()
    with pytest.raises(DirectoryError, match="does not answer within"):
        asyncio.run(lease.get_async())
    source.gate.set()
    eventually(lambda: lease._held is not None)
    assert asyncio.run(lease.get_async()) is FIRST


def test_unexpected_error_is_not_hidden() -> None:
    source = Source()
    source.error = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        source.lease().get()


def test_fork_reads_for_itself() -> None:
    source = Source()
    lease = source.lease()
    lease.get()
    lease._lock.acquire()  # another thread of the parent holds it for ever
    read, write = os.pipe()
    if not (child := os.fork()):
        os.write(write, str(lease.get().version).encode())
        os._exit(0)
    lease._lock.release()
    os.waitpid(child, 0)
    assert os.read(read, 10) == b"1"


# ------------------------------------------------------------------ on real servers


def test_nothing_is_routed_while_the_directory_hangs_beyond_the_lease(
    make_database: Callable[..., ShardedDatabase], shards: Shards
) -> None:
    """The primary has the directory, and is stopped; the shards are on other servers and run."""
    database = make_database(lease_s=0.5)
    user = shards.user_on("shard1")
    with database.session_for(user) as session:
        session.add(Order(user_id=user))
    stopped = shards.primary.pids()
    try:
        for pid in stopped:
            os.kill(pid, 19)
        eventually(lambda: database._lease._clock() - database._lease._held[1] > 0.5)  # type: ignore[index]
        with pytest.raises(DirectoryError, match="nothing is routed"), database.session_for(user) as session:
            session.add(Order(user_id=user))
    finally:
        for pid in stopped:
            os.kill(pid, 18)
    eventually(lambda: database._lease._reading is None)
    with database.session_for(user) as session:
        session.add(Order(user_id=user))
    assert shards.execute("shard1", f"SELECT count(*) FROM orders WHERE user_id = {user}") == [(2,)]


def test_directory_that_is_down_is_one_sentence(make_database: Callable[..., ShardedDatabase]) -> None:
    database = make_database(directory="postgresql://u:secret-word@127.0.0.1:1/none")
    with pytest.raises(DirectoryError) as down, database.session_for(1):
        pass
    assert "cannot be read" in str(down.value)
    assert "secret-word" not in str(down.value) and "\n" not in str(down.value)
