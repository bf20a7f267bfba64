"""Reward models and DPO, from a file of ranked answers to a model: what they learn, keep and refuse."""

import json
import math
import random
import runpy
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from conftest_runs import ROOT, Runs, hex_numbers, kill_when, read_metrics
from small_models import byte_tokenizer, write_model

from gpt_jax.alignment.ranked_answers import RankedAnswers
from gpt_jax.data.ranked_batches import RankedSet
from gpt_jax.errors import UserError
from gpt_jax.runs import dpo, predict, reward
from gpt_jax.runs.aligning.comparisons import Split
from gpt_jax.runs.aligning.reference_log_probs import reference_log_probs
from gpt_jax.runs.aligning.reward_model import check_value_function, open_reward_model
from gpt_jax.runs.chat_model import open_chat_model
from gpt_jax.runs.pretrained import open_pretrained

pytest.importorskip("jinja2", reason="the extra 'serve' is not installed")


def write_sums(path: Path, count: int, seed: int) -> Path:
    """So many sums with a right answer and one or two others."""
    draw, rows = random.Random(seed), []
    for number in range(count):
        a, b = draw.randint(0, 9), draw.randint(10, 99)
        right, vague, wrong = f"{a + b}", f"~{a + b}", "z" * draw.randint(1, 7)
        if number % 4:
            rows.append({"prompt": f"{a}+{b}?", "chosen": right, "rejected": wrong})
        else:
            rows.append({"prompt": f"{a}+{b}?", "answers": [wrong, right, vague], "ranks": [3, 1, 2], "reference": 1})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def sums(tmp_path_factory) -> Path:
    return write_sums(tmp_path_factory.mktemp("sums") / "sums.jsonl", 64, 0)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("base") / "model", "gpt2-small", context_length=64)


FIELDS = {
    "data.sequence_length": 32, "train.batch_size": 8, "train.steps": 6, "train.epochs": 0.0, "train.log_every": 1,
    "train.eval_every": 3, "checkpoint.every": 2, "report.tensorboard": False,
}  # fmt: skip
OF_RUN = {
    "reward": {"schedule.peak": 1e-2, "train.steps": 10, "train.eval_every": 5},
    "dpo": {"schedule.peak": 1e-3, "report.sample_every": 6, "report.samples": 2}
    | {"report.sample_tokens": 4, "data.pairs": "best_worst"},
}


class RankedRuns(Runs):
    """Starts `python -m gpt_jax.main` on the sums."""

    def __init__(self, base: Path, sums: Path, cache: Path):
        super().__init__(sums, cache)
        self.base = base

    def arguments(self, workdir: Path, *, run: str) -> list[str]:
        preset = "adapters" if run == "dpo" else "full"
        held_out = write_sums(self.text.with_name("held_out.jsonl"), 32, 1)
        fields = FIELDS | OF_RUN[run] | {"data.validation_address": f"file:{held_out}"}
        flags = [f"--config.{name}={value}" for name, value in fields.items()]
        config = f"--config=configs/{run}.py:{preset},init_from={self.base},source=file:{self.text}"
        return [config, f"--workdir={workdir}", *flags]


@pytest.fixture(scope="module")
def ranked_runs(base, sums, cache) -> RankedRuns:
    return RankedRuns(base, sums, cache)


def config_of(name: str, argument: str, **fields):
    """The config as the command line would make it."""
    config = runpy.run_path(str(ROOT / "configs" / f"{name}.py"))["get_config"](argument)
    with config.unlocked():
        config.update_from_flattened_dict(fields)
    return config


@pytest.fixture(scope="module")
def rewarded(ranked_runs, tmp_path_factory) -> Path:
    """The workdir of a reward model."""
    workdir = tmp_path_factory.mktemp("reward")
    ranked_runs.finish(workdir, run="reward")
    return workdir


@pytest.fixture(scope="module")
def preferred(ranked_runs, tmp_path_factory) -> Path:
    """The workdir of a DPO run."""
    workdir = tmp_path_factory.mktemp("dpo")
    ranked_runs.finish(workdir, run="dpo")
    return workdir


def test_a_reward_model_learns_and_says_how_far_it_is_right_beside_length(rewarded):
    rows = read_metrics(rewarded)
    assert rows[10, "valid"]["loss"] < rows[0, "valid"]["loss"] - 0.2
    assert rows[10, "valid"]["accuracy"] > 0.8
    scores = json.loads((rewarded / "scores.json").read_text())["valid"]
    assert scores["accuracy"] == rows[10, "valid"]["accuracy"] and 0.4 < scores["length_accuracy"] < 1
    report = (rewarded / "report.md").read_text()
    assert "of length alone (the shorter answer is better)" in report and "reliability.png" in report
    assert (rewarded / "reliability.png").is_file() and (rewarded / "loss.png").is_file()


