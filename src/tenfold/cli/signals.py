"""What ends a command in order."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def ending_signals() -> Iterator[None]:
    """Let SIGTERM and a closed terminal end a command as Ctrl-C does, its servers with it.

    A shell script starts what it puts into the background with SIGINT ignored; it is heard all the same.
    ``nohup`` ignores SIGHUP, and that is respected. Only the first signal interrupts: a second one must not
    break into the clean-up that the first has begun. Outside of the main thread nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []

    def interrupt(number: int, frame: object) -> None:
        came.append(number)
        if len(came) == 1:
            raise KeyboardInterrupt

    heard = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        heard.append(signal.SIGHUP)
    before = {number: signal.signal(number, interrupt) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
