"""What a step costs, on short programs whose cost can be counted by hand."""

import dataclasses

import pytest
from programs import ADD, FUSED, KERNEL, P0, loop, program, work

from gpt_jax.parallel.devices import CHIPS, Chip
from gpt_jax.planning import hlo
from gpt_jax.planning.cost import PALLAS_SHARE_OF_PEAK, SHARE_OF_HBM_BANDWIDTH, estimate

# One cycle a second and one byte a cycle on the wires, so that bytes are cycles.
CHIP = Chip(peak_flops=100.0, flops_per_cycle=100, hbm_bytes=1000, hbm_bytes_per_second=10.0, ring_bytes_per_second=1.0)
MESH = {"data": 2, "fsdp": 4, "tensor": 1}
ALL = "replica_groups={{0,1,2,3,4,5,6,7}}"


def cost(entry, *computations, mesh=MESH):
    return estimate(hlo.parse(program([P0, *entry], FUSED, ADD, *computations)), mesh, CHIP)


def gather(name, size=8, channel=1, opcode="all-gather", groups=ALL):
    """An all-gather whose result has `size` float32: 7/8 of its bytes pass over the wires."""
    shape = f"f32[{size}]{{0:T(128)}}"
    shape = f"(f32[{size // 8}]{{0:T(128)}}, {shape})" if opcode.endswith("-start") else shape
    return f"%{name} = {shape} {opcode}(%p0), channel_id={channel}, {groups}, dimensions={{0}}"


def test_cycles_add_up_and_the_dearest_stands_first():
    found = cost([work("a", 10), work("b", 5), work("c", 10)])
    assert found.compute_cycles == found.total_cycles == 25
    assert [(item.cycles, item.count) for item in found.items] == [(25, 3)]
    metadata = 'metadata={op_name="jit(f)/dot"}, '
    first, second = cost([work("a", 10), work("b", 7, metadata=metadata), work("c", 10, metadata=metadata)]).items
    assert (first.operation, first.cycles, second.cycles) == ("jit(f)/dot", 17, 10)


def test_loops_multiply_also_within_each_other():
    inner, inner_called = loop("inner", [work("w", 3)], bound=5)
    inner = [line.replace("%p0", "%outer.x") for line in inner]
    outer, outer_called = loop("outer", [work("v", 1), *inner, gather("g")], bound=8, step=2)
    found = cost(outer, inner_called, outer_called)
    assert found.compute_cycles == 4 * (1 + 5 * 3)
    (collective,) = found.collectives
    assert (collective.count, collective.ring_bytes, collective.exposed_cycles) == (4, 4 * 28, 4 * 28)
    assert found.total_cycles == found.compute_cycles + 4 * 28
    assert sum(item.count for item in found.items) == 4 + 20


def test_a_loop_ends_with_what_it_sent():
    body = [gather("g", opcode="all-gather-start"), work("a", 3)]
    instructions, called = loop("scan", body, bound=5)
    assert cost(instructions, called).total_cycles == 5 * 28


def test_of_a_condition_the_longest_branch_is_charged_and_nothing_of_the_others():
    def branch(cycles):
        metadata = f'metadata={{op_name="b{cycles}"}}, '
        return f"%branch{cycles} (p: f32[8]) -> f32[8] {{\n  ROOT {work(f'w{cycles}', cycles, metadata=metadata)}\n}}\n"

    branches = [branch(2), branch(9), branch(4)]
    chosen = "%c = f32[8]{0} conditional(%p0, %p0, %p0, %p0), branch_computations={%branch2, %branch9, %branch4}"
    found = cost([chosen], *branches)
    assert found.total_cycles == 9 and [item.operation for item in found.items] == ["b9"]
    either = "%c = f32[8]{0} conditional(%p0, %p0, %p0), true_computation=%branch4, false_computation=%branch2"
    assert cost([either], *branches).total_cycles == 4
    assert cost(["%c = f32[8]{0} call(%p0), to_apply=%branch2"], *branches).total_cycles == 2


def test_a_collective_that_the_step_waits_for_is_charged_fully():
    found = cost([work("a", 10), gather("g"), work("b", 10)])
    assert found.total_cycles == 20 + 28 and found.compute_cycles == 20
    assert found.collectives[0].exposed_cycles == 28


@pytest.mark.parametrize(("between", "waited"), [(0, 28), (10, 18), (28, 0), (100, 0)])
def test_a_collective_started_early_is_charged_for_what_is_not_hidden(between, waited):
    done = "%d = f32[8]{0:T(128)} all-gather-done(%g)"
    found = cost([gather("g", opcode="all-gather-start"), work("a", between), done])
    assert found.collectives[0].exposed_cycles == waited
    assert found.total_cycles == between + waited
    assert found.collectives[0].ring_bytes == 28  # of the result, not of the operand beside it


