"""Imported by the fork server of a run that measures with the simulated engine."""

from simulated.engine import take_over

take_over()
