"""A thread that samples something at an interval during a ``with`` block."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self


class SamplingThread(ABC):
    """Run :meth:`_run` beside a ``with`` block; it ends once ``_stopping`` is set.

    Args:
        name: of the thread.
        join_s: longest wait for it at the end of the block, seconds.
    """

    def __init__(self, *, name: str, join_s: float = 10.0) -> None:
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._join_s = join_s

    @abstractmethod
    def _run(self) -> None: ...

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.join(self._join_s)
