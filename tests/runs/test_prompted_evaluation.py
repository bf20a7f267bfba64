"""Prompted tasks, perplexity and the standard harness, through the entry that users call."""

import json
import math
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest_runs import ROOT
from small_models import write_model

import gpt_jax
from gpt_jax.inference.sampling import Sampling
from gpt_jax.main import main
from gpt_jax.runs.harness import _numbers as numbers
from gpt_jax.runs.harness import sampling_of


@pytest.fixture(autouse=True)
def in_the_checkout(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("gpt2") / "model", "gpt2-small", context_length=96)


@pytest.fixture(scope="module")
def lm(model):
    return gpt_jax.load(model)


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_rows(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"file:{path}"


CHOICES = [{"query": f"q{n}", "choices": ["one", "two three", "f"][: 2 + n % 2], "gold": n % 2} for n in range(7)]
SCHEMAS = [{"context_options": [f"a cat {n}", f"a dog {n}"], "continuation": "ran.", "gold": n % 2} for n in range(5)]
PASSAGES = [{"text": f"he saw {n} the cat"} for n in range(4)]
QUESTIONS = [{"question": f"who is {n}", "answers": ["Ann"]} for n in range(3)]


@pytest.fixture(scope="module")
def tables(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("tables")
    found = {"copa": CHOICES, "winograd": SCHEMAS, "lambada": PASSAGES, "questions": QUESTIONS}
    return {name: write_rows(folder / f"{name}.jsonl", rows) for name, rows in found.items()}


def evaluate(workdir: Path, argument: str, **fields) -> int:
    flags = [f"--config.{name}={value}" for name, value in fields.items()]
    return main(["main", f"--config=configs/evaluate.py:{argument}", f"--workdir={workdir}", *flags])


def log_probability(lm, context: str, continuation: str) -> tuple[float, int, bool]:
    """The sum over the continuation's bytes, each a token here; how many; whether each is the likeliest."""
    first = [] if context else [lm.tokenizer.specials.end_of_text]
    ids = np.array([*first, *lm.tokenizer.encode(context + continuation)])
    padded = np.pad(ids, (0, lm.config.context_length - len(ids)))  # one shape, compiled once
    logits = np.asarray(lm.logits([padded])[0], np.float64)
    count = len(lm.tokenizer.encode(continuation))
    places = np.arange(len(ids) - count, len(ids))
    own = np.asarray(jax.nn.log_softmax(logits, axis=-1))[places - 1]
    return own[np.arange(count), ids[places]].sum(), count, bool((own.argmax(-1) == ids[places]).all())


@pytest.mark.parametrize("batch", [1, 8])
def test_choices_are_scored_as_the_loaded_model_scores_them(batch, lm, model, tables, tmp_path):
    assert evaluate(tmp_path / "run", f"copa,shots=0,model={model},batch={batch}", **{"data.test": tables["copa"]}) == 0
    right = []
    for row, fields in zip(rows_of(tmp_path / "run" / "predictions.jsonl"), CHOICES, strict=True):
        found = [log_probability(lm, fields["query"], f" {choice}") for choice in fields["choices"]]
        np.testing.assert_allclose(row["log_probabilities"], [value for value, *_ in found], atol=1e-4)
        assert row["prediction"] == np.argmax([value / count for value, count, _ in found])
        right.append(row["prediction"] == fields["gold"])
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())["test"]
    assert scores["accuracy"] == np.mean(right)
    assert scores["accuracy_stderr"] == pytest.approx(np.std(right, ddof=1) / np.sqrt(len(right)))
    [own] = rows_of(tmp_path / "run" / "evaluations.jsonl")
    assert own["shots"] == 0 and own["chance"] == pytest.approx((4 / 2 + 3 / 3) / 7)


@pytest.mark.parametrize("normalisation", ["none", "token", "character", "answer_context"])
def test_each_normalisation_compares_as_it_says(normalisation, lm, model, tables, tmp_path):
    fields = {"data.test": tables["copa"], "data.template.normalisation": normalisation}
    assert evaluate(tmp_path / "run", f"copa,shots=0,model={model}", **fields) == 0
    for row, own in zip(rows_of(tmp_path / "run" / "predictions.jsonl"), CHOICES, strict=True):
        values = []
        for choice in own["choices"]:
            value, count, _ = log_probability(lm, own["query"], f" {choice}")
            unconditional, *_ = log_probability(lm, "Answer:", f" {choice}")
            per = {"none": 1, "token": count, "character": len(choice), "answer_context": 1}[normalisation]
            values.append(value / per - (unconditional if normalisation == "answer_context" else 0))
        assert row["prediction"] == np.argmax(values)
    [scores] = rows_of(tmp_path / "run" / "evaluations.jsonl")
    assert scores["accuracy"] == scores[f"accuracy_{normalisation}"]


def test_shots_stand_before_the_question_and_of_one_table_never_the_asked_one(lm, model, tables, tmp_path):
    """Of two rows each has the other before it."""
    table = write_rows(tmp_path / "two.jsonl", SCHEMAS[:2])
    assert evaluate(tmp_path / "run", f"winograd,shots=1,model={model}", **{"data.test": table}) == 0
    solved = [f"{row['context_options'][row['gold']]} ran.\n" for row in SCHEMAS[:2]]
    for number, row in enumerate(rows_of(tmp_path / "run" / "predictions.jsonl")):
        options = [solved[1 - number] + option for option in SCHEMAS[number]["context_options"]]
        expected = [log_probability(lm, option, " ran.")[0] for option in options]
        np.testing.assert_allclose(row["log_probabilities"], expected, atol=1e-4)


def test_shots_come_from_the_training_table_wherever_it_is_given(lm, model, tables, tmp_path):
    fields = {"data.test": write_rows(tmp_path / "test.jsonl", SCHEMAS[:2])}
    fields["data.train"] = write_rows(tmp_path / "train.jsonl", SCHEMAS[2:3])
    assert evaluate(tmp_path / "run", f"winograd,shots=1,model={model}", **fields) == 0
    solved = f"{SCHEMAS[2]['context_options'][SCHEMAS[2]['gold']]} ran.\n"
    [row, _] = rows_of(tmp_path / "run" / "predictions.jsonl")
    expected = [log_probability(lm, solved + option, " ran.")[0] for option in SCHEMAS[0]["context_options"]]
    np.testing.assert_allclose(row["log_probabilities"], expected, atol=1e-4)


def test_an_evaluation_that_is_started_again_gives_the_same(model, tmp_path, capsys):
    rows = [row | {"query": f"{row['query']}\u2028x"} for row in CHOICES]
    fields = {"data.test": write_rows(tmp_path / "own.jsonl", rows)}
    scores = []
    for _ in range(2):
        assert evaluate(tmp_path / "run", f"copa,shots=0,model={model},batch=4", **fields) == 0
        scores.append((tmp_path / "run" / "scores.json").read_text())
    assert scores[0] == scores[1]
    assert "step 5/5" in capsys.readouterr().err  # 17 candidates, 4 at a time: the progress ends at its end


def test_the_curve_over_shots_stands_in_table_and_picture(model, tables, tmp_path):
    fields = {f"data.{task}.test": tables[task] for task in ("copa", "winograd")}
    fields |= {"data.copa.train": tables["copa"]}
    assert evaluate(tmp_path / "run", f"copa+winograd,shots=0+1+2,model={model}", **fields) == 0
    rows = rows_of(tmp_path / "run" / "evaluations.jsonl")
    assert [(row["task"], row["shots"]) for row in rows] == [(t, k) for t in ("copa", "winograd") for k in (0, 1, 2)]
    assert set(json.loads((tmp_path / "run" / "scores.json").read_text())) == {
        f"{task}/test/{shots}-shot" for task in ("copa", "winograd") for shots in (0, 1, 2)
    }
    report = (tmp_path / "run" / "report.md").read_text()
    assert "copa, 2-shot (accuracy)" in report and "shots.png" in report and "GPT-2 1558M" in report
    assert (tmp_path / "run" / "shots.png").read_bytes().startswith(b"\x89PNG")


def test_as_many_shots_as_fit_and_no_token_is_cut(model, tables, tmp_path):
    fields = {"data.test": tables["copa"], "data.train": tables["copa"], "model.context_length": 48}
    assert evaluate(tmp_path / "run", f"copa,shots=most,model={model}", **fields) == 0
    [row] = rows_of(tmp_path / "run" / "evaluations.jsonl")
    assert 0 < row["shots_used"] < 7
    facts = json.loads((tmp_path / "run" / "data.json").read_text())["test"]
    assert facts["shots"] == row["shots_used"]


def test_a_cloze_is_right_if_the_model_would_say_it(lm, model, tables, tmp_path):
    assert evaluate(tmp_path / "run", f"lambada,shots=0,model={model}", **{"data.test": tables["lambada"]}) == 0
    found = [log_probability(lm, row["text"].rpartition(" ")[0], " cat") for row in PASSAGES]
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())["test"]
    assert scores["accuracy"] == np.mean([greedy for *_, greedy in found])
    assert scores["perplexity"] == pytest.approx(math.exp(-np.mean([value for value, *_ in found])), rel=1e-4)


