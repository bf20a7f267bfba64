"""What JAX's splash attention computes: its Pallas calls carry no cost estimate, so it is told from their operands."""

import math

from gpt_jax.planning.hlo import arrays

LANES = 128  # of the matrix unit: a product with a narrower head takes as long
# Products of blocks in each of its kernels. Forward: scores, weights x values. Those of the gradients each make scores
# and the weights' gradient anew, and from them the queries' gradient, or those of keys and values.
PRODUCTS = {"splash_mha_fwd": 2, "splash_mha_dq": 3, "splash_mha_dkv": 4}


def splash_flops(name: str, operands: list[str]) -> float | None:
    """FLOPs of the call `name` whose operands have the shapes `operands`; None where it is another kernel.

    The first operand is a table of the blocks that are visited, [1 or heads, rows, columns]: all pairs of blocks, of
    which causal attention visits the half up to the diagonal, or, for a band, only the columns that it crosses. Then
    come queries [..., T, H], keys and values.
    """
    products = next((count for kernel, count in PRODUCTS.items() if name.startswith(kernel)), None)
    if products is None:
        return None
    (_, (_, rows, columns)), *rest = [array for shape in operands for array in arrays(shape) if len(array[1]) > 2]
    *heads, time, width = next(sizes for dtype, sizes in rest if dtype in ("bf16", "f32"))
    block = time // max(rows, columns)
    visited = rows * (rows + 1) / 2 if rows == columns else rows * columns
    return 2.0 * products * math.prod(heads) * visited * block**2 * max(width, LANES)
