"""The mesh: sizes, slices, and which model fits on it."""

import dataclasses
import math

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_jax.errors import UserError
from gpt_jax.models.config import ModelConfig
from gpt_jax.models.presets import model_config
from gpt_jax.parallel.mesh import AXES, make_mesh
from gpt_jax.runs.recipe import check_model_fits

MODEL = ModelConfig(vocab_size=64, context_length=16, num_layers=1, num_heads=12, embed_dim=48, key_value_heads=4)


@dataclasses.dataclass(frozen=True)
class Device:
    """What the mesh asks of a device."""

    id: int
    slice_index: int
    platform: str = "cpu"
    device_kind: str = "pretended"
    coords: tuple[int, int, int] = (0, 0, 0)
    process_index: int = 0
    core_on_chip: int = 0


def devices(*slice_sizes, **fields):
    """Devices of slices of these sizes; their order is not that of the slices."""
    ids = iter(range(sum(slice_sizes)))
    made = [Device(next(ids), index, **fields) for index, size in enumerate(slice_sizes) for _ in range(size)]
    return sorted(made, key=lambda device: (device.id % 3, device.id))


def abstract_mesh(**sizes):
    return jax.sharding.AbstractMesh(tuple(sizes.get(axis, 1) for axis in AXES), AXES)


@given(st.integers(1, 4), st.integers(1, 3), *[st.integers(1, 3)] * 3)
def test_only_data_crosses_slices(slices, rows, fsdp, tensor, sequence):
    others = fsdp * tensor * sequence
    sizes = {"data": slices * rows, "fsdp": fsdp, "tensor": tensor, "sequence": sequence, "slices": slices}
    mesh = make_mesh(sizes, devices(*[rows * others] * slices))
    assert mesh.devices.shape == (slices * rows, fsdp, tensor, sequence)
    for row, block in enumerate(mesh.devices):
        assert {device.slice_index for device in block.ravel()} == {row // rows}
    assert len({device.id for device in mesh.devices.ravel()}) == mesh.size


def test_minus_one_counts_the_devices_of_all_slices():
    mesh = make_mesh({"data": -1, "fsdp": 4, "slices": 2}, devices(8, 8))
    assert mesh.shape["data"] == 4


@pytest.mark.parametrize(
    ("sizes", "given_devices", "words"),
    [
        ({"fsdp": -1, "slices": 2}, devices(4, 4), "slices=2 of 4 devices: only data may cross slices.* multiple of 2"),
        ({"data": 3, "fsdp": 2, "slices": 2}, devices(3, 3), "here 2, must divide 3"),
        ({"data": -1, "slices": 3}, devices(4, 4), r"stand in 2 slices\. Set --config.mesh.slices=2"),
        ({"data": -1, "slices": 2}, None, r"8 devices \(cpu\) stand in 1 slice\. Set --config.mesh.slices=1"),
        ({"data": -1, "slices": 0}, None, "slices=0.*Set --config.mesh.slices=1"),
        ({"data": -1}, devices(4, 4, platform="tpu"), r"stand in 2 slices\. Set --config.mesh.slices=2"),
        ({"data": -1, "slices": 2}, devices(4, 2), "slices have 4, 2 devices; they must be equally large"),
    ],
)  # fmt: skip
def test_slices_that_do_not_fit_are_refused(sizes, given_devices, words):
    with pytest.raises(UserError, match=words):
        make_mesh(sizes, given_devices)


def test_gpus_of_several_nodes_may_be_one_mesh_without_slices():
    mesh = make_mesh({"fsdp": -1}, devices(4, 4, platform="gpu"))
    assert [device.id for device in mesh.devices.ravel()] == list(range(8))


def torus(x, y):
    return [Device(i, 0, "tpu", "TPU v4", (i % x, i // x, 0)) for i in range(x * y)]


def test_neighbours_on_the_mesh_are_neighbours_on_the_torus():
    mesh = make_mesh({"data": 2, "tensor": 4}, torus(2, 4))
    for row in mesh.devices[:, 0, :, 0]:
        assert [device.coords[1] for device in row] == [0, 1, 2, 3]
        assert len({device.coords[0] for device in row}) == 1


def test_a_mesh_that_the_torus_does_not_have_is_refused():
    with pytest.raises(UserError, match="part of a side of the 4x2x1 torus"):
        make_mesh({"data": 2, "fsdp": 2, "tensor": 2}, torus(4, 2))


@pytest.mark.parametrize("tensor", range(1, 26))
def test_heads_that_tensor_does_not_divide_are_refused_with_the_sizes_that_work(tensor):
    mesh = abstract_mesh(tensor=tensor)
    if tensor in (1, 2, 4, 12):
        check_model_fits(MODEL, mesh)
        return
    with pytest.raises(UserError, match=r"num_heads=12, .*key_value_heads=4, .*Sizes that work: 1, 2, 4, 12\."):
        check_model_fits(MODEL, mesh)


def test_a_width_that_fsdp_does_not_divide_is_refused():
    with pytest.raises(UserError, match=r"fsdp=5 does not divide model.embed_dim=48.*do: 1, 2, 3, 4, 6, 8\."):
        check_model_fits(MODEL, abstract_mesh(fsdp=5))
    with pytest.raises(UserError, match=r"fsdp=32 does not divide model.lstm_units=368.*do: 1, 2, 4, 8, 16\."):
        check_model_fits(model_config("laptop-lstm"), abstract_mesh(fsdp=32))


@pytest.mark.parametrize("preset", ["gpt1", "gpt2-small", "gpt3-13B", "llama3.1-70B", "qwen2.5-7B", "lstm"])
def test_published_models_fit_on_the_meshes_they_are_trained_on(preset):
    model = model_config(preset)
    tensor = math.gcd(model.num_heads, 4)
    check_model_fits(model, abstract_mesh(data=64, fsdp=256, tensor=tensor))
