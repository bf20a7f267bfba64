"""What is known of the devices: their peak speed."""

import jax

# bfloat16 matmul FLOP/s of one device as the makers publish them (cloud.google.com/tpu/docs, NVIDIA's data sheets,
# dense). The key is jax.Device.device_kind.
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
}


def peak_flops() -> float | None:
    """Peak bfloat16 FLOP/s of all devices of all processes together; None where a device's peak is not known."""
    peaks = [PEAK_FLOPS.get(device.device_kind) for device in jax.devices()]
    return None if None in peaks else sum(peaks)
