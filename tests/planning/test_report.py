"""A plan as people read it."""

import pytest

from gpt_jax.planning.report import render

GIB = 2**30
FACTS = {
    "topology": "v5e-8", "layout": "2x4", "chips": 8, "device_kind": "TPU v5 lite", "hbm_bytes": 16 * GIB,
    "model": "gpt1", "parameters": 116_534_784, "mesh": {"data": 1, "fsdp": 8, "tensor": 1, "sequence": 1},
    "sequences": 64, "sequence_length": 512, "accumulation": 1, "dropout": {"attention": 0.1, "residual": 0.0},
    "remat": "none", "scan_layers": False, "compute_dtype": "bfloat16", "analytic_flops": 8e12, "fits": True,
    "bytes_per_chip": {"parameters": 3 * 2**20, "total": 4 * GIB}, "compile_seconds": 66.1, "estimated_mfu": None,
}  # fmt: skip
SPEED = {
    "estimated_mfu": 0.469, "estimated_mfu_without_collectives": 0.531, "estimated_step_seconds": 0.0334,
    "estimated_step_seconds_without_collectives": 0.0295, "estimated_tokens_per_second": 981_514.2,
    "compute_cycles": 40e6, "total_cycles": 50e6, "pallas_cycles": 1e6, "unknown_kernels": 0,
    "flops_per_cycle": 131_072, "ring_bytes_per_second": 9e10,
    "dearest": [{"cycles": 2e6, "count": 23, "opcode": "fusion", "shape": "(f32[768]{0:T(1024)}, f32[8]{0})",
                 "operation": "jit(f)/dot", "source": "models/layers.py:40"}],
    "collectives": [{"kind": "all-gather", "axes": "fsdp", "count": 75, "ring_bytes": 2**20, "exposed_cycles": 1e6}],
}  # fmt: skip


def test_without_an_estimate_memory_is_all_there_is():
    text = render(FACTS)
    assert "gpt1 (116,534,784 parameters) on v5e-8: 8 x TPU v5 lite, 2x4; fsdp=8" in text
    assert "memory a chip: 4.00 of 16.00 GiB: fits, 12.00 GiB a chip are left" in text
    assert "parameters            3.0 MiB" in text and "total" not in text
    assert "MFU" not in text and "collectives" not in text


def test_an_unknown_memory_gives_no_verdict():
    assert "memory a device: 4.00 GiB\n" in render(FACTS | {"hbm_bytes": None})


def test_an_estimate_comes_with_its_formula_and_with_what_is_dearest():
    text = render(FACTS | SPEED)
    assert "estimated step: 33.4 ms (29.5 ms without collectives), 981,514 tokens a second" in text
    assert "estimated MFU: 46.9% with collectives, 53.1% without" in text
    assert "1.000e+12 FLOPs a chip" in text and "131,072 FLOPs a cycle" in text and "90 GB/s" in text
    (dearest,) = [line.split() for line in text.splitlines() if "layers.py" in line]
    assert dearest == ["2.00", "M", "5.0%", "x23", "fusion", "f32[768]", "models/layers.py:40"]
    (collective,) = [line.split() for line in text.splitlines() if "all-gather" in line]
    assert collective == ["all-gather", "fsdp", "x75", "1.0", "MiB", "1.00", "M"]


@pytest.mark.parametrize(("unknown", "said"), [(0, False), (24, True)])
def test_kernels_that_do_not_say_what_they_cost_are_mentioned(unknown, said):
    text = render(FACTS | SPEED | {"unknown_kernels": unknown})
    assert (f"{unknown} Pallas calls a step do not say how many FLOPs" in text) == said
