"""Figures, intervals and verdicts: pure functions of measurements, without torch or pytest."""
