"""The search for the best mesh, rematerialisation and accumulation: its order, its memory, its record."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.pretrain import get_config
from gpt_jax.errors import UserError
from gpt_jax.main import main
from gpt_jax.planning.topologies import find_topology
from gpt_jax.runs import plan_search, pretrain
from gpt_jax.runs.plan_search import REMATS, Candidate, candidates, meshes, rank, search

GIB = 2**30
PARTS = (1, 2, 4, 8)
GRID = [Candidate(1, 8, 1, remat, n) for remat in REMATS for n in PARTS]
TINY = {
    "num_layers": 1, "num_heads": 1, "embed_dim": 16, "context_length": 16, "attention_block": 0, "logits_chunk": 0,
}  # fmt: skip


def tiny_config(**model):
    """A pretraining of a model whose step compiles quickly, with 8 sequences of 16 tokens a step."""
    config = get_config().unlock()
    config.model.update(TINY | model)
    config.tokenizer.vocab_size = 64
    config.train.batch_size = 8
    return config.lock()


class Machine:
    """A compiler that answers at once: memory falls with saving, and time rises with it."""

    def __init__(self, hbm: float, *, knows_time: bool = True):
        self.hbm, self.knows_time, self.asked = hbm, knows_time, []

    @staticmethod
    def needs(candidate: Candidate) -> float:
        kept, parts = candidate.saving
        return 1.0 + 32.0 / 4**kept / parts

    def __call__(self, candidate: Candidate) -> dict:
        self.asked.append(candidate)
        kept, parts = candidate.saving
        row = {"change": candidate.change, "fits": self.needs(candidate) <= self.hbm}
        needed = int(self.needs(candidate) * GIB)
        if not row["fits"]:
            return row | {"needed_bytes": needed, "missing_bytes": None}
        row |= {"bytes_per_chip": {"total": needed}, "estimated_mfu": 0.5, "collectives": []}
        seconds = 1.0 + 0.37 * kept + 0.1 * parts + 0.01 * candidate.tensor
        times = {"estimated_step_seconds": seconds, "estimated_step_seconds_without_collectives": seconds}
        return row | (times if self.knows_time else dict.fromkeys(times))


def run_search(machine: Machine, variants=GRID, known=None, *, scanned: bool = False) -> list[dict]:
    return list(search(variants, machine, known or {}, scanned))


def test_one_that_fits_without_saving_ends_the_search_on_its_mesh():
    machine = Machine(hbm=100)
    run_search(machine)
    assert machine.asked == [Candidate(1, 8, 1, "none", 1)]


@settings(deadline=None)
@given(st.floats(0.5, 40))
def test_the_search_finds_what_compiling_everything_would_find(hbm):
    machine = Machine(hbm)
    rows = run_search(machine)
    fastest = min(map(Machine(hbm), GRID), key=rank)
    best = min(rows, key=rank)
    assert best["fits"] == fastest["fits"]
    if best["fits"]:
        assert best["change"] == fastest["change"]


@settings(deadline=None)
@given(st.floats(0.5, 40))
def test_nothing_is_compiled_that_needs_more_than_what_did_not_fit(hbm):
    machine = Machine(hbm)
    run_search(machine)
    for index, candidate in enumerate(machine.asked):
        failed = [other for other in machine.asked[:index] if machine.needs(other) > hbm]
        assert not any(candidate.needs_no_less_than(other) for other in failed)


def test_a_mesh_that_cannot_fit_is_left_after_few_compilations():
    machine = Machine(hbm=0.5)
    run_search(machine)
    assert machine.asked[0].remat == "none" and len(machine.asked) <= 6 < len(GRID)


def test_a_verdict_on_one_mesh_says_nothing_of_another():
    other = [Candidate(8, 1, 1, remat, n) for remat in REMATS for n in PARTS]
    machine = Machine(hbm=100)
    run_search(machine, GRID + other)
    assert machine.asked == [GRID[0], other[0]]


def test_scanned_layers_are_tried_with_less_kept_even_where_more_fits():
    machine = Machine(hbm=100)
    run_search(machine, scanned=True)
    assert {(candidate.remat, candidate.accumulation) for candidate in machine.asked} >= {(r, 1) for r in REMATS}


def test_without_an_estimate_of_time_everything_is_compiled_and_sorted_by_memory():
    machine = Machine(hbm=100, knows_time=False)
    rows = sorted(run_search(machine), key=rank)
    assert set(machine.asked) == set(GRID)
    assert rows[0]["change"] == Candidate(1, 8, 1, "block", 8).change


def test_a_search_that_was_stopped_goes_on_with_what_is_missing():
    whole, stopped = Machine(hbm=3), Machine(hbm=3)
    run_search(whole)
    rows = [row for row, _ in zip(search(GRID, stopped, {}, False), range(2), strict=False)][:2]
    resumed = Machine(hbm=3)
    run_search(resumed, known={candidate: row for candidate, row in zip(stopped.asked[:2], rows, strict=True)})
    assert stopped.asked[:2] + resumed.asked == whole.asked


@pytest.mark.parametrize(("chips", "sequence", "slices"), [(8, 1, 1), (16, 2, 2), (1, 1, 1), (6, 1, 1), (256, 1, 4)])
def test_every_mesh_takes_all_devices_and_only_data_crosses_slices(chips, sequence, slices):
    found = meshes(chips, sequence, slices)
    assert found[0] == (slices, chips // sequence // slices, 1)
    assert len(set(found)) == len(found)
    for data, fsdp, tensor in found:
        assert data * fsdp * tensor * sequence == chips and data % slices == 0


def test_the_meshes_of_eight_devices():
    assert meshes(8) == [
        (1, 8, 1), (2, 4, 1), (8, 1, 1), (1, 4, 2), (2, 2, 2), (4, 1, 2), (1, 2, 4), (2, 1, 4),
    ]  # fmt: skip


def test_of_many_devices_eight_share_the_parameters_too():
    assert meshes(64)[:4] == [(1, 64, 1), (8, 8, 1), (64, 1, 1), (1, 32, 2)]
    assert meshes(32)[:4] == [(1, 32, 1), (4, 8, 1), (32, 1, 1), (1, 16, 2)]
    assert meshes(128)[:4] == [(1, 128, 1), (16, 8, 1), (8, 16, 1), (128, 1, 1)]


def resolved_candidates(config) -> list[Candidate]:
    """Of this machine's eight simulated devices."""
    return candidates(pretrain.resolve(config)[0], find_topology("cpu"))


