"""Eight simulated devices for every test, and one place for the numbers that tests share."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "0"  # the user's cache is none of a test's business

import jax  # noqa: E402
import pytest  # noqa: E402

from gpt_jax.parallel.mesh import single_device_mesh  # noqa: E402


@pytest.fixture
def one_device():
    """The mesh of one device, set for the length of the test."""
    mesh = single_device_mesh()
    with jax.set_mesh(mesh):
        yield mesh