def test_a_passage_that_goes_on_as_the_model_would_is_right(lm, model, tmp_path):
    passages = []
    for first in "abcdefghijklmnopqrstuvwxyz":
        ids = np.pad(lm.tokenizer.encode(f"he saw {first}"), (0, 88))
        said = chr(int(lm.logits([ids])[0, 7].argmax()))
        if said.isascii() and said.isalnum():
            passages.append({"context": f"he saw {first}", "continuation": said})
    assert passages
    fields = {"data.test": write_rows(tmp_path / "own.jsonl", passages), "data.template.separator": ""}
    assert evaluate(tmp_path / "own", f"lambada,shots=0,model={model}", **fields) == 0
    assert json.loads((tmp_path / "own" / "scores.json").read_text())["test"]["accuracy"] == 1


def test_what_a_model_writes_ends_at_the_stop_string_and_is_compared(lm, model, tables, tmp_path):
    fields = {"data.test": tables["questions"], "data.template.max_new_tokens": 6}
    assert evaluate(tmp_path / "run", f"questions,shots=0,model={model}", **fields) == 0
    prompts = [f"Q: {row['question']}\nA:" for row in QUESTIONS]
    written = [text.partition("\n")[0].strip() for text in lm.generate(prompts, max_new_tokens=6)]
    assert [row["prediction"] for row in rows_of(tmp_path / "run" / "predictions.jsonl")] == written
    assert set(json.loads((tmp_path / "run" / "scores.json").read_text())["test"]) == {
        "exact_match", "exact_match_stderr", "f1", "f1_stderr",
    }  # fmt: skip