def test_tensor_is_tried_only_where_the_model_allows_it():
    assert {candidate.tensor for candidate in resolved_candidates(tiny_config())} == {1}
    assert {candidate.tensor for candidate in resolved_candidates(tiny_config(num_heads=2))} == {1, 2}


def test_parts_of_a_batch_are_whole_rows_on_every_device():
    config = tiny_config(num_heads=2).unlock()
    config.train.batch_size = 24
    found = resolved_candidates(config.lock())
    assert {candidate.accumulation for candidate in found if candidate.tensor == 1} == {1}
    assert {candidate.accumulation for candidate in found if candidate.tensor == 2} == {1, 2}


def test_a_batch_that_no_mesh_divides_is_refused():
    config = tiny_config().unlock()
    config.train.batch_size = 7
    with pytest.raises(UserError, match="train.batch_size=7"):
        resolved_candidates(config.lock())


def test_the_record_keeps_rows_and_the_best_config_after_every_candidate(tmp_path, monkeypatch):
    machine = Machine(hbm=100, knows_time=False)

    def measure(config, candidate, topology):
        if len(machine.asked) == 2:
            raise KeyboardInterrupt
        return machine(candidate)

    monkeypatch.setattr(plan_search, "measure", measure)
    with pytest.raises(KeyboardInterrupt):
        plan_search.run(tiny_config(), tmp_path, "cpu")
    folder = tmp_path / "plan-cpu"
    rows = [json.loads(line) for line in (folder / "plan_search.jsonl").read_text().splitlines()]
    best = json.loads((folder / "best_config.json").read_text())
    assert [row["change"] for row in rows] == [candidate.change for candidate in machine.asked]
    least = min(rows, key=rank)["change"]
    assert best["model"]["remat"] == least["model.remat"]
    assert best["mesh"]["fsdp"] == least["mesh.fsdp"] and best["model"]["embed_dim"] == 16

    later = Machine(hbm=100, knows_time=False)
    monkeypatch.setattr(plan_search, "measure", lambda config, candidate, topology: later(candidate))
    ranked = plan_search.run(tiny_config(), tmp_path, "cpu")
    assert not set(later.asked) & set(machine.asked)
    assert len(ranked) == len(later.asked) + 2 == 9


