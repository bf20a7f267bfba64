"""A plan for people to read."""

from typing import Any

from gpt_jax.parallel.devices import GIB

FORMULA = (
    "MFU = analytic FLOPs / (estimated cycles x {flops_per_cycle:,} FLOPs a cycle). FLOPs: 6 x weights + 12 x layers x "
    "width x T a token, attention in full (masked keys count, so skipping them shows as a gain). Cycles: the TPU "
    "compiler's own estimates, loops times their trips; Pallas calls: the longer of FLOPs at half the peak and bytes; "
    "no host, no stalls. Collectives: ring bytes over {gigabytes:.0f} GB/s, charged where the schedule waits for them."
)


def render(plan: dict[str, Any]) -> str:
    """The text of a plan that fits: memory, speed, the dearest instructions, the collectives."""
    mesh = ", ".join(f"{axis}={size}" for axis, size in plan["mesh"].items() if size > 1) or "one device"
    layout = f", {plan['layout']}" if plan["layout"] else ""
    lines = [
        f"{plan['model']} ({plan['parameters']:,} parameters) on {plan['topology']}: {plan['chips']} x "
        f"{plan['device_kind']}{layout}; {mesh}",
        f"{plan['sequences']} x {plan['sequence_length']} tokens a step, accumulation {plan['accumulation']}, "
        f"{plan['compute_dtype']}, remat {plan['remat']}, layers {'scanned' if plan['scan_layers'] else 'unrolled'}, "
        f"dropout {max(plan['dropout'].values())}",
        "",
        *_memory(plan),
    ]
    if plan["estimated_mfu"] is not None:
        lines += ["", *_speed(plan), "", *_dearest(plan), "", *_collectives(plan)]
    lines += ["", f"compiled in {plan['compile_seconds']:.0f} s"]
    return "\n".join(lines)


def _memory(plan: dict[str, Any]) -> list[str]:
    parts, hbm = plan["bytes_per_chip"], plan["hbm_bytes"]
    if hbm:
        rest = (hbm - parts["total"]) / GIB
        head = f"memory a chip: {parts['total'] / GIB:.2f} of {hbm / GIB:.2f} GiB: fits, {rest:.2f} GiB a chip are left"
    else:
        head = f"memory a device: {parts['total'] / GIB:.2f} GiB"
    return [head, *(f"  {name:<12} {size / 2**20:12,.1f} MiB" for name, size in parts.items() if name != "total")]


def _speed(plan: dict[str, Any]) -> list[str]:
    formula = FORMULA.format(
        flops_per_cycle=plan["flops_per_cycle"], gigabytes=plan["ring_bytes_per_second"] / 1e9
    )  # fmt: skip
    return [
        f"estimated step: {plan['estimated_step_seconds'] * 1e3:.1f} ms "
        f"({plan['estimated_step_seconds_without_collectives'] * 1e3:.1f} ms without collectives), "
        f"{plan['estimated_tokens_per_second']:,.0f} tokens a second",
        f"estimated MFU: {plan['estimated_mfu']:.1%} with collectives, "
        f"{plan['estimated_mfu_without_collectives']:.1%} without",
        f"  {plan['compute_cycles'] / 1e6:.1f} million cycles (Pallas calls {plan['pallas_cycles'] / 1e6:.1f}), with "
        f"collectives {plan['total_cycles'] / 1e6:.1f}; {plan['analytic_flops'] / plan['chips']:.3e} FLOPs a chip",
        *_kernels(plan["unknown_kernels"]),
        f"  {formula}",
    ]


def _kernels(unknown: int) -> list[str]:
    if not unknown:
        return []
    return [
        f"  {unknown} Pallas calls a step do not say how many FLOPs they do: they are charged for their bytes alone, "
        "so the step takes longer than this says"
    ]


def _dearest(plan: dict[str, Any]) -> list[str]:
    rows = [
        f"  {item['cycles'] / 1e6:7.2f} M {item['cycles'] / plan['compute_cycles']:6.1%}  x{item['count']:<4} "
        f"{item['opcode']:<12} {_first_array(item['shape']):<28} {item['source']}"
        for item in plan["dearest"]
    ]
    return ["dearest instructions (cycles, share, runs a step, result, line of gpt_jax):", *rows]


def _collectives(plan: dict[str, Any]) -> list[str]:
    rows = [
        f"  {item['kind']:<20} {item['axes']:<16} x{item['count']:<5} {item['ring_bytes'] / 2**20:10.1f} MiB  "
        f"{item['exposed_cycles'] / 1e6:6.2f} M"
        for item in plan["collectives"]
    ]
    return ["collectives (kind, mesh axes, runs a step, bytes a chip sends, cycles the step waits):", *rows]


def _first_array(shape: str) -> str:
    return shape.lstrip("(").partition("{")[0]
