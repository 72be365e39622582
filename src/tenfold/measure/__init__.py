"""Measuring a service: its capacity, and the bottleneck that limits it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tenfold.measure.diagnosis.detector import BottleneckDetector
    from tenfold.measure.probe.probe import Probe
    from tenfold.measure.profile import profile_function

__all__ = ["BottleneckDetector", "Probe", "profile_function"]

_MODULES = {"BottleneckDetector": "diagnosis.detector", "Probe": "probe.probe", "profile_function": "profile"}


def __getattr__(name: str) -> Any:
    # Lazy: importing one name loads only its own module.
    if name in _MODULES:
        return getattr(import_module(f"tenfold.measure.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
