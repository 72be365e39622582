"""The shop as a decent team writes it under time pressure: correct, tidy, and slow under load.

Frozen. Every ratio that is shown for a pattern is measured against this code, so a change here,
even an improvement, makes earlier results worthless. Improve `scaled` instead.
"""