def test_what_a_model_writes_may_be_its_best_beam(lm, model, tables, tmp_path):
    fields = {"data.test": tables["questions"], "data.template.max_new_tokens": 6, "data.template.stop": "('##',)"}
    fields |= {"data.template.beams": 3, "data.template.length_penalty": 0.6}
    assert evaluate(tmp_path / "run", f"questions,shots=0,model={model}", **fields) == 0
    prompts = [f"Q: {row['question']}\nA:" for row in QUESTIONS]
    written = lm.generate(prompts, max_new_tokens=6, beams=3, length_penalty=0.6, stop=["##"])
    assert [row["prediction"] for row in rows_of(tmp_path / "run" / "predictions.jsonl")] == [
        text.strip() for text in written
    ]
    assert "best of 3 beams, log-probability / tokens^0.6" in (tmp_path / "run" / "report.md").read_text()


def test_several_models_stand_in_one_table(model, tables, tmp_path):
    other = write_model(tmp_path / "other", "gpt2-small", context_length=96, key=5)
    fields = {"data.test": tables["copa"]}
    assert evaluate(tmp_path / "run", f"copa,shots=0,model={model}+{other}", **fields) == 0
    rows = rows_of(tmp_path / "run" / "evaluations.jsonl")
    assert [row["model"] for row in rows] == ["model", "other"]
    assert set(json.loads((tmp_path / "run" / "scores.json").read_text())) == {"model/test", "other/test"}
    report = (tmp_path / "run" / "report.md").read_text()
    assert "| model |" in report and "| other |" in report
    assert evaluate(tmp_path / "alone", f"copa,shots=0,model={other}", **fields) == 0
    [alone] = rows_of(tmp_path / "alone" / "evaluations.jsonl")
    assert {"model": "other"} | alone == rows[1]


