"""The checklist: every pattern's checks, run against a stack."""

from tenfold.verify.checklist import CHECKS
from tenfold.verify.runner import Check, Outcome, run, select

__all__ = ["CHECKS", "Check", "Outcome", "run", "select"]
