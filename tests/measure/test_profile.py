"""profile_function: profiled calls keep their results, and the profile is printed."""

from __future__ import annotations

import asyncio
import cProfile
import io
import threading
import time

import pytest

from tenfold.errors import MeasurementError
from tenfold.measure.profile import profile_function


def inner() -> int:
    return sum(range(100_000))


def test_bare_decorator_keeps_the_result_and_prints(capsys: pytest.CaptureFixture[str]) -> None:
    @profile_function
    def work(a: int, *, b: int) -> int:
        """What it does."""
        return inner() * 0 + a + b

    assert work(1, b=2) == 3
    assert (work.__name__, work.__doc__) == ("work", "What it does.")
    printed = capsys.readouterr().out
    assert "work took" in printed
    assert "cumulative" in printed
    assert "(inner)" in printed


def test_exception_passes_through_and_is_profiled() -> None:
    stream = io.StringIO()

    @profile_function(stream=stream)
    def fail() -> None:
        inner()
        raise KeyError("x")

    with pytest.raises(KeyError):
        fail()
    assert "(inner)" in stream.getvalue()
    with pytest.raises(KeyError):  # the next call is profiled again
        fail()
    assert stream.getvalue().count("fail took") == 2


def test_async_function_stays_async() -> None:
    stream = io.StringIO()

    @profile_function(stream=stream)
    async def work() -> int:
        await asyncio.sleep(0.02)
        return inner()

    @profile_function(stream=stream)
    async def fail() -> None:
        raise KeyError

    assert asyncio.iscoroutinefunction(work)
    assert asyncio.run(work()) == 4999950000
    assert "work took" in stream.getvalue()
    assert "(inner)" in stream.getvalue()
    with pytest.raises(KeyError):
        asyncio.run(fail())


def test_only_the_top_functions_are_printed() -> None:
    stream = io.StringIO()

    @profile_function(top=1, stream=stream)
    def work() -> int:
        return inner()

    work()
    assert "due to restriction <1>" in stream.getvalue()
    assert "(inner)" not in stream.getvalue()


def test_nested_and_concurrent_calls_run_unprofiled() -> None:
    stream = io.StringIO()

    @profile_function(stream=stream)
    def nested() -> int:
        return inner()

    @profile_function(stream=stream)
    def outer() -> int:
        thread = threading.Thread(target=nested)
        thread.start()
        thread.join()
        return nested()

    assert outer() == 4999950000
    assert "outer took" in stream.getvalue()
    assert "nested took" not in stream.getvalue()


def test_concurrent_coroutines_return_and_one_is_profiled() -> None:
    stream = io.StringIO()

    @profile_function(stream=stream)
    async def work(number: int) -> int:
        await asyncio.sleep(0.01)
        return number

    async def run() -> list[int]:
        return await asyncio.gather(*(work(number) for number in range(5)))

    assert asyncio.run(run()) == [0, 1, 2, 3, 4]
    assert stream.getvalue().count("work took") == 1


def test_call_under_another_profiler_runs_unprofiled() -> None:
    @profile_function(stream=io.StringIO())
    def work() -> int:
        return inner()

    other = cProfile.Profile()
    other.enable()
    try:
        assert work() == 4999950000
    finally:
        other.disable()


def test_sample_is_the_share_of_profiled_calls() -> None:
    stream = io.StringIO()

    @profile_function(sample=0.2, stream=stream)
    def work() -> None:
        pass

    for _ in range(300):
        work()
    assert 20 <= stream.getvalue().count("work took") <= 110


def test_closed_stream_does_not_change_the_result() -> None:
    stream = io.StringIO()
    stream.close()

    @profile_function(stream=stream)
    def work() -> int:
        return 1

    assert work() == 1


def test_generators_are_refused() -> None:
    def numbers():
        yield time.time()

    async def later():
        yield time.time()

    for generator in (numbers, later):
        with pytest.raises(MeasurementError, match="is a generator"):
            profile_function(generator)


@pytest.mark.parametrize("options", [{"sample": 0.0}, {"sample": 1.1}, {"sample": float("nan")}, {"top": 0}])
def test_options_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(MeasurementError, match=next(iter(options))):
        profile_function(**options)
