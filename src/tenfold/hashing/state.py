"""Do two processes place keys alike? Which ring each has, in a form that fits a header or a heartbeat."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tenfold.errors import SettingsError

_TEXT = re.compile(r"(?P<epoch>[0-9]{1,18}):(?P<fingerprint>[0-9a-f]{16})")


@dataclass(frozen=True, slots=True)
class RingState:
    """The ring of one process: its epoch, counted up with every change, and its fingerprint.

    ``str(state)`` is ``7:1f0c…``; ``RingState.parse`` reads it back.
    """

    epoch: int
    fingerprint: str

    def __post_init__(self) -> None:
        if not _TEXT.fullmatch(str(self)):
            raise SettingsError(
                f"{str(self)[:60]!r} is no ring's state: a whole number from 0 on and 16 hexadecimal digits"
            )

    def __str__(self) -> str:
        return f"{self.epoch}:{self.fingerprint}"

    @classmethod
    def parse(cls, text: str) -> RingState:
        """The state that another process sent.

        Raises:
            SettingsError: the text is none.
        """
        if not (match := _TEXT.fullmatch(text)):
            raise SettingsError(f"{text[:60]!r} is no ring's state, which looks like 7:0123456789abcdef")
        return cls(int(match["epoch"]), match["fingerprint"])


def disagreement(mine: RingState, theirs: RingState) -> str | None:
    """Why two processes must not work side by side, in a sentence; None where they may.

    Neighbouring epochs may: a rollout has both for a while, and each knows the other's ring as the one before
    or after its own. Two epochs apart, keys may have moved twice.
    """
    if mine.epoch == theirs.epoch and mine.fingerprint != theirs.fingerprint:
        return (
            f"epoch {mine.epoch} has two rings, {mine.fingerprint} here and {theirs.fingerprint} there: "
            "give both the same nodes, weights and virtual nodes, or count the epoch up with the change"
        )
    if abs(mine.epoch - theirs.epoch) > 1:
        behind = "this one" if mine.epoch < theirs.epoch else "the other"
        return (
            f"epoch {mine.epoch} here and epoch {theirs.epoch} there are more than one change apart: "
            f"stop {behind} until it has the newer ring"
        )
    return None
