"""Exact limits of a share that was counted."""

from __future__ import annotations


def share_limits(bad: float, offered: float, *, confidence: float = 0.95) -> tuple[float, float]:
    """Two-sided limits of a share of which ``bad`` in ``offered`` were seen (Clopper and Pearson, 1934).

    Counts may be fractions: divide both by the variance inflation and the limits hold for arrivals whose
    verdicts are correlated. Nothing offered gives ``(0, 1)``.

    Raises ValueError unless ``0 <= bad <= offered`` and ``0 < confidence < 1``.
    """
    from scipy.special import betaincinv  # 60 ms to import

    if not (0 <= bad <= offered and 0 < confidence < 1):
        raise ValueError(f"no share has {bad} of {offered} at a confidence of {confidence}")
    tail = (1 - confidence) / 2
    low = float(betaincinv(bad, offered - bad + 1, tail)) if bad > 0 else 0.0
    high = float(betaincinv(bad + 1, offered - bad, 1 - tail)) if bad < offered else 1.0
    return low, high
