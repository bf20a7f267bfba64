"""A run on a mixture whose weights change, with a batch that grows: what it leaves behind, and that nothing is lost."""

import json
import random
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest_runs import hex_numbers, kill_when, read_metrics
from test_pretrain import PRETRAIN

from gpt_jax.data.batch_sizes import BatchSizes
from gpt_jax.data.mixed_windows import MixedWindows
from gpt_jax.data.mixture import GPT3
from gpt_jax.data.windows import Windows
from gpt_jax.errors import UserError
from gpt_jax.main import main
from gpt_jax.runs import pretrain

SIZES = BatchSizes((0, 8, 12), (2, 4, 8))  # of 2 to 8 sequences of 32 over 1,024 tokens in two stages
STEPS = 15


@pytest.fixture(scope="module")
def fields(text, tmp_path_factory) -> dict:
    """Fields of a run on the common text and one of other words, by weights that change at step 6."""
    draw = random.Random(1)
    other = tmp_path_factory.mktemp("other") / "other.txt"
    other.write_text("".join(" ".join(draw.choices("zab zub zob zib".split(), k=9)) + "\n" for _ in range(600)))
    mixture = {"0": {f"file:{text}": 3, f"file:{other}": 1}, "6": {f"file:{text}": 1, f"file:{other}": 1}}
    return {
        "data.source": "", "data.mixture": json.dumps(mixture), "train.steps": STEPS, "train.ramp_tokens": 1024,
        "train.ramp_from": 64, "train.ramp_stages": 2, "schedule.warmup_tokens": 200, "train.eval_every": 5,
        "report.sample_every": 0,
    }  # fmt: skip


@pytest.fixture(scope="module")
def mixed(runs, fields, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("mixed")
    runs.finish(workdir, **fields)
    return workdir


def test_tokens_rates_and_epochs_are_those_of_the_growing_batch(mixed, fields):
    rows = read_metrics(mixed)
    first, second = json.loads(fields["data.mixture"])["0"]
    facts = json.loads((mixed / "data.json").read_text())["sources"]
    windows = {name: (facts[name]["train"]["tokens"] - 1) // 32 for name in (first, second)}
    assert SIZES == pretrain.batch_sizes(PRETRAIN.ConfigDict(json.loads((mixed / "config.json").read_text())))
    for step in range(1, STEPS + 1):
        row, examples = rows[step, "train"], SIZES.examples(step)
        assert row["tokens"] == examples * 32 and row["tokens_per_second"] > 0
        share = min(examples, 12) * 0.25 + max(examples - 12, 0) * 0.5  # 12 examples before step 6
        assert row[f"{second}/epochs"] * windows[second] == pytest.approx(share, abs=1)
        total = sum(row[f"{name}/epochs"] * windows[name] for name in windows)
        assert total == pytest.approx(examples, abs=1e-2)
        if step * 64 <= 200:
            assert row["learning_rate"] == pytest.approx(3e-3 * min(examples * 32 / 200, 1), rel=1e-3)


def test_each_source_is_scored_on_its_own_and_the_mean_is_by_weight(mixed, fields):
    first, second = json.loads(fields["data.mixture"])["0"]
    for step in (5, 10, 15):
        row = read_metrics(mixed)[step, "valid"]
        for name in ("loss", "bits_per_byte"):  # on average 62.5% and 37.5%
            assert row[name] == pytest.approx(0.625 * row[f"{first}/{name}"] + 0.375 * row[f"{second}/{name}"])
    report = (mixed / "report.md").read_text()
    assert "## Sources" in report and "62.50%" in report and "a mixture" in report


def test_a_killed_run_on_a_mixture_resumes_bit_for_bit(runs, fields, mixed, tmp_path):
    """Killed in the first stage of the batch, after the weights changed, and in the last."""
    log = tmp_path / "metrics.jsonl"
    for step in (4, 9, 13):
        reached = lambda step=step: log.exists() and f'"step": {step},' in log.read_text()  # noqa: E731
        kill_when(runs.start(tmp_path, **fields), reached)
    runs.finish(tmp_path, **fields)
    assert hex_numbers(tmp_path) | {"samples": ""} == hex_numbers(mixed) | {"samples": ""}


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"data.mixture": '{"books": -1}'}, ["data.mixture", "'books' is -1"]),
        ({"data.mixture": '{"books": 0}'}, ["all weights are 0"]),
        ({"data.mixture": "books"}, ["no JSON"]),
        ({"data.mixture": '{"bookz": 1}'}, ["bookz", "no known address"]),
        ({"data.mixture": '{"books": 1}', "data.source": "books"}, ["data.source='books'", "give one of them"]),
        ({"data.mixture": '{"file:LONG": 1, "file:SHORT": 1}'}, ["SHORT", "fewer than one window"]),
        ({"data.mixture": '{"file:EMPTY": 1}'}, ["EMPTY is empty"]),
        ({"train.ramp_from": 0}, ["train.ramp_from=0"]),
        ({"train.ramp_stages": 0}, ["train.ramp_stages=0"]),
        ({"train.ramp_tokens": -1}, ["train.ramp_tokens=-1"]),
        ({"train.ramp_from": 96}, ["3 sequences", "8 devices", "ramp_from=256", "ramp_tokens=0"]),
        ({"train.tokens": 1000}, ["train.steps=15", "train.tokens=1000", "exactly one"]),
    ],
)
def test_what_is_wrong_is_said_in_one_message(overrides, words, runs, fields, tmp_path, capsys):
    (tmp_path / "short.txt").write_text("Too short.")
    (tmp_path / "empty.txt").write_text("")
    places = {"LONG": str(runs.text), "SHORT": str(tmp_path / "short.txt"), "EMPTY": str(tmp_path / "empty.txt")}
    for name, path in places.items():
        overrides = {key: str(value).replace(name, path) for key, value in overrides.items()}
        words = [word.replace(name, path) for word in words]
    fields = fields | {"train.ramp_from": 256, "tokenizer.vocab_size": 400} | overrides  # none: eight devices
    assert main(["main", *runs.arguments(tmp_path / "run", **fields)]) == 2
    message = capsys.readouterr().err
    assert message.count("error: ") == 1 and all(word in message for word in words), message


