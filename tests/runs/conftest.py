"""The finished runs of tests/reporting, for tests of run folders."""

from tests.reporting.conftest import make_run

__all__ = ["make_run"]
