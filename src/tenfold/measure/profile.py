"""Profiling of single functions: a decorator that prints the costliest functions of a call.

@profile_function
def report(): ...

@profile_function(sample=0.01)          # one call in a hundred: for a service under load
async def orders(): ...
"""

from __future__ import annotations

import contextlib
import cProfile
import functools
import inspect
import io
import pstats
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TextIO, TypeVar, overload

from tenfold.errors import MeasurementError

P = ParamSpec("P")
R = TypeVar("R")

# CPython allows one profiler at a time: for the process since 3.12, for a thread before.
_profiling = threading.Lock()


@overload
def profile_function(function: Callable[P, R], /) -> Callable[P, R]: ...
@overload
def profile_function(
    *, sample: float = 1.0, top: int = 10, stream: TextIO | None = None
) -> Callable[[Callable[P, R]], Callable[P, R]]: ...
def profile_function(
    function: Callable[..., Any] | None = None,
    /,
    *,
    sample: float = 1.0,
    top: int = 10,
    stream: TextIO | None = None,
) -> Any:
    """Profile calls of a plain or async function; results and exceptions pass through unchanged.

    Prints the elapsed time and the costliest functions by cumulative time.

    Args:
        function: the function to profile, when used without parentheses.
        sample: share of the calls that are profiled, above 0 and at most 1. A profiled call of a function
            that calls many others takes about twice as long; an unprofiled call costs one random number.
        top: number of functions printed.
        stream: file to print to; by default standard output as it is at the time of the call.

    One call at a time is profiled in a process: a call that begins while another is profiled, nested or
    concurrent, runs unprofiled. The profile includes other tasks that the event loop runs while a profiled
    coroutine waits, and on Python 3.12 and newer other threads; the elapsed time is the call's own, waits
    included.

    Raises:
        MeasurementError: an option is out of range, or the function is a generator, whose work is done
            in the function that iterates over it: profile that one.
    """
    if not 0 < sample <= 1:
        raise MeasurementError(f"sample is {sample}; give a share above 0 and at most 1")
    if top < 1:
        raise MeasurementError(f"top is {top}; give at least 1")

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        return _decorated(function, sample, top, stream)

    return decorate if function is None else decorate(function)


def _decorated(
    function: Callable[..., Any], sample: float, top: int, stream: TextIO | None
) -> Callable[..., Any]:
    name = getattr(function, "__qualname__", repr(function))
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise MeasurementError(f"{name} is a generator; profile the function that iterates over it")

    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def profiled_async(*args: Any, **kwargs: Any) -> Any:
            with _profile(name, sample, top, stream):
                return await function(*args, **kwargs)

        return profiled_async

    @functools.wraps(function)
    def profiled(*args: Any, **kwargs: Any) -> Any:
        with _profile(name, sample, top, stream):
            return function(*args, **kwargs)

    return profiled


@contextlib.contextmanager
def _profile(name: str, sample: float, top: int, stream: TextIO | None) -> Iterator[None]:
    if (sample < 1 and random.random() >= sample) or not _profiling.acquire(blocking=False):  # noqa: S311
        yield
        return
    try:
        profiler = cProfile.Profile()
        started = time.perf_counter()
        try:
            profiler.enable()
        except ValueError:  # a debugger or another library is profiling
            yield
            return
        try:
            yield
        finally:
            profiler.disable()
            _print(profiler, name, time.perf_counter() - started, top, stream or sys.stdout)
    finally:
        _profiling.release()


def _print(profiler: cProfile.Profile, name: str, seconds: float, top: int, stream: TextIO) -> None:
    text = io.StringIO()
    text.write(f"{name} took {seconds * 1000:.1f} ms\n")
    pstats.Stats(profiler, stream=text).sort_stats("cumulative").print_stats(top)
    with contextlib.suppress(OSError, ValueError):  # a closed stream must not cost the call its result
        stream.write(text.getvalue())