def test_the_mean_reward_of_the_references_is_0(rewarded, sums):
    rows = [json.loads(line) for line in sums.read_text().splitlines()]
    demonstrated = [row for row in rows if "reference" in row]
    found = open_reward_model(rewarded).score(
        [({"role": "user", "content": row["prompt"]},) for row in demonstrated],
        [row["answers"][1] for row in demonstrated],
    )
    assert found.dtype == np.float64 and found.std() > 1e-3
    np.testing.assert_allclose(found.mean(), 0, atol=1e-5)


def test_a_reward_model_scores_episodes_whoever_wrote_them(rewarded):
    from types import SimpleNamespace as Episodes

    model = open_reward_model(rewarded)
    said = [[{"role": "user", "content": "1+12?"}]] * 2
    by_message = model(Episodes(prompts=["<rendered>"] * 2, answers=["13", "zzzz"], columns={"messages": said}))
    by_text = model(Episodes(prompts=["1+12?"] * 2, answers=["13", "zzzz"], columns={}))
    np.testing.assert_array_equal(by_message, by_text)
    assert by_message[0] > by_message[1]
    long = model(Episodes(prompts=["1+12?"], answers=["z" * 500], columns={}))  # its end is read
    assert np.isfinite(long).all()


def test_a_table_of_answers_is_scored(rewarded, tmp_path):
    table = tmp_path / "rows.jsonl"
    rows = [{"prompt": "1+12?", "answers": ["13", "zzzz"], "id": "x"}, {"prompt": "2+2?", "answer": "4"}]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    fields = {"mesh.data": 8}
    predict.run(config_of("predict", f"answers,model={rewarded},table=file:{table}", **fields), tmp_path / "out")
    first, second = (json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines())
    prompt = ({"role": "user", "content": "1+12?"},)
    expected = open_reward_model(rewarded).score([prompt] * 2, ["13", "zzzz"])
    np.testing.assert_allclose(first["rewards"], expected, atol=1e-5)
    assert (first["id"], second["id"], len(second["rewards"])) == ("x", "1", 1)
    table.write_text(json.dumps({"prompt": "1+12?"}) + "\n")
    with pytest.raises(UserError, match="rows.jsonl, line 1: expected a prompt .* with an answer"):
        predict.run(config_of("predict", f"answers,model={rewarded},table=file:{table}"), tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_without_a_template_answers_go_on_from_texts(base, tmp_path):
    rows = [
        {"prompt": f"{number} is ", "chosen": "a number", "rejected": "n" * (number % 7 + 1)} for number in range(64)
    ]
    table = tmp_path / "texts.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    fields = FIELDS | {"train.steps": 2, "data.validation_fraction": 0.3, "template": "none"}
    for run, module in (("reward", reward), ("dpo", dpo)):
        fields |= {"report.sample_tokens": 4} if run == "dpo" else {}
        module.run(config_of(run, f"init_from={base},source=file:{table}", **fields), tmp_path / run)
        assert not (tmp_path / run / "chat_template.jinja").exists()
    samples = [json.loads(line) for line in (tmp_path / "dpo" / "samples.jsonl").read_text().splitlines()]
    assert all(row["prompt"].endswith(" is ") for row in samples)
    model = open_reward_model(tmp_path / "reward")
    assert model.as_text and np.isfinite(model.score(["7 is "], ["odd"])).all()


def test_a_value_function_needs_the_policys_tokenizer_and_its_context(rewarded):
    source, other = open_pretrained(rewarded), byte_tokenizer()
    check_value_function(source, source.tokenizer(), 64)
    with pytest.raises(UserError, match="reads 64 tokens at most, and prompts with their answers have up to 65"):
        check_value_function(source, source.tokenizer(), 65)
    other.fingerprint = "another"
    with pytest.raises(UserError, match="another tokenizer than the policy"):
        check_value_function(source, other, 64)


def test_a_reward_model_that_is_not_done_gives_no_rewards(rewarded, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in rewarded.iterdir():
        if path.name != "reward.json":
            (copy / path.name).symlink_to(path)
    with pytest.raises(UserError, match="this reward model is not done yet"):
        open_reward_model(copy)
    (copy / "reward.json").write_text("{}")
    with pytest.raises(UserError, match="does not say the bias"):
        open_reward_model(copy)


def test_dpo_begins_at_ln_2_and_comes_to_prefer_the_better_answers(preferred):
    rows = read_metrics(preferred)
    for split, step in (("train", 1), ("valid", 0)):
        assert rows[step, split]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    first, last = rows[0, "valid"], rows[6, "valid"]
    assert (first["accuracy"], first["margin"]) == (0.5, 0) and last["accuracy"] > 0.7 and last["margin"] > 0
    assert last["margin"] == pytest.approx(last["reward_chosen"] - last["reward_rejected"], abs=1e-5)
    report = (preferred / "report.md").read_text()
    assert "(before: " in report and "log-probability of the better answer" in report


def test_dpos_workdir_is_a_model_that_chats_by_its_template(preferred):
    config = config_of("chat", f"model={preferred}")
    assert "Assistant" in open_chat_model(config).template.source
    assert open_pretrained(preferred).config.num_layers == 2


@pytest.mark.parametrize("run", ["dpo", pytest.param("reward", marks=pytest.mark.slow)])  # one loop serves both
def test_a_killed_run_resumes_bit_for_bit(run, ranked_runs, request, tmp_path):
    whole, killed = request.getfixturevalue({"dpo": "preferred", "reward": "rewarded"}[run]), tmp_path / "killed"
    process = ranked_runs.start(killed, run=run)
    kill_when(process, lambda: (killed / "checkpoints" / "2").exists())
    ranked_runs.finish(killed, run=run)
    assert hex_numbers(killed) == hex_numbers(whole)
    if run == "reward":
        assert (killed / "reward.json").read_text() == (whole / "reward.json").read_text()


# --- what the reference says of the answers


def some_answers(prompts: int = 10) -> Split:
    sequences = [[np.arange(2 + row + answer, dtype=np.int32) for answer in range(2)] for row in range(prompts)]
    starts, ranks = np.ones((prompts, 2), int), np.tile(np.arange(2, dtype=np.float32), (prompts, 1))
    rows = [RankedAnswers("?", ("a", "b"), (0, 1), None, f"row {row}") for row in range(prompts)]
    return Split(rows, RankedSet(sequences, None, 0, 32, starts=starts, columns={"ranks": ranks}))


def test_reference_log_probabilities_are_computed_once_and_go_on_after_a_kill(tmp_path, monkeypatch):
    monkeypatch.setattr("gpt_jax.runs.aligning.reference_log_probs.BLOCK", 2)  # of batches of 2 answers
    weights, splits, asked = {"x": jnp.ones(3)}, {"train": some_answers(), "valid": some_answers(1)}, []

    def lengths(params, sequences, starts):
        if len(asked) == 3:
            raise KeyboardInterrupt
        asked.append(len(sequences))
        return np.array([-len(ids) for ids in sequences], np.float32)

    with pytest.raises(KeyboardInterrupt):
        reference_log_probs(weights, lengths, splits, tmp_path, 2)
    asked.clear()
    asked_before = []
    for params in (weights, None):  # None: the run is past its first checkpoint
        found = reference_log_probs(params, lengths, splits, tmp_path, 2)
        asked_before.append(sum(asked))
    assert asked_before == [10, 10]  # 12 of 22 were kept
    np.testing.assert_array_equal(found["train"], [[-2 - row, -3 - row] for row in range(10)])
    with pytest.raises(UserError, match="another reference model"):
        reference_log_probs({"x": jnp.zeros(3)}, lengths, splits, tmp_path, 2)
    block = tmp_path / "reference_log_probs" / "train-00000000.npy"
    block.write_bytes(block.read_bytes()[:-8])
    with pytest.raises(UserError, match="train-00000000.npy is damaged"):
        reference_log_probs(None, lengths, splits, tmp_path, 2)
    block.unlink()
    with pytest.raises(UserError, match="train-00000000.npy is missing, and the reference model is gone"):
        reference_log_probs(None, lengths, splits, tmp_path, 2)


# --- what is refused

BAD = {
    "configs/(reward|dpo).py:init_from=PATH": dict(init_from=None),
    "a prompt and an answer of 3\\d tokens, and data.sequence_length=30": {"data.sequence_length": 30},
    "data.pairs='best': expected one of all, best_worst": {"data.pairs": "best"},
    "data.columns.answers and so on": {"data.columns.answers": "texts", "data.columns.chosen": "good"},
    "leaves 64 examples for training": {"data.validation_fraction": 0.0},
    "transfer.freeze=3: expected 0 to 2 layers": {"transfer.freeze": 3},
    "train.batch_size=7 does not divide": {"train.batch_size": 7},
}
BAD_OF_DPO = {
    "objective.loss='simpo': expected one of sigmoid, ipo": {"objective.loss": "simpo"},
    "expected a positive beta": {"objective.beta": 0.0},
    "label_smoothing goes with objective.loss=sigmoid": {"objective.loss": "ipo", "objective.label_smoothing": 0.1},
    "report.samples=-1: expected 0 or more": {"report.samples": -1},
}


@pytest.mark.parametrize(
    ("run", "message"), [("reward", message) for message in BAD] + [("dpo", message) for message in BAD_OF_DPO]
)
def test_what_cannot_be_ends_in_one_message_before_anything_is_written(run, message, base, sums, tmp_path):
    fields = FIELDS | (BAD | BAD_OF_DPO)[message]
    config = config_of(run, f"init_from={base},source=file:{sums}", **fields)
    with pytest.raises(UserError, match=message):
        {"reward": reward, "dpo": dpo}[run].run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_papers_hyper_parameters():
    config = config_of("reward", "instructgpt")
    assert (config.train.batch_size, config.train.epochs, config.schedule.peak) == (64, 1, 9e-6)
    assert (config.optimizer.beta1, config.optimizer.beta2, config.schedule.final_fraction) == (0.9, 0.95, 0.1)
    config = config_of("dpo", "paper")
    assert (config.train.batch_size, config.objective.beta, config.schedule.peak) == (64, 0.1, 1e-6)
    assert config.schedule.warmup_steps == 150