def test_two_that_were_started_wait_for_each_other():
    entry = [
        gather("g", opcode="all-gather-start"), gather("h", opcode="all-gather-start", channel=2), work("a", 30),
        "%d = f32[8]{0:T(128)} all-gather-done(%g)", "%e = f32[8]{0:T(128)} all-gather-done(%h)",
    ]  # fmt: skip
    found = cost(entry)
    assert found.total_cycles == 56 and found.collectives[0].exposed_cycles == 26


def test_what_nobody_waits_for_still_ends_with_the_step():
    assert cost([gather("g", opcode="all-gather-start"), work("a", 3)]).total_cycles == 28


STATE = "(f32[1]{0:T(128)}, f32[8]{0:T(128)}, s32[2]{0:S(4)}, u32[]{:S(2)})"


def tpu_fusion(name, kind, channel):
    """The computation of a fusion that starts a collective, ends it, or goes on with it under other work."""
    inner = f"  %{name}.g = f32[8]{{0:T(128)}} all-gather(%{name}.p), channel_id={channel}, {ALL}, dimensions={{0}}"
    root = {
        "Start": f'{STATE} custom-call(%{name}.g), custom_call_target="AsyncCollectiveStart"',
        "Done": f'f32[8]{{0:T(128)}} custom-call(%{name}.p, %{name}.g), custom_call_target="AsyncCollectiveDone"',
        "": f"{STATE} tuple(%{name}.p, %{name}.g, %{name}.p, %{name}.p)",
    }[kind]
    head = f"%{name} ({name}.p: f32[1]) -> f32[8] {{\n  %{name}.p = f32[1]{{0:T(128)}} parameter(0)"
    return f"{head}\n{inner}\n  ROOT %{name}.root = {root}\n}}\n"


def test_the_fusions_by_which_a_tpu_starts_and_ends_a_collective_belong_together_by_their_channel():
    called = [
        tpu_fusion("start7", "Start", 7), tpu_fusion("start9", "Start", 9), tpu_fusion("done7", "Done", 7),
        tpu_fusion("done9", "Done", 9), tpu_fusion("async_collective_fusion.1", "", 7),
    ]  # fmt: skip
    under = work("under", 20, "%s").replace("calls=%fused", "calls=%async_collective_fusion.1")
    entry = [
        f"%s = {STATE} fusion(%p0), kind=kCustom, calls=%start7",
        f"%t = {STATE} fusion(%p0), kind=kCustom, calls=%start9",
        under,
        "%y = f32[8]{0:T(128)} fusion(%t), kind=kCustom, calls=%done7",
        work("a", 30),
        "%z = f32[8]{0:T(128)} fusion(%under), kind=kCustom, calls=%done9",
    ]
    found = cost(entry, *called)
    assert found.compute_cycles == 50
    assert found.collectives[0].count == 2 and found.collectives[0].exposed_cycles == 8
    assert found.total_cycles == 58


def test_an_asynchronous_wrapper_counts_as_its_collective():
    wrapped = (
        "%wrapped (w: f32[64]) -> f32[8] {\n  %w = f32[64]{0} parameter(0)\n  ROOT %rs = f32[8]{0} "
        f"reduce-scatter(%w), channel_id=4, {ALL}, dimensions={{0}}, to_apply=%add.clone\n}}\n"
    )
    entry = [
        "%s = ((f32[64]{0}), f32[8]{0}) async-start(%p0), calls=%wrapped", work("a", 100),
        "%d = f32[8]{0} async-done(%s)",
    ]  # fmt: skip
    found = cost(entry, wrapped)
    (collective,) = found.collectives
    assert (collective.kind, collective.ring_bytes, collective.exposed_cycles) == ("reduce-scatter", 224, 124)


@pytest.mark.parametrize(
    ("instruction", "ring_bytes"),
    [
        ("f32[64]{0} all-gather(%p0)", 256 * 7 / 8),
        ("f32[64]{0} all-reduce(%p0)", 256 * 2 * 7 / 8),
        ("(f32[60]{0}, f32[4]{0}) all-reduce(%p0, %p0)", 256 * 2 * 7 / 8),
        ("(f32[60]{0}, f32[4]{0}) all-reduce-start(%p0, %p0)", 256 * 2 * 7 / 8),
        ("((f32[7]{0}, f32[1]{0}), (f32[56]{0}, f32[8]{0})) all-gather-start(%p0, %p0)", 256 * 7 / 8),
        ("f32[8]{0} reduce-scatter(%p0)", 256 * 7 / 8),
        ("f32[64]{0} all-to-all(%p0)", 256 * 8 / 4),
        ("f32[] all-reduce(%p0)", 4 * 2 * 7 / 8),
    ],
)
def test_each_kind_has_its_ring_bytes(instruction, ring_bytes):
    (collective,) = cost([f"%x = {instruction}, channel_id=1, {ALL}, to_apply=%add.clone"]).collectives
    assert collective.ring_bytes == ring_bytes
    assert collective.kind == instruction.partition("(%")[0].split()[-1].removesuffix("-start")


