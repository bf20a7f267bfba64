"""The device mesh: four named axes over all devices of all processes."""

import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils

from gpt_jax.errors import UserError

AXES = ("data", "fsdp", "tensor", "sequence")  # from the one that talks least to the one that talks most


def make_mesh(sizes: Mapping[str, int], devices: Sequence | None = None) -> jax.sharding.Mesh:
    """Builds the mesh that everything runs on.

    Several slices (TPU pods that only the data-centre network joins) are the outer part of `data`: the first
    data / slices rows of the mesh are the first slice. So what crosses the slow network is one sum of the gradients a
    step, and the other axes, which talk in every layer, stay within a slice.

    Args:
      sizes: devices along each axis of `AXES`; an axis left out has size 1, and one axis may be -1: it takes the
        devices that the others leave. `slices`: how many slices the devices stand in, 1 by default. GPUs know theirs
        too (nodes, or NVLink domains) but are not held to it: with 1 the mesh takes them in the order of their ids.
      devices: all devices of all processes by default.

    Raises:
      UserError: when the sizes do not multiply to the number of devices, an axis other than `data` would cross slices,
        the slices are others than said, or the devices' torus has no such mesh.
    """
    devices = list(jax.devices() if devices is None else devices)
    slices = int(sizes.get("slices", 1))
    shape = [int(sizes.get(axis, 1)) for axis in AXES]
    asked = ", ".join(f"{axis}={size}" for axis, size in zip(AXES, shape, strict=True))
    if any(size == 0 or size < -1 for size in shape) or shape.count(-1) > 1:
        raise UserError(f"mesh: {asked}: every axis must be a positive number of devices, and one of them may be -1.")
    if -1 in shape:
        rest = -math.prod(shape)
        if len(devices) % rest:
            raise UserError(f"mesh: {asked}: the {len(devices)} devices cannot be divided by {rest}.")
        shape[shape.index(-1)] = len(devices) // rest
    if math.prod(shape) != len(devices):
        raise UserError(
            f"mesh: {asked} needs {math.prod(shape)} devices, and there are {len(devices)} "
            f"({devices[0].device_kind}). Set one axis to -1, for example --config.mesh.data=-1."
        )
    groups = _slices(slices, devices)
    if shape[0] % slices:
        others = len(devices) // shape[0]
        raise UserError(
            f"mesh: {asked} over slices={slices} of {len(groups[0])} devices: only data may cross slices, so it must "
            f"be a multiple of {slices}, and the product of the others, here {others}, must divide {len(groups[0])}."
        )
    blocks = [_arrange([shape[0] // slices, *shape[1:]], group) for group in groups]
    # Auto axes: the compiler spreads the work along the constraints of parallel/rules.py. (Explicit axes, JAX's
    # default, turn every constraint into an assertion.)
    types = (jax.sharding.AxisType.Auto,) * len(AXES)
    return jax.sharding.Mesh(np.concatenate(blocks), AXES, axis_types=types)


def _slices(slices: int, devices: list) -> list[list]:
    """The devices of each slice. UserError: there are not as many slices as said, or they are not equally large."""
    groups: dict[int, list] = {}
    for device in devices:
        groups.setdefault(getattr(device, "slice_index", 0), []).append(device)
    if slices == 1 and devices[0].platform != "tpu":
        return [devices]
    if len(groups) != slices:
        raise UserError(
            f"mesh.slices={slices}: the {len(devices)} devices ({devices[0].device_kind}) stand in {len(groups)} "
            f"slice{'s' * (len(groups) > 1)}. Set --config.mesh.slices={len(groups)}."
        )
    if len({len(group) for group in groups.values()}) > 1:
        counts = ", ".join(str(len(groups[index])) for index in sorted(groups))
        raise UserError(f"mesh.slices={slices}: the slices have {counts} devices; they must be equally large.")
    return [groups[index] for index in sorted(groups)]


def _arrange(shape: list[int], devices: list) -> np.ndarray:
    """The devices of one slice in the order in which neighbours on the mesh are neighbours on the torus."""
    # As jax.make_mesh decides it, which itself refuses devices of several slices.
    split = devices[0].device_kind in ("TPU v5 lite", "TPU v5e")
    try:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=split)
    except NotImplementedError:
        corners = [device.coords for device in devices]
        torus = "x".join(str(max(axis) - min(axis) + 1) for axis in zip(*corners, strict=True))
        raise UserError(
            f"mesh: {dict(zip(AXES, shape, strict=True))} a slice: no axis may take a part of a side of the {torus} "
            f"torus ({devices[0].device_kind}). Give each axis whole sides, for example "
            "--config.mesh.data=-1 and 1 for the others."
        ) from None


def single_device_mesh() -> jax.sharding.Mesh:
    """The mesh of one device, for inference and tests: every rule holds, and nothing is divided."""
    return make_mesh({}, devices=jax.local_devices()[:1])