def test_generated_tasks_need_no_table(model, tmp_path):
    fields = {"data.max_test": 3, "data.template.max_new_tokens": 2}
    assert evaluate(tmp_path / "run", f"arithmetic-2da,shots=1,model={model}", **fields) == 0
    rows = rows_of(tmp_path / "run" / "predictions.jsonl")
    assert len(rows) == 3 and all(row["contexts"][0].startswith("Q: What is") for row in rows)


# --- perplexity


@pytest.mark.parametrize(("length", "stride"), [(16, 5), (16, 15), (96, 48)])
def test_every_token_is_scored_once_in_its_window(length, stride, lm, model, tmp_path):
    text = "It was a dark and stormy night; the rain fell in torrents é.\n" * 3
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    argument = f"text,source=file:{tmp_path}/text.txt,length={length},stride={stride},model={model}"
    assert evaluate(tmp_path / "run", argument) == 0
    ids = np.array([lm.tokenizer.specials.end_of_text, *lm.tokenizer.encode(text)])
    total, before = 0.0, 1
    for begin in range(0, len(ids), stride):
        end = min(begin + length, len(ids))
        padded = np.pad(ids[begin:end], (0, length - (end - begin)))
        own = np.asarray(jax.nn.log_softmax(lm.logits([padded])[0], axis=-1))
        total -= sum(own[place - begin - 1, ids[place]] for place in range(before, end))
        before = end
        if end == len(ids):
            break
    [row] = rows_of(tmp_path / "run" / "evaluations.jsonl")
    assert row["tokens_scored"] == len(ids) - 1 == row["bytes"] == len(text.encode())
    assert row["loss"] == pytest.approx(total / (len(ids) - 1), rel=1e-5)
    assert row["perplexity_per_word"] == pytest.approx(math.exp(total / len(text.split())), rel=1e-4)
    assert row["bits_per_byte"] == pytest.approx(total / math.log(2) / len(text.encode()), rel=1e-5)
    assert row["perplexity"] == pytest.approx(row["perplexity_per_byte"])  # a byte is a token here


# --- the standard harness