def test_an_all_reduce_of_which_each_takes_a_slice_is_a_reduce_scatter():
    fused = (
        "%all-reduce-scatter.72 (i: f32[64]) -> f32[8] {\n  %i = f32[64]{0} parameter(0)\n"
        f"  %r = f32[64]{{0}} all-reduce(%i), channel_id=2, {ALL}, to_apply=%add.clone\n"
        "  ROOT %s = f32[8]{0} dynamic-slice(%r, %i), dynamic_slice_sizes={8}\n}\n"
    )
    (collective,) = cost(["%f = f32[8]{0} fusion(%p0), kind=kCustom, calls=%all-reduce-scatter.72"], fused).collectives
    assert (collective.kind, collective.ring_bytes) == ("reduce-scatter", 224)


@pytest.mark.parametrize(
    ("groups", "axes", "size"),
    [
        ("replica_groups={{0,1,2,3},{4,5,6,7}}", "fsdp", 4),
        ("replica_groups={{0,4},{1,5},{2,6},{3,7}}", "data", 2),
        ("replica_groups={{0,1,2,3,4,5,6,7}}", "data+fsdp", 8),
        ("replica_groups={}", "data+fsdp", 8),
        ("replica_groups=[2,4]<=[8]", "fsdp", 4),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", "data", 2),
        ("replica_groups=[1,8]<=[8]", "data+fsdp", 8),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}", "fsdp", 4),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0'}", "data", 2),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0','axis_1'}", "data+fsdp", 8),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=2], device_ids=([2,4]T(1,0)) {'axis_0'}", "fsdp", 4),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=2], device_ids=([2,4]T(1,0)) {'axis_1'}", "data", 2),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=1,'axis_2'=2], device_ids=([2,4]T(1,0)) {'axis_0'}", "fsdp", 4),
    ],
)
def test_the_mesh_axes_are_read_from_the_groups_in_each_of_their_formats(groups, axes, size):
    (collective,) = cost([gather("g", size=64, groups=groups)]).collectives
    assert collective.axes == axes
    assert collective.ring_bytes == pytest.approx(256 * (size - 1) / size)


def test_a_permutation_runs_along_the_axis_of_its_pairs():
    shape = "(f32[8]{0:T(128)S(1)}, f32[8]{0:T(128)}, u32[]{:S(2)}, u32[]{:S(2)})"
    pairs = "source_target_pairs={{0,1},{1,2},{2,3},{3,0},{4,5},{5,6},{6,7},{7,4}}"
    found = cost([f"%s = {shape} collective-permute-start(%p0), channel_id=80, {pairs}",
                  "%d = f32[8]{0} collective-permute-done(%s)"])  # fmt: skip
    (collective,) = found.collectives
    assert (collective.axes, collective.ring_bytes, collective.exposed_cycles) == ("fsdp", 32, 32)


ESTIMATE = '"cost_estimate":{{"flops":"{flops}","transcendentals":"0","bytes_accessed":"{moved}"}},'


@pytest.mark.parametrize(("flops", "moved"), [(100_000, 10), (10, 100_000)])
def test_a_kernel_is_charged_for_the_longer_of_its_flops_and_bytes(flops, moved):
    found = cost([KERNEL.format(cost=ESTIMATE.format(flops=flops, moved=moved))])
    longer = max(flops / (100 * PALLAS_SHARE_OF_PEAK), moved / (10 * SHARE_OF_HBM_BANDWIDTH))
    assert found.compute_cycles == found.pallas_cycles == pytest.approx(longer)
    assert found.unknown_kernels == 0


def test_a_kernel_without_an_estimate_is_charged_for_what_it_reads_and_writes_and_counted():
    instructions, called = loop("scan", [KERNEL.format(cost="").replace("%p0", "%scan.x")], bound=3)
    found = cost(instructions, called)
    moved = 4 * 8 + (4 * 2 * 128 + 2 * 4 * 256)  # the operand; both results
    assert found.pallas_cycles == found.compute_cycles == pytest.approx(3 * moved / (10 * SHARE_OF_HBM_BANDWIDTH))
    assert found.unknown_kernels == 3


def test_every_tpu_has_all_that_an_estimate_needs():
    for kind, chip in CHIPS.items():
        if kind.startswith("TPU"):
            assert all(dataclasses.astuple(chip)), kind
            assert 0.9e9 < chip.cycles_per_second < 2e9, kind
