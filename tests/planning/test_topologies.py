"""Machines by their names; the compiler's own knowledge of them where libtpu is installed."""

import importlib.util
import os

import pytest

from gpt_jax.errors import UserError
from gpt_jax.planning.topologies import TPUS, find_topology

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason='the TPU compiler is missing: pip install -e ".[tpu]"'
)


@pytest.mark.parametrize("name", ["v5e-7", "v5e", "h100", "", "0*v5e-8", "two*v5e-8", "v5e:2", "v9:2x4"])
def test_an_unknown_topology_lists_the_known(name):
    with pytest.raises(UserError, match="v5e-8, .*v5p-8.*cpu, gpu: this machine") as refusal:
        find_topology(name)
    assert f"--plan={name}: unknown topology" in str(refusal.value)


def test_the_nearest_name_is_offered():
    with pytest.raises(UserError, match="Did you mean 'v5p-512'"):
        find_topology("v5p-51")


def test_without_the_compiler_the_message_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install -e "\.\[tpu\]"'):
        find_topology("v5e-8")


def test_the_devices_here_are_a_topology_of_unknown_speed():
    topology = find_topology("cpu")
    assert (topology.name, topology.platform, len(topology.devices), topology.chip) == ("cpu", "cpu", 8, None)


def test_devices_that_are_not_here_are_named():
    with pytest.raises(UserError, match="JAX finds no gpu on this machine"):
        find_topology("gpu")


@needs_libtpu
@pytest.mark.parametrize("name", TPUS)
def test_a_name_stands_for_as_many_chips_as_it_says(name):
    before = dict(os.environ)
    topology = find_topology(name)
    kind, _, count = name.partition("-")
    assert len(topology.devices) == int(count) // (2 if kind in ("v4", "v5p") else 1)  # these count their cores
    assert topology.chip.hbm_bytes and topology.platform == "tpu"
    assert dict(os.environ) == before  # TPU_WORKER_HOSTNAMES would make a run here look like one of many


@needs_libtpu
def test_several_slices_know_which_they_are():
    topology = find_topology("2*v5e-4")
    assert sorted(device.slice_index for device in topology.devices) == [0] * 4 + [1] * 4


@needs_libtpu
def test_an_arrangement_that_does_not_exist_is_refused_in_the_compilers_words():
    with pytest.raises(UserError, match="libtpu cannot describe v5e:3x3"):
        find_topology("v5e:3x3")
