"""`configs/generate.py`: prompts in, generations.jsonl out."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_models import write_model

import gpt_jax
from gpt_jax.main import main

CONFIG = "configs/generate.py"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("generate") / "model", "gpt2-small", context_length=64)


def words(model, workdir, *more):
    return ["main", f"--config={CONFIG}:model={model},tokens=8", f"--workdir={workdir}", *more]


def rows(workdir):
    return [json.loads(line) for line in (workdir / "generations.jsonl").read_text().split("\n")[:-1]]


def test_a_prompt_is_shown_as_it_is_continued(model, tmp_path, capsys):
    assert main(words(model, tmp_path / "w", "--config.prompt=ab", "--config.temperature=0")) == 0
    [row] = rows(tmp_path / "w")
    [text] = gpt_jax.load(model).generate(["ab"], 8)
    assert (row["prompt"], row["text"], row["index"], row["sample"]) == ("ab", text, 0, 0)
    assert capsys.readouterr().out.startswith(f"ab{text}\n")


def test_every_prompt_of_a_file_gets_its_samples_in_order(model, tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "one"}\n{"prompt": "two\\nlines"}\n')
    main(words(model, tmp_path / "w", f"--config.prompts={tmp_path / 'p.jsonl'}", "--config.samples=3"))
    found = rows(tmp_path / "w")
    assert [(r["index"], r["sample"]) for r in found] == [(i, n) for i in range(2) for n in range(3)]
    assert {r["prompt"] for r in found} == {"one", "two\nlines"} and len({r["text"] for r in found}) > 3


def test_log_probabilities_and_beams_are_written(model, tmp_path):
    ask = ("--config.prompt=ab", "--config.temperature=0")
    main(words(model, tmp_path / "a", *ask, "--config.logprobs=2"))
    [row] = rows(tmp_path / "a")
    assert len(row["logprobs"]) == row["tokens"] and all(len(told["likeliest"]) == 2 for told in row["logprobs"])
    assert all(told["likeliest"][0] == [told["token"], told["logprob"]] for told in row["logprobs"])
    main(words(model, tmp_path / "b", *ask, "--config.beams=3"))
    scores = [row["score"] for row in rows(tmp_path / "b")]
    assert len(scores) == 3 and scores == sorted(scores, reverse=True)


def test_a_killed_run_makes_only_what_is_missing_and_the_same(model, tmp_path):
    (tmp_path / "p.txt").write_text("\n".join(f"prompt {n}" for n in range(40)))
    ask = (f"--config.prompts={tmp_path / 'p.txt'}", "--config.max_new_tokens=40", "--config.slots=2")
    main(words(model, tmp_path / "whole", *ask))
    command = [sys.executable, "-m", "gpt_jax.main", *words(model, tmp_path / "killed", *ask)[1:]]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    path = tmp_path / "killed" / "generations.jsonl"
    while process.poll() is None and (not path.exists() or path.read_text().count("\n") < 5):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    with open(path, "a") as file:
        file.write('{"index": 39, "sam')  # as a kill may leave it
    main(words(model, tmp_path / "killed", *ask))
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")


def test_another_prompt_may_follow_in_the_same_workdir(model, tmp_path):
    for prompt in ("ab", "cd", "cd"):
        assert main(words(model, tmp_path / "w", f"--config.prompt={prompt}")) == 0
        assert [row["prompt"] for row in rows(tmp_path / "w")] == [prompt]


def test_a_line_of_a_file_ends_at_its_line_feed_alone(model, tmp_path):
    text = '{"prompt": "one\u2028still one"}\r\n{"prompt": "two"}\n'
    (tmp_path / "p.jsonl").write_bytes(text.encode())
    main(words(model, tmp_path / "w", f"--config.prompts={tmp_path / 'p.jsonl'}"))
    assert [row["prompt"] for row in rows(tmp_path / "w")] == ["one\u2028still one", "two"]


def test_standard_input_is_read(model, tmp_path):
    command = [sys.executable, "-m", "gpt_jax.main", *words(model, tmp_path / "w", "--config.prompts=-")[1:]]
    subprocess.run(command, input=b"a prompt\n", check=True, capture_output=True)
    assert [row["prompt"] for row in rows(tmp_path / "w")] == ["a prompt"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ((), "expected one of --config.prompt"),
        (("--config.prompt=",), "prompt 1 is empty"),
        (("--config.prompt=" + "x" * 60,), "prompt 1 has 60 tokens; with max_new_tokens=8"),
        (("--config.prompt=a", "--config.temperature=0", "--config.top_k=4"), "top_k=4"),
        (("--config.prompt=a", "--config.stop=('',)"), "empty stop string"),
        (("--config.prompt=a", "--config.beams=2"), "temperature=0.8"),
        (("--config.prompt=a", "--config.beams=5000", "--config.temperature=0"), "for at most"),
        (("--config.prompt=a", "--config.samples=0"), "samples=0"),
        (("--config.prompts=absent.txt",), "absent.txt: cannot be read"),
        (("--config.prompts=README.md",), "is empty"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_written(model, tmp_path, capsys, more, message):
    assert main(words(model, tmp_path / "w", *more)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "w").exists()


def test_a_file_that_is_not_utf_8_is_refused(model, tmp_path, capsys):
    path = Path(tmp_path / "latin.txt")
    path.write_bytes("caf\xe9".encode("latin-1"))
    assert main(words(model, tmp_path / "w", f"--config.prompts={path}")) == 2
    assert "byte 3 is not UTF-8" in capsys.readouterr().err
