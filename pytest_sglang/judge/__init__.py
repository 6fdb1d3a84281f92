"""Limits, statistics, causes: pure functions from measurements to a Judgement. Knows no pytest, no clock, no machine."""
