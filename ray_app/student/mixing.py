"""How many Yes/No rows and reasoning rows make an exact mix."""

from __future__ import annotations

from fractions import Fraction


def balance(available_rec: int, available_reason: int, reason_share: float) -> tuple[int, int]:
    """The largest (n_rec, n_reason) with n_reason / (n_rec + n_reason) exactly reason_share.

    reason_share, 0.001 to 0.999, is read as the nearest fraction with a denominator up to 1000: 0.2 is 1/5,
    so sizes are multiples of (4, 1). Returns (0, 0) where not even one such group is available.
    """
    share = Fraction(reason_share).limit_denominator(1000)
    reason, rec = share.numerator, share.denominator - share.numerator
    groups = min(available_rec // rec, available_reason // reason)
    return groups * rec, groups * reason
