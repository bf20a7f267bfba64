"""The reader of optimized HLO, on text in the compilers' own format."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import ADD, FUSED, KERNEL, P0, loop, program, work

from gpt_jax.planning import hlo


def only(module: hlo.Module, opcode: str) -> hlo.Instruction:
    (found,) = [i for c in module.computations.values() for i in c.instructions if i.opcode == opcode]
    return found


def test_an_instruction_is_taken_apart():
    text = (
        "%all-reduce.1 = (bf16[8,512]{1,0:T(8,128)(2,1)S(1)}, /*index=1*/(f32[4]{0}, s32[]{:T(128)})) "
        "all-reduce(%p0, /*index=1*/%p0), channel_id=3, replica_groups={{0,1}}, to_apply=%add.clone, "
        'metadata={op_name="jit(f)/transpose(jvp(a))/dot" stack_frame_id=2}'
    )
    found = only(hlo.parse(program([P0, text], ADD)), "all-reduce")
    assert found.name == "all-reduce.1"
    assert found.arrays == (("bf16", (8, 512)), ("f32", (4,)), ("s32", ()))
    assert found.elements == ("bf16[8,512]{1,0:T(8,128)(2,1)S(1)}", "(f32[4]{0}, s32[]{:T(128)})")
    assert found.operand_names == ("p0", "p0")
    assert found.called == {"to_apply": ("add.clone",)}
    assert found.op_name == "jit(f)/transpose(jvp(a))/dot"
    assert found.estimated_cycles == 0


def test_the_metadata_of_a_kernel_may_span_several_lines():
    module = hlo.parse(program([P0, KERNEL.format(cost=""), work("after", 7)], FUSED))
    assert [i.name for i in module.entry.instructions] == ["p0", "splash", "after"]
    assert only(module, "custom-call").op_name == "jit(f)/pallas_call"
    assert module.entry.root.name == "after" and module.entry.root.estimated_cycles == 7


def test_every_computation_is_read_with_its_root_wherever_it_stands():
    other = "%thread (p: f32[]) -> f32[] {\n  ROOT %r = f32[] parameter(0)\n  %late = f32[] negate(%r)\n}"
    module = hlo.parse(program([P0, work("f", 1)], ADD, f'{other}, execution_thread="host"', FUSED))
    assert list(module.computations) == ["add.clone", "thread", "fused", "main.1"]
    assert module.computations["thread"].root.name == "r"


def test_the_source_is_the_innermost_line_of_the_package():
    def source(frame: int) -> str:
        module = hlo.parse(program([P0, work("f", 1, metadata=f"metadata={{stack_frame_id={frame}}}, ")], FUSED))
        return module.source(module.entry.root, package="/code/gpt_jax/gpt_jax")

    assert source(1) == "training/step.py:12"
    assert source(2) == "models/layers.py:40"
    assert source(4) == "models/layers.py:40"  # called through libraries that stand beside the package, not in it
    assert source(5) == "" and source(77) == ""


@pytest.mark.parametrize("text", ["", "HloModule f", "no program at all\n{\n}\n"])
def test_a_text_without_an_entry_is_refused(text):
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.parse(text)


@settings(deadline=None)
@given(first=st.integers(0, 5), step=st.integers(1, 4), trips=st.integers(1, 60), rest=st.integers(0, 3))
def test_a_loop_runs_as_often_as_it_counts(first, step, trips, rest):
    bound = first + step * trips - min(rest, step - 1)
    instructions, called = loop("scan", [], first=first, step=step, bound=bound)
    module = hlo.parse(program([P0, *instructions], called))
    assert module.trips(only(module, "while")) == len(range(first, bound, step)) == trips


def test_a_loop_is_believed_where_it_says_how_often():
    instructions, called = loop("scan", [], bound=4)
    instructions[-1] += ', backend_config={"known_trip_count":{"n":"24"}}'
    module = hlo.parse(program([P0, *instructions], called))
    assert module.trips(only(module, "while")) == 24


def test_a_bound_that_the_loop_hands_on_is_found_where_it_began():
    instructions, called = loop("scan", [], bound=4)
    instructions[1] = "%scan.large = u32[]{:T(128)} constant(6)"
    called = called.replace("%scan.bound = u32[]{:T(128)} constant(4)",
                            "%scan.bound = u32[]{:T(128)} get-tuple-element(%scan.c), index=2")  # fmt: skip
    module = hlo.parse(program([P0, *instructions], called))
    assert module.trips(only(module, "while")) == 6


def test_a_compare_inside_a_fusion_is_a_compare():
    instructions, called = loop("scan", [], bound=4)
    called = called.replace(
        "compare(%scan.at, %scan.bound), direction=LT", "fusion(%scan.bound, %scan.at), kind=kLoop, calls=%fused"
    )
    module = hlo.parse(program([P0, *instructions], FUSED, called))
    assert module.trips(only(module, "while")) == 4


@pytest.mark.parametrize(
    ("dtype", "size"), [("f32", 4), ("bf16", 2), ("pred", 1), ("s4", 1), ("u64", 8), ("f8e4m3fn", 1), ("token", 0)]
)
def test_elements_have_the_size_of_their_type(dtype, size):
    assert hlo.array_bytes(dtype, (3, 5)) == 15 * size
