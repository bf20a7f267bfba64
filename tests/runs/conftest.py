"""Fixtures of the run tests; what they are made of stands in conftest_runs.py."""

from conftest_runs import cache, runs, text, undisturbed  # noqa: F401
