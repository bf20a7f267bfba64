"""`--plan`: what is printed and kept of a training step that is compiled and not run."""

import importlib.util
import json

import jax
import pytest

from gpt_jax.errors import UserError
from gpt_jax.main import main, parse_flags
from gpt_jax.models.flops import training_flops_per_token
from gpt_jax.parallel.devices import CHIPS
from gpt_jax.planning import topologies
from gpt_jax.runs import plan, pretrain
from gpt_jax.training import step as training_step

CONTRACT = {
    "topology", "chips", "fits", "hbm_bytes", "bytes_per_chip", "analytic_flops", "estimated_step_seconds",
    "estimated_mfu", "collectives", "dearest",
}  # fmt: skip
TINY = {"model.dropout": 0.0, "model.num_layers": 1}
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason='the TPU compiler is missing: pip install -e ".[tpu]"'
)


@pytest.fixture(scope="module")
def command(runs):
    """The config of a small run, with other values for some fields."""
    return lambda **fields: parse_flags(["main", *runs.arguments("unused", **TINY | fields)]).config


@pytest.fixture(scope="module")
def planned(runs, tmp_path_factory):
    """Plans through the command line; returns (plan.json, the folder it stands in)."""

    def run(topology: str, **fields):
        workdir = tmp_path_factory.mktemp("plan")
        assert main(["main", *runs.arguments(workdir, **TINY | fields), f"--plan={topology}"]) == 0
        (folder,) = workdir.iterdir()
        return json.loads((folder / "plan.json").read_text()), folder

    return run


@pytest.fixture(scope="module")
def cpu_plan(planned):
    return planned("cpu", **{"mesh.data": 2, "mesh.fsdp": 4})


@pytest.fixture(scope="module")
def tpu_plan(planned):
    return planned("v5e-8", **{"mesh.data": 1, "mesh.fsdp": 8, "model.compute_dtype": "bfloat16"})


def check_memory(plan):
    parts = dict(plan["bytes_per_chip"])
    total = parts.pop("total")
    assert sum(parts.values()) == total and all(size >= 0 for size in parts.values())
    assert parts["parameters"] + parts["optimizer"] <= plan["state_bytes"] < total


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--plan=v5e-9"], ["--plan=v5e-9", "unknown topology", "v5e-8", "cpu, gpu: this machine"]),
        (["--plan=cpu", "--config.mesh.data=3"], ["data=3", "there are 8"]),
        (
            ["--plan=cpu", "--config.mesh.data=1", "--config.mesh.tensor=8"],
            ["mesh.tensor=8", "Sizes that work: 1, 2, 4"],
        ),
        (["--plan=cpu", "--config.train.batch_size=12"], ["train.batch_size=12", "nearest that does: 16"]),
        (
            ["--plan=cpu", "--config.train.ramp_tokens=4096", "--config.train.ramp_from=64"],
            ["train.ramp_from=64", "8 devices"],
        ),
        (["--plan=cpu", "--config.run=finetune"], ["--plan: of pretraining runs only", "run='finetune'"]),
        (["--plan_search"], ["--plan_search: for which machine? Say --plan=TOPOLOGY"]),
    ],
)
def test_what_cannot_be_planned_ends_in_one_message_and_leaves_nothing(flags, words, runs, tmp_path, capsys):
    assert main(["main", *runs.arguments(tmp_path / "run"), *flags]) == 2
    message = capsys.readouterr().err
    assert message.count("error: ") == 1 and "Traceback" not in message
    assert all(word in message for word in words), message
    assert not (tmp_path / "run").exists()


def test_without_the_tpu_compiler_the_message_says_how_to_get_it(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["main", *runs.arguments(tmp_path / "run"), "--plan=v5e-8"]) == 2
    assert 'pip install -e ".[tpu]"' in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_plan_for_this_machine_has_what_is_promised_and_no_estimates(cpu_plan):
    found, folder = cpu_plan
    assert found.keys() >= CONTRACT
    assert (found["topology"], found["chips"], found["fits"], found["hbm_bytes"]) == ("cpu", 8, True, None)
    assert found["mesh"] == {"data": 2, "fsdp": 4, "tensor": 1, "sequence": 1}
    assert all(found[name] is None for name in plan.ESTIMATES)
    check_memory(found)
    assert (folder / "optimized_hlo.txt").read_text().startswith("HloModule jit_train_step")


def test_the_planned_step_is_the_one_that_training_compiles(command, tmp_path, monkeypatch):
    config = command(**{"mesh.data": 2, "mesh.fsdp": 4, "train.accumulation": 2, "train.batch_size": 16})
    original, compiled = training_step.jit_train_step, []

    class Compiled(Exception):
        pass

    def jit_train_step(*arguments, **settings):
        def compile_and_stop(state, batch, seed):
            compiled.append(original(*arguments, **settings).lower(state, batch, seed).as_text())
            raise Compiled

        return compile_and_stop

    monkeypatch.setattr(training_step, "jit_train_step", jit_train_step)
    with pytest.raises(Compiled):
        pretrain.run(config, tmp_path / "run")
    lowered = plan.lower_step(plan.prepare(config, topologies.find_topology("cpu")))
    assert lowered.as_text() == compiled[0]


