"""Services of the usual shapes, each in a folder of its own, served by a stack."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tenfold.measure.probe.collector import Collector
from tenfold.measure.probe.evidence import Evidence
from tenfold.settings import Settings
from tenfold.stack import Stack
from tests.support.waiting import eventually

SHAPES = Path(__file__).parent / "shapes"


class ServedShape:
    """A shape's running stack, and what its probe has recorded."""

    def __init__(self, stack: Stack, collector: Collector) -> None:
        self.stack, self.collector = stack, collector

    def get(self, path: str) -> tuple[int, bytes]:
        """Send one GET."""
        answer = httpx.get(self.stack.url + path, timeout=10)
        return answer.status_code, answer.content

    def record(self, path: str, times: int = 1) -> Evidence:
        """Return the evidence of some requests for one path."""
        self.collector.reset()
        eventually(lambda: self.collector.workers == 1)
        for _ in range(times):
            self.get(path)
        eventually(lambda: self.collector.evidence().requests >= times)
        return self.collector.evidence()


def line_of(file: Path, mark: str) -> str:
    """Return ``main.py:12``, the line of a shape's file with this comment."""
    lines = file.read_text().splitlines()
    (number,) = [number for number, line in enumerate(lines, 1) if line.endswith(f"# mark: {mark}")]
    return f"{file.name}:{number}"


@pytest.fixture(scope="session")
def copy_shape(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Copy a shape to a folder of its own."""

    def copy(name: str) -> Path:
        folder = tmp_path_factory.mktemp(name) / name
        shutil.copytree(SHAPES / name, folder, ignore=shutil.ignore_patterns("__pycache__"))
        return folder

    return copy


@pytest.fixture(scope="module")
def serve(copy_shape: Callable[[str], Path]) -> Iterator[Callable[..., ServedShape]]:
    """Serve a shape until the module's tests are done; the same twice is served once."""
    with ExitStack() as running:
        served: dict[str, ServedShape] = {}

        def start(name: str, *, database: bool = False, **service: object) -> ServedShape:
            key = f"{name} {sorted(service.items())}"
            if key not in served:
                settings = Settings(
                    root=copy_shape(name),
                    service=service,
                    stack={"database": database, "redis": False, "nginx": False},
                )
                stack = running.enter_context(Stack(settings))
                collector = running.enter_context(Collector(stack.probe_address))
                served[key] = ServedShape(stack, collector)
            return served[key]

        yield start
