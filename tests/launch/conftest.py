"""The stage that the tests of the launch scripts play on."""

import pytest
from stand_ins import Stage


@pytest.fixture
def stage(tmp_path) -> Stage:
    """A checkout whose PATH has no gcloud, kubectl or Slurm until a test puts stand-ins there."""
    return Stage(tmp_path)