def test_twice_the_batch_is_twice_the_work(command):
    topology = topologies.find_topology("cpu")
    steps = [plan.prepare(command(**{"train.batch_size": size}), topology) for size in (8, 16)]
    one, two = (plan.facts(step, topology)["analytic_flops"] for step in steps)
    assert two == 2 * one == training_flops_per_token(steps[1].model, 32) * 16 * 32


@needs_libtpu
def test_a_tiny_model_fits_on_a_tpu_that_is_not_here(tpu_plan):
    found, folder = tpu_plan
    assert found.keys() >= CONTRACT and found["fits"] and found["layout"] == "2x4"
    check_memory(found)
    assert 0 < found["estimated_mfu"] <= found["estimated_mfu_without_collectives"] < 1
    assert found["compute_cycles"] < found["total_cycles"]
    assert found["estimated_step_seconds"] > found["analytic_flops"] / 8 / CHIPS["TPU v5 lite"].peak_flops
    assert {collective["axes"] for collective in found["collectives"]} == {"fsdp"}
    assert "all-gather" in {collective["kind"] for collective in found["collectives"]}
    assert sum(item["source"].startswith("models/") for item in found["dearest"]) >= 3
    assert "estimated_cycles" in (folder / "optimized_hlo.txt").read_text()


@pytest.mark.parametrize(
    ("message", "needed", "missing"),
    [
        ("Ran out of memory in memory space hbm. Used 20.1G of 15.75G hbm. Exceeded hbm by 4.35G.", 20.1, 4.35),
        ("Ran out of memory on HBM, the total memory required for HLO temporaries (512.00G) exceeds available HBM "
         "(15.75G).", 512, 496.25),
    ],
)  # fmt: skip
def test_the_compilers_refusal_is_read(message, needed, missing):
    found = plan.out_of_memory(f"RESOURCE_EXHAUSTED: {message}")
    assert (found.needed / 2**30, found.missing / 2**30) == pytest.approx((needed, missing))


def test_a_refusal_in_other_words_is_a_refusal_without_numbers():
    found = plan.out_of_memory("RESOURCE_EXHAUSTED: no.")
    assert found.needed is found.missing is None


@pytest.fixture
def small_tpus(monkeypatch):
    """Eight devices that are taken for TPUs with as much memory as told, and a compiler that refuses as told."""

    def install(hbm_bytes: int, refuses) -> None:
        chip = CHIPS["TPU v5 lite"].__class__(1e12, 1000, hbm_bytes, 1e9, 1e9)
        topology = topologies.Topology("v5e-8", "2x4", jax.devices(), chip)
        monkeypatch.setattr(plan, "find_topology", lambda name: topology)

        def compile_step(step):
            if refuses(step):
                raise plan.OutOfMemory(3 * 2**30, 2**30)
            return None, 0.0

        monkeypatch.setattr(plan, "compile_step", compile_step)

    return install


def test_a_model_that_does_not_fit_says_what_is_missing_and_the_nearest_change_that_fits(command, small_tpus, tmp_path):
    small_tpus(2**31, lambda step: step.config.train.accumulation < 4)
    with pytest.raises(UserError) as refusal:
        plan.run(command(**{"train.batch_size": 64}), tmp_path, "v5e-8")
    message = str(refusal.value)
    assert "books does not fit: at least 1.00 GiB a chip are missing" in message
    flags = message.partition("The nearest change that fits: ")[2].split()
    assert flags == [
        "--config.mesh.data=1", "--config.mesh.fsdp=8", "--config.model.remat=block", "--config.model.logits_chunk=16",
        "--config.train.accumulation=4",
    ]  # fmt: skip
    found = json.loads((tmp_path / "plan-v5e-8" / "plan.json").read_text())
    assert found.keys() >= CONTRACT and found["fits"] is False
    assert found["missing_bytes"] == 2**30 and found["bytes_per_chip"]["total"] == 3 * 2**30
    assert not (tmp_path / "plan-v5e-8" / "optimized_hlo.txt").exists()


def test_a_state_that_cannot_fit_is_refused_before_anything_is_compiled(command, small_tpus, tmp_path):
    def never(step):
        raise AssertionError("compiled")

    small_tpus(1000, never)
    with pytest.raises(UserError, match="Nothing tried fits: take more chips"):
        plan.run(command(), tmp_path, "v5e-8")


@pytest.mark.parametrize(
    "fields", [{}, {"mesh.data": 1, "mesh.fsdp": 8}, {"model.remat": "block"}, {"mesh.data": 4, "mesh.tensor": 2}]
)
def test_every_change_changes_something_and_loosens_nothing(fields, command):
    step = plan.prepare(command(**{"train.batch_size": 64} | fields), topologies.find_topology("cpu"))
    found = list(plan.changes(step))
    assert len(found) >= 4 and all(found.count(change) == 1 for change in found)
    for change in found:
        candidate = plan.changed(step.config, change)
        assert change and candidate.to_dict() != step.config.to_dict()
        prepared = plan.prepare(candidate, topologies.find_topology("cpu"))
        assert plan.REMAT.index(prepared.model.remat) >= plan.REMAT.index(step.model.remat)
        assert prepared.mesh.shape["fsdp"] * prepared.mesh.shape["tensor"] == 8
    assert step.config.train.accumulation == 1  # of the config that was asked for nothing changes
