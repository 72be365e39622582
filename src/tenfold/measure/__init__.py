"""The instrument: how much can the service take, and what stops it?"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tenfold.measure.diagnosis.detector import BottleneckDetector
    from tenfold.measure.probe.probe import Probe
    from tenfold.measure.profile import profile_function

__all__ = ["BottleneckDetector", "Probe", "profile_function"]

_HOMES = {"BottleneckDetector": "diagnosis.detector", "Probe": "probe.probe", "profile_function": "profile"}


def __getattr__(name: str) -> Any:
    # Who takes one piece loads that piece: the detector needs none of what the probe needs.
    if name in _HOMES:
        return getattr(import_module(f"tenfold.measure.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
