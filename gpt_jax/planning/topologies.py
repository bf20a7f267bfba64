"""The machines that a plan can be made for: TPU slices by the names they are rented under, and the devices at hand."""

import contextlib
import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental import topologies

from gpt_jax.errors import UserError, did_you_mean
from gpt_jax.parallel.devices import CHIPS, Chip

# Chips of a slice -> their arrangement. As rented: v5e and v6e by chips, v4 and v5p by cores, two a chip.
_FLAT = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
_TORUS = {4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8", 512: "8x8x8"}
TPUS = (
    {f"v5e-{chips}": f"v5e:{shape}" for chips, shape in _FLAT.items()}
    | {f"v6e-{chips}": f"v6e:{shape}" for chips, shape in _FLAT.items()}
    | {f"v5p-{2 * chips}": f"v5p:{shape}" for chips, shape in _TORUS.items()}
    | {f"v4-{2 * chips}": f"v4:{shape}" for chips, shape in _TORUS.items()}
)


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices to compile for.

    Attributes:
      name: as it was asked for; layout: the arrangement of the chips ("2x4"), "" where there is none.
      devices: for `make_mesh`; of a TPU that is not here they can be compiled for, and nothing else.
      chip: what is known of one device; None for CPUs and unknown GPUs.
    """

    name: str
    layout: str
    devices: list
    chip: Chip | None

    @property
    def platform(self) -> str:
        """`tpu`, `gpu` or `cpu`."""
        return self.devices[0].platform


def find_topology(name: str) -> Topology:
    """The topology called `name`: one of `TPUS`, `v5e:4x4` as the compiler calls it, several slices as `2*v5e-16`;
    `cpu` and `gpu` are the devices of this machine.

    Raises:
      UserError: for another name; without libtpu, or where it cannot be used.
    """
    if name in ("cpu", "gpu"):
        return _local(name)
    slices, star, slice_name = name.partition("*") if "*" in name else ("1", "*", name)
    described = TPUS.get(slice_name) or (
        slice_name if re.fullmatch(r"v(4|5e|5p|6e):\d+x\d+(x\d+)?", slice_name) else ""
    )
    if not (described and slices.isdigit() and int(slices) > 0):
        raise UserError(
            f"--plan={name}: unknown topology.{did_you_mean(slice_name, TPUS)} Expected one of {', '.join(TPUS)}; an "
            "arrangement such as v5e:4x4; several slices as 2*v5e-16; or cpu, gpu: this machine."
        )
    return _tpu(name, described, int(slices))


# Read by libtpu when it is loaded: it is to ask no metadata server for the TPU that it is on, to stand beside a program
# that uses that TPU, and not to complain (at length) that it cannot find out what machine this is.
_LIBTPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
}
_CHIPS_OF_A_HOST = 4  # of an arrangement as the compiler assumes it, 2x2x1; smaller ones have to be said


def _tpu(name: str, described: str, slices: int) -> Topology:
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f'--plan={name}: the TPU compiler is missing; no TPU is needed for it. Install it: pip install -e ".[tpu]"'
        )
    kind, _, layout = described.partition(":")
    sides = tuple(map(int, layout.split("x")))
    options: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
    if math.prod(sides) < _CHIPS_OF_A_HOST:
        options["chips_per_host_bounds"] = [*sides, 1, 1][:3]
    if kind == "v4":
        options["chip_config_name"] = "megacore"  # its two cores work as one
    try:
        with _environment(_LIBTPU):
            found = topologies.get_topology_desc(platform="tpu", topology_name=described, **options)
    except Exception as error:  # of libtpu's own kind
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise UserError(
            f"--plan={name}: libtpu cannot describe {described}: {reason}. If another process holds it, end that one; "
            f"shapes that exist: {', '.join(TPUS)}."
        ) from None
    devices = list(found.devices)
    chip = CHIPS.get(devices[0].device_kind)
    return Topology(name, layout, devices, chip)


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Those of `values` that are not set, for a while: a name of a host would make a run here look like one of many."""
    missing = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(missing)
    try:
        yield
    finally:
        for name in missing:
            del os.environ[name]


def _local(platform: str) -> Topology:
    try:
        devices = jax.devices(platform)
    except RuntimeError:
        raise UserError(
            f"--plan={platform}: JAX finds no {platform} on this machine. Install it as the README says."
        ) from None
    return Topology(platform, "", devices, CHIPS.get(devices[0].device_kind))