YAML = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {path}}}}}
test_split: test
"""


@pytest.fixture(scope="module")
def harness_tasks(tables, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("yaml")
    paths = {name: address.removeprefix("file:") for name, address in tables.items()}
    long = tmp_path_factory.mktemp("long") / "long.jsonl"
    write_rows(long, [{"text": "a long text " * 20}, {"text": "short"}])
    (folder / "chosen.yaml").write_text(
        YAML.format(name="chosen", path=paths["copa"])
        + 'output_type: multiple_choice\ndoc_to_text: "{{query}}"\ndoc_to_choice: "{{choices}}"\ndoc_to_target: gold\n'
        "metric_list: [{metric: acc}, {metric: acc_norm}]\n"
    )
    (folder / "rolled.yaml").write_text(
        YAML.format(name="rolled", path=long)
        + 'output_type: loglikelihood_rolling\ndoc_to_text: ""\ndoc_to_target: "{{text}}"\n'
        "metric_list: [{metric: bits_per_byte}]\n"
    )
    (folder / "written.yaml").write_text(
        YAML.format(name="written", path=paths["questions"])
        + 'output_type: generate_until\ndoc_to_text: "Q: {{question}}\\nA:"\ndoc_to_target: "{{answers[0]}}"\n'
        'generation_kwargs: {until: ["\\n"], max_gen_toks: 6}\nmetric_list: [{metric: exact_match}]\n'
    )
    return folder


def test_the_standard_harness_says_what_we_say(lm, model, tables, harness_tasks, tmp_path):
    pytest.importorskip("lm_eval")
    argument = f"lm-eval,tasks=chosen+rolled+written,include_path={harness_tasks},model={model}"
    assert evaluate(tmp_path / "run", argument) == 0
    samples = {
        path.name.split("_")[1]: sorted(rows_of(path), key=lambda row: row["doc_id"])
        for path in (tmp_path / "run").rglob("samples_*.jsonl")
    }
    assert evaluate(tmp_path / "ours", f"copa,shots=0,model={model}", **{"data.test": tables["copa"]}) == 0
    ours = rows_of(tmp_path / "ours" / "predictions.jsonl")
    for row, sample in zip(ours, samples["chosen"], strict=True):
        theirs = [float(response[0][0]) for response in sample["resps"]]
        np.testing.assert_allclose(row["log_probabilities"], theirs, atol=1e-5)
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    [own] = rows_of(tmp_path / "ours" / "evaluations.jsonl")
    assert scores["chosen"]["acc"] == own["accuracy_none"]
    assert scores["chosen"]["acc_norm"] == own["accuracy_character"]
    short = log_probability(lm, "", "short")[0]
    rolled = [float(sample["resps"][0][0]) for sample in samples["rolled"]]
    assert rolled[1] == pytest.approx(short, rel=1e-4) and rolled[0] < rolled[1]
    prompts = [f"Q: {row['question']}\nA:" for row in QUESTIONS]
    written = [text.partition("\n")[0] for text in lm.generate(prompts, max_new_tokens=6)]
    assert [sample["resps"][0][0] for sample in samples["written"]] == written
    [results] = (tmp_path / "run").rglob("results_*.json")
    assert json.loads(results.read_text())["results"]["chosen"]["acc,none"] == scores["chosen"]["acc"]


def test_a_filter_of_the_harness_keeps_its_name_unless_it_is_none():
    found = {"acc,none": 0.5, "acc_stderr,none": 0.1, "em,strict": 0.2, "em,flexible": 0.4, "alias": "x", "n,none": 3}
    assert numbers(found) == {"acc": 0.5, "acc_stderr": 0.1, "em,strict": 0.2, "em,flexible": 0.4, "n": 3.0}


def test_the_harness_says_what_it_cuts_and_leaves_out_and_keeps_to_its_config(model, harness_tasks, tmp_path, capsys):
    pytest.importorskip("lm_eval")
    path = harness_tasks / "written.yaml"
    text = path.read_text().replace("name=", "").replace("max_gen_toks: 6", "max_gen_toks: 90, num_beams: 4")
    (tmp_path / "beams.yaml").write_text(text.replace("task: written", "task: beams"))
    argument = f"lm-eval,tasks=beams,include_path={tmp_path},model={model}"
    assert evaluate(tmp_path / "run", argument) == 0
    said = capsys.readouterr()
    assert "{'num_beams': 4}" in said.out + said.err and "of 3 texts the first tokens are cut" in said.out + said.err
    assert evaluate(tmp_path / "run", argument, **{"data.max_test": 1}) == 2
    assert "another config" in capsys.readouterr().err


def test_the_harness_samples_only_if_a_task_says_so():
    assert sampling_of({"max_gen_toks": 5}, 96) == Sampling(5, temperature=0.0)
    assert sampling_of({"do_sample": False, "temperature": 0.7}, 96) == Sampling(95, temperature=0.0)
    assert sampling_of({"do_sample": True}, 300).temperature == 1.0
    assert sampling_of({"temperature": 0.7, "top_k": 3}, 300) == Sampling(256, 0.7, top_k=3)


# --- what a user can get wrong


@pytest.mark.parametrize(
    ("argument", "fields", "words"),
    [
        ("copaa,shots=0", {}, ["'copaa'", "Did you mean 'copa'?"]),
        ("mrpc,shots=0", {}, ["no prompt template for 'mrpc'"]),
        ("copa,shots=0", {}, ["data.test is missing"]),
        ("copa,shots=one", {"data.test": "COPA"}, ["data.shots='one'", "most"]),
        ("copa,shots=1+1", {"data.test": "COPA"}, ["each once"]),
        ("copa,shots=1", {"data.test": "COPA"}, ["data.train is missing", "shots_from=test"]),
        ("copa,shots=6", {"data.test": "COPA", "data.train": "COPA", "model.context_length": 48},
         ["data.shots=6", "do not fit", "shots=most"]),
        ("copa,shots=8", {"data.test": "COPA", "data.train": "COPA"}, ["has 7 examples to draw from"]),
        ("copa,shots=0", {"data.test": "COPA", "data.template.contxt": "x"}, ["contxt", "Did you mean"]),
        ("copa,shots=0", {"data.test": "COPA", "data.template.context": "{querry}"}, ["'querry'", "line 1"]),
        ("copa,shots=0", {"data.test": "COPA", "data.template.kind": "choice"}, ["kind='choice'"]),
        ("piqa+copa,shots=0", {"data.piqa.test": "LATIN", "data.copa.test": "COPA"}, ["not utf-8", "data.piqa"]),
        ("copa,shots=0", {"data.test": "EMPTY"}, ["context is empty", "line 2"]),
        ("questions,shots=0", {"data.test": "QUESTIONS", "data.template.max_new_tokens": 96}, ["no room", "of 96"]),
        ("copa,shots=0,source=x", {}, ["source=", "text"]),
        ("text", {}, ["data.source is missing"]),
        ("text,source=file:PLAIN_TEXT,shots=3", {}, ["shots=", "prompted tasks"]),
        ("lm-eval,tasks=chosen,include_path=YAML,shots=most", {}, ["shots=most", "one number"]),
        ("lm-eval,tasks=chosen,include_path=YAML,shots=0+1", {}, ["shots=0+1", "one number"]),
        ("text,source=file:LATIN_TEXT", {}, ["not utf-8", "0xE9"]),
        ("text,source=file:BLANK_TEXT", {}, ["no text in it"]),
        ("text,source=file:PLAIN_TEXT,length=16,stride=16", {}, ["data.stride=16", "less than the length"]),
        ("text,source=file:PLAIN_TEXT,length=960", {}, ["data.length=960", "2 to 96"]),
        ("text,source=file:PLAIN_TEXT", {"data.detokenizer": "wiki"}, ["'wiki'", "wikitext"]),
        ("lm-eval,include_path=YAML", {}, ["data.tasks is empty"]),
        ("lm-eval,tasks=chosn,include_path=YAML", {}, ["'chosn'", "Did you mean 'chosen'?"]),
        ("lm-eval,tasks=chosen,include_path=/nowhere", {}, ["/nowhere", "no such folder"]),
        ("lm-eval,tasks=piqa", {}, ["could not read the data of piqa", "include_path"]),
        ("lm-eval+copa", {}, ["lm-eval stands alone"]),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_message(argument, fields, words, model, tables, harness_tasks, tmp_path, capsys):
    if argument.startswith("lm-eval"):
        pytest.importorskip("lm_eval")
    (tmp_path / "latin.jsonl").write_bytes('{"query": "é"}\n'.encode("latin-1"))
    for name, content in (("LATIN", "é".encode("latin-1")), ("BLANK", b" \n"), ("PLAIN", b"text")):
        (tmp_path / f"{name.lower()}.txt").write_bytes(content)
    empty = write_rows(tmp_path / "empty.jsonl", [CHOICES[0], CHOICES[1] | {"query": " "}])
    known = {
        "COPA": tables["copa"],
        "QUESTIONS": tables["questions"],
        "LATIN": f"file:{tmp_path}/latin.jsonl",
        "EMPTY": empty,
    }
    argument = argument.replace("YAML", str(harness_tasks)) + f",model={model}"
    for name in ("LATIN", "BLANK", "PLAIN"):
        argument = argument.replace(f"{name}_TEXT", f"{tmp_path}/{name.lower()}.txt")
    fields = {name: known.get(value, value) for name, value in fields.items()}
    assert evaluate(tmp_path / "run", argument, **fields) == 2
    error = capsys.readouterr().err
    assert error.count("error: ") == 1 and "Traceback" not in error
    assert all(word in error for word in words), error
    assert not (tmp_path / "run" / "config.json").exists()