def test_rows_of_another_config_do_not_count_and_are_kept(tmp_path, monkeypatch):
    for batch_size in (8, 16):
        machine = Machine(hbm=100)
        monkeypatch.setattr(plan_search, "measure", lambda config, candidate, topology, m=machine: m(candidate))
        config = tiny_config().unlock()
        config.train.batch_size = batch_size
        plan_search.run(config.lock(), tmp_path, "cpu")
        assert len(machine.asked) == 3  # one a mesh
    rows = (tmp_path / "plan-cpu" / "plan_search.jsonl").read_text().splitlines()
    assert len(rows) == 6


def test_a_machine_that_is_too_small_is_said_in_one_message(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(plan_search, "measure", lambda config, candidate, topology: Machine(hbm=0.5)(candidate))
    with pytest.raises(UserError, match="no variant of books fits cpu"):
        plan_search.run(tiny_config(), tmp_path, "cpu")
    assert "does not fit" in capsys.readouterr().out
    assert not (tmp_path / "plan-cpu" / "best_config.json").exists()


def test_a_damaged_record_is_named(tmp_path):
    (tmp_path / "plan-cpu").mkdir()
    (tmp_path / "plan-cpu" / "plan_search.jsonl").write_text('{"change":')
    with pytest.raises(UserError, match="plan_search.jsonl is damaged"):
        plan_search.run(tiny_config(), tmp_path, "cpu")


def test_only_pretraining_is_searched(tmp_path):
    config = tiny_config().unlock()
    config.run = "evaluate"
    with pytest.raises(UserError, match="pretraining runs only"):
        plan_search.run(config.lock(), tmp_path, "cpu")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_command_compiles_every_variant_on_simulated_devices_and_sorts_them_by_memory(tmp_path, capsys):
    fields = {f"model.{name}": value for name, value in TINY.items()} | {
        "model.num_heads": 4, "tokenizer.vocab_size": 64, "train.batch_size": 2, "mesh.sequence": 4,
    }  # fmt: skip
    overrides = [f"--config.{name}={value}" for name, value in fields.items()]
    command = ["main", "--config=configs/pretrain.py", f"--workdir={tmp_path}", "--plan=cpu", "--plan_search"]
    assert main([*command, *overrides]) == 0
    rows = [json.loads(line) for line in (tmp_path / "plan-cpu" / "plan_search.jsonl").read_text().splitlines()]
    assert [row["mesh"] for row in rows] == 3 * [
        {"data": 1, "fsdp": 2, "tensor": 1, "sequence": 4}
    ] + 3 * [{"data": 2, "fsdp": 1, "tensor": 1, "sequence": 4}]  # fmt: skip
    assert {row["remat"] for row in rows[:3]} == {row["remat"] for row in rows[3:]} == set(REMATS)
    assert rows[0]["state_bytes"] < rows[3]["state_bytes"]
    best = json.loads((tmp_path / "plan-cpu" / "best_config.json").read_text())
    least = min(rows, key=lambda row: row["bytes_per_chip"]["total"])
    assert best["mesh"]["fsdp"] == least["mesh"]["fsdp"] and best["model"]["remat"] == least["remat"]
    assert f"--config.mesh.fsdp={least['mesh']['fsdp']}" in capsys.readouterr().out.partition("the best:")[2]
