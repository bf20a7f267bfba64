"""What is known of the devices: how fast they compute, read their memory, and talk to each other."""

import dataclasses

import jax


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of device, as its maker publishes it.

    Attributes:
      peak_flops: bfloat16 matmul FLOP/s, dense.
      flops_per_cycle: the same a cycle of the matrix units; 0 where it is not used.
      hbm_bytes: memory that programs can use; of TPUs as their compiler counts (libtpu 0.0.42 refuses more).
      hbm_bytes_per_second: its bandwidth.
      ring_bytes_per_second: what a collective moves along one axis of the interconnect, both directions together.
    """

    peak_flops: float
    flops_per_cycle: int = 0
    hbm_bytes: int = 0
    hbm_bytes_per_second: float = 0.0
    ring_bytes_per_second: float = 0.0

    @property
    def cycles_per_second(self) -> float:
        """The clock that `flops_per_cycle` counts by."""
        return self.peak_flops / self.flops_per_cycle


GIB = 2**30
# By jax.Device.device_kind. TPUs: cloud.google.com/tpu/docs and, for bandwidths, "How to scale your model"
# (jax-ml.github.io/scaling-book, part 2); GPUs: NVIDIA's data sheets.
CHIPS = {
    "TPU v4": Chip(275e12, 262_144, int(30.75 * GIB), 1.2e12, 9e10),
    "TPU v5 lite": Chip(197e12, 131_072, int(15.75 * GIB), 8.1e11, 9e10),
    "TPU v5": Chip(459e12, 262_144, int(95.74 * GIB), 2.8e12, 1.8e11),
    "TPU v5p": Chip(459e12, 262_144, int(95.74 * GIB), 2.8e12, 1.8e11),
    "TPU v6 lite": Chip(918e12, 524_288, int(31.25 * GIB), 1.6e12, 1.8e11),
    "NVIDIA A100-SXM4-40GB": Chip(312e12),
    "NVIDIA A100-SXM4-80GB": Chip(312e12),
    "NVIDIA H100 80GB HBM3": Chip(989e12),
}


def peak_flops() -> float | None:
    """Peak bfloat16 FLOP/s of all devices of all processes together; None where a device's peak is not known."""
    chips = [CHIPS.get(device.device_kind) for device in jax.devices()]
    return None if None in chips else sum(chip.peak_flops for chip in chips)


def compiler_options(mesh: jax.sharding.Mesh) -> dict[str, str] | None:
    """What the compiler is told beside the program, for the devices of `mesh`.

    On TPUs a product of something divided is not to become a loop of products of its pieces: with the widths of these
    models the pieces are too narrow for the matrix unit: GPT-1's step took a quarter longer (LOG.md, 2026-11-22).
    """
    if mesh.devices.flat[0].platform != "tpu":
        return None
    return {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"}
