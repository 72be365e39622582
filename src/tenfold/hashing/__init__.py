"""Consistent hashing: rings, rendezvous, jump and bounded loads behind one protocol."""

from __future__ import annotations

from tenfold.hashing.bounded import BoundedLoads
from tenfold.hashing.jump import Jump, jump
from tenfold.hashing.placement import Key, Placement
from tenfold.hashing.preview import Preview
from tenfold.hashing.rendezvous import Rendezvous
from tenfold.hashing.ring import HashRing, RingState, disagreement

__all__ = [
    "BoundedLoads",
    "HashRing",
    "Jump",
    "Key",
    "Placement",
    "Preview",
    "Rendezvous",
    "RingState",
    "disagreement",
    "jump",
]
