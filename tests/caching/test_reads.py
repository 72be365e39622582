"""What a block of code reads, by name."""

from __future__ import annotations

import asyncio
import threading

from tenfold.reads import ReadLog

READS = ReadLog("tests")


def test_names_are_collected_inside_of_a_block_and_for_the_blocks_around_it() -> None:
    READS.add("before")
    with READS.collect() as outer:
        READS.add("a")
        with READS.collect() as inner:
            READS.add("b", "c")
        assert READS.is_collecting
    assert (outer, inner) == ({"a", "b", "c"}, {"b", "c"})
    assert not READS.is_collecting


def test_threads_and_tasks_are_apart() -> None:
    async def task(name: str) -> set[str]:
        with READS.collect() as found:
            await asyncio.sleep(0)
            READS.add(name)
            await asyncio.sleep(0)
        return found

    async def main() -> list[set[str]]:
        return await asyncio.gather(task("a"), task("b"))

    with READS.collect() as found:
        thread = threading.Thread(target=READS.add, args=("of another thread",))
        thread.start()
        thread.join()
    assert found == set()
    assert asyncio.run(main()) == [{"a"}, {"b"}]
