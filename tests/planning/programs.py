"""Short optimized HLO, written by hand in the compilers' format."""

from collections.abc import Sequence

HEADER = """HloModule jit_train_step, is_scheduled=true, entry_computation_layout={(f32[8]{0})->f32[8]{0}}

FileNames
1 "/site-packages/jax/_src/core.py"
2 "/code/gpt_jax/gpt_jax/models/layers.py"
3 "/code/gpt_jax/.venv/lib/flax/linen.py"
4 "/code/gpt_jax/gpt_jax/training/step.py"

FunctionNames
1 "norm"

FileLocations
1 {file_name_id=4 function_name_id=1 line=12 end_line=12 column=4 end_column=8}
2 {file_name_id=2 function_name_id=1 line=40 end_line=40 column=4 end_column=8}
3 {file_name_id=3 function_name_id=1 line=7 end_line=7 column=4 end_column=8}
4 {file_name_id=1 function_name_id=1 line=99 end_line=99 column=4 end_column=8}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=1}
3 {file_location_id=3 parent_frame_id=2}
4 {file_location_id=4 parent_frame_id=3}
5 {file_location_id=3 parent_frame_id=5}

"""
ADD = """%add.clone (a: f32[], b: f32[]) -> f32[] {
  %a = f32[]{:T(128)} parameter(0)
  %b = f32[]{:T(128)} parameter(1)
  ROOT %sum = f32[]{:T(128)} add(%a, %b)
}
"""


def program(entry: Sequence[str], *computations: str) -> str:
    """A module whose entry computation has these instructions, the last of them its root."""
    *body, root = entry
    lines = [f"  {line}" for line in body] + [f"  ROOT {root}"]
    text = "\n".join(["ENTRY %main.1 (p0: f32[8]) -> f32[8] {", *lines, "}"])
    return HEADER + "\n".join([*computations, text, ""])


def work(name: str, cycles: int, operands: str = "", metadata: str = "") -> str:
    """A fusion that takes `cycles`."""
    return (
        f"%{name} = f32[8,512]{{1,0:T(8,128)S(1)}} fusion({operands}), kind=kLoop, calls=%fused, {metadata}"
        f'backend_config={{"flag_configs":[],"window_config":{{"output_window_bounds":["8","1"],'
        f'"estimated_cycles":"{cycles}","iteration_bounds":["1","1"]}}}}'
    )


FUSED = """%fused (p: f32[8,512]) -> f32[8,512] {
  ROOT %p = f32[8,512]{1,0:T(8,128)S(1)} parameter(0)
}
"""
COUNTER = "(u32[]{:T(128)}, f32[8]{0:T(128)}, /*index=2*/u32[]{:T(128)})"


def loop(name: str, body: Sequence[str], *, bound: int, step: int = 1, first: int = 0) -> tuple[list[str], str]:
    """(instructions of a `while` that counts from `first` by `step` to below `bound`, the computations that it calls).

    The third element of what it carries is a constant that it only hands on, larger than any bound.
    """
    before = [
        f"%{name}.first = u32[]{{:T(128)}} constant({first})",
        f"%{name}.large = u32[]{{:T(128)}} constant(4294967295)",
        f"%{name}.copy = u32[]{{:T(128)}} copy(%{name}.first)",
        f"%{name}.tuple = {COUNTER} tuple(%{name}.copy, %p0, /*index=2*/%{name}.large)",
        f"%{name} = {COUNTER} while(%{name}.tuple), condition=%{name}.condition, body=%{name}.body",
    ]
    inner = "\n".join(f"  {line}" for line in body)
    called = f"""%{name}.condition (c: (u32[], f32[8], u32[])) -> pred[] {{
  %{name}.c = {COUNTER} parameter(0)
  %{name}.bound = u32[]{{:T(128)}} constant({bound})
  %{name}.other = u32[]{{:T(128)}} constant(999)
  %{name}.at = u32[]{{:T(128)}} get-tuple-element(%{name}.c), index=0
  ROOT %{name}.less = pred[]{{:T(512)}} compare(%{name}.at, %{name}.bound), direction=LT
}}

%{name}.body (b: (u32[], f32[8], u32[])) -> (u32[], f32[8], u32[]) {{
  %{name}.b = {COUNTER} parameter(0)
  %{name}.i = u32[]{{:T(128)}} get-tuple-element(%{name}.b), index=0
  %{name}.x = f32[8]{{0:T(128)}} get-tuple-element(%{name}.b), index=1
  %{name}.l = u32[]{{:T(128)}} get-tuple-element(%{name}.b), index=2
  %{name}.step = u32[]{{:T(128)}} constant({step})
{inner}
  %{name}.next = u32[]{{:T(128)}} add(%{name}.i, %{name}.step)
  ROOT %{name}.out = {COUNTER} tuple(%{name}.next, %{name}.x, /*index=2*/%{name}.l)
}}
"""
    return before, called


P0 = "%p0 = f32[8]{0:T(128)} parameter(0)"
KERNEL = """%splash = (f32[2,128]{{1,0:T(8,128)}}, bf16[4,256]{{1,0:T(8,128)(2,1)S(1)}}) custom-call(%p0), \
custom_call_target="tpu_custom_call", frontend_attributes={{kernel_metadata={{
"xprof_metadata":"{{\\"block_q\\": 128, \\"use_fused (1)\\": false}}"
}}}}, metadata={{op_name="jit(f)/pallas_call" stack_frame_id=4}}, backend_config={{"flag_configs":[],\
"custom_call_config":{{"body":"TUzv",{cost}"serialization_format":"1"}}}}"""