def test_gpt3s_mixture_asks_for_the_addresses_that_are_missing():
    config = PRETRAIN.get_config("gpt3,size=125M,mixture=gpt3").unlock()
    config.data.addresses.webtext2 = "file:web.jsonl"
    with pytest.raises(UserError) as error:
        pretrain.resolve(config)
    assert "no address for common_crawl, books1, books2, wikipedia" in str(error.value)
    assert "--config.data.addresses.wikipedia=ADDRESS" in str(error.value)
    config.data.addresses.update({name: f"file:{name}.jsonl" for name in GPT3})
    assert json.loads(pretrain.resolve(config)[0].data.mixture)["webtext2"] == 22


def test_weights_that_a_run_never_reaches_are_told(capsys):
    config = PRETRAIN.get_config("books,steps=10").unlock()
    config.data.mixture = '{"0": {"books": 1}, "9": {"books": 2}, "10": {"books": 3}}'
    facts = {"sources": {"books": {"train": {"tokens": 1000}}}}
    windows = MixedWindows({"books": Windows(range(1000), 128)})
    text = SimpleNamespace(windows=windows, facts=facts, epochs=lambda examples: {"books": float(examples)})
    pretrain.describe(pretrain.resolve(config)[0], text, steps=10)
    said = "".join(capsys.readouterr())
    assert "books: 80.00 epochs of 1,000 tokens" in said
    assert "from step 10 on are never reached" in said and "step 9" not in said


def test_gpt3s_attention_is_an_option_of_its_recipe():
    dense = pretrain.resolve(PRETRAIN.get_config("gpt3,size=125M,attention=dense"))[0]
    alternating = pretrain.resolve(PRETRAIN.get_config("gpt3,attention=alternating"))[0]
    assert (dense.model.attention_pattern, alternating.model.attention_pattern) == ("dense", "alternating")
    for argument in ("gpt2-small,attention=dense", "gpt3,attention=sparse", "gpt1,mixture=gpt3", "gpt3,mixture=pile"):
        with pytest.raises(UserError, match="behind gpt3 only"):
            PRETRAIN.get_config(argument)


@pytest.mark.parametrize("size", ["125M", "350M", "760M", "1.3B", "2.7B", "6.7B", "13B", "175B"])
def test_every_size_ramps_from_32k_tokens_within_4_to_12_billion(size):
    config = pretrain.resolve(PRETRAIN.get_config(f"gpt3,size={size}"))[0]
    sizes = pretrain.batch_sizes(config)
    assert sizes.sizes[0] * 2048 == 32_768 and sizes.full == config.train.batch_size
    assert 4e9 <= sizes.examples(sizes.first_steps[-1]) * 2048 < 12.01e9
    steps = pretrain.planned_steps(config)
    assert sizes.examples(steps - 1) * 2048 < 300e9 <= sizes.examples(steps) * 2048
    schedule, _ = pretrain.schedule_and_optimizer(config, steps, sizes)
    seen = lambda tokens: sizes.reaching(tokens / 2048) - 1  # noqa: E731  the update that reaches so many tokens
    assert float(schedule(seen(375e6 / 2))) == pytest.approx(config.schedule.peak / 2, rel=1e-2)
    assert float(schedule(seen(375e6))) == pytest.approx(config.schedule.peak, rel=1e-2)
    assert float(schedule(seen(260e9))) == pytest.approx(config.schedule.peak / 10, rel=1e-2)
    assert float(schedule(steps - 1)) == pytest.approx(config.schedule.peak / 10, rel=1e-4)


def test_epochs_under_a_ramp_are_counted_in_examples():
    config = pretrain.resolve(PRETRAIN.get_config("gpt3,epochs=2"))[0].unlock()
    config.train.ramp_tokens = 2048 * 160
    sizes = pretrain.batch_sizes(config)
    steps = pretrain.total_steps(config, num_windows=10_000)
    assert sizes.examples(steps) <= 20_000 < sizes.examples(steps + 1)
