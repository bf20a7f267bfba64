"""The device mesh: four named axes over all devices of all processes."""

import math
from collections.abc import Mapping

import jax

from gpt_jax.errors import UserError

AXES = ("data", "fsdp", "tensor", "sequence")


def make_mesh(sizes: Mapping[str, int], devices: list | None = None) -> jax.sharding.Mesh:
    """Builds the mesh that everything runs on.

    Args:
      sizes: devices along each axis of `AXES`; an axis left out has size 1, and one axis may be -1: it takes the
        devices that the others leave.
      devices: all devices of all processes by default.

    Raises:
      UserError: when the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
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
    # Auto axes: the compiler spreads the work along the constraints of parallel/rules.py. (Explicit axes, the default
    # of jax.make_mesh, turn every constraint into an assertion.)
    return jax.make_mesh(shape, AXES, devices=devices, axis_types=(jax.sharding.AxisType.Auto,) * len(AXES))


def single_device_mesh() -> jax.sharding.Mesh:
    """The mesh of one device, for inference and tests: every rule holds, and nothing is divided."""
    return make_mesh({}, devices=jax.local_devices()[:1])
