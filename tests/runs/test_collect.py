"""Collecting comparisons: what is drawn, how a reward and a person rank it, and that nothing of it is lost."""

import io
import json
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time

import pytest

pytest.importorskip("tokenizers", reason="the extra 'huggingface' is not installed")
pytest.importorskip("jinja2", reason="the extra 'serve' is not installed")

from chatting import ROOT, environment, write_chat_model  # noqa: E402

from gpt_jax.alignment.conversations import Left  # noqa: E402
from gpt_jax.alignment.questions import Question  # noqa: E402
from gpt_jax.alignment.ranked_answers import COLUMNS, read_ranked_answers  # noqa: E402
from gpt_jax.alignment.rankings import preferences  # noqa: E402
from gpt_jax.data.tables import open_table  # noqa: E402
from gpt_jax.main import main  # noqa: E402
from gpt_jax.runs.aligning.judging import judge  # noqa: E402
from gpt_jax.runs.aligning.rankings import Candidates, Rankings, rank_by_reward  # noqa: E402

REWARDS = """
def letters(prompts, answers, weight, messages, **columns):
    assert prompts == [f"u:{said[-1]['content']}<|endoftext|>a:" for said in messages]
    return [w * sum(map(ord, answer)) for answer, w in zip(answers, weight)]

def broken(prompts, answers, **columns):
    return [float("nan")] * len(answers)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("collect")


@pytest.fixture(scope="module")
def models(folder):
    """Two models of the same random weights, and one that was never taught to chat."""
    one = write_chat_model(folder / "one")
    return one, shutil.copytree(one, folder / "other"), write_chat_model(folder / "base", template=None)


@pytest.fixture(scope="module")
def prompts(folder):
    rows = [
        {"prompt": "a?", "weight": 1, "response": "yes"},
        {"messages": [{"role": "user", "content": "b?"}, {"role": "assistant", "content": "no"}], "weight": -1},
        {"prompt": "c?", "weight": 2},
        {"prompt": "d?" * 200, "weight": 0},
    ]
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "rewards.py").write_text(REWARDS)
    return path


@pytest.fixture
def collect(models, prompts, folder, monkeypatch, capfd):
    """Runs a collection, typing lines; returns (exit code, what was printed, the rows of a file of its workdir)."""

    def run(workdir, preset, *typed, **fields):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\n".join(typed).encode())))
        code = main(arguments(preset, models[0], prompts, workdir, **fields)[2:])
        output = capfd.readouterr()
        rows = {path.stem: path.read_text().splitlines() for path in sorted(workdir.glob("*.jsonl"))}
        return code, output.out + output.err, {name: [json.loads(row) for row in own] for name, own in rows.items()}

    return run


def arguments(preset, model, prompts, workdir, **fields):
    given = {"answers": 3, "max_new_tokens": 6, "slots": 4, "source": model, "data.prompts": f"file:{prompts}"} | fields
    flags = [f"--config.{name}={value}" for name, value in given.items()]
    return [
        sys.executable,
        "-m",
        "gpt_jax.main",
        f"--config=configs/collect.py:{preset}",
        f"--workdir={workdir}",
        *flags,
    ]


@pytest.fixture
def by_reward(collect, folder, tmp_path):
    """A collection that a reward ranked, with the demonstrations among the answers."""
    fields = {"reward.source": f"{folder / 'rewards.py'}:letters", "data.demonstrations": True}
    return lambda: collect(tmp_path / "run", "reward", **fields)


def test_a_reward_ranks_all_answers_and_reward_models_read_them(by_reward, tmp_path, models):
    code, told, files = by_reward()
    assert code == 0 and "3 comparisons of 3 prompts" in told and "1 prompts that are too long" in told, told
    for row, weight in zip(files["comparisons"], (1, -1, 2), strict=True):
        scores = [weight * sum(map(ord, answer)) for answer in row["answers"]]
        places = sorted(set(scores), reverse=True)
        assert row["scores"] == scores and row["ranks"] == [places.index(score) + 1 for score in scores]
    assert [row.get("reference") for row in files["comparisons"]] == [3, 3, None]
    assert files["comparisons"][0]["models"] == [[str(models[0])]] * 3 + [["demonstration"]]
    table = open_table(f"file:{tmp_path / 'run' / 'comparisons.jsonl'}")
    columns = dict(zip(COLUMNS, COLUMNS, strict=True))
    read = list(read_ranked_answers(table, columns, as_text=False, skip_bad_rows=False, left=Left()))
    assert [row.prompt[-1]["content"] for row in read] == ["a?", "b?", "c?"] and read[1].answers[3] == "no"
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert scores["models"][str(models[0])]["answers"] == 9 and len(scores["preferences"]) == 1
    assert "| demonstration |" in (tmp_path / "run" / "report.md").read_text()


def test_a_run_that_was_cut_anywhere_draws_and_ranks_the_same_again(by_reward, tmp_path):
    by_reward()
    whole = {path.name: path.read_bytes() for path in (tmp_path / "run").glob("*.jsonl")}
    for name, lines in (("answers-1.jsonl", 4), ("rankings.jsonl", 1), ("comparisons.jsonl", 0)):
        kept = b"".join(whole[name].splitlines(keepends=True)[: lines + 1])
        (tmp_path / "run" / name).write_bytes(kept[:-20])  # torn in its last line
    assert by_reward()[0] == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").glob("*.jsonl")} == whole


def test_answers_of_other_weights_are_not_mixed(by_reward, tmp_path):
    by_reward()
    kept, answers = tmp_path / "run" / "weights-1.json", tmp_path / "run" / "answers-1.jsonl"
    noted, whole = kept.read_text(), answers.read_text()
    kept.write_text(json.dumps(json.loads(noted) | {"weights": "others"}))
    assert by_reward()[0] == 0  # nothing is left to draw
    answers.write_text("".join(whole.splitlines(keepends=True)[:-1]))
    code, told, _ = by_reward()
    assert code == 2 and "its weights have changed" in told
    kept.write_text(noted)
    assert by_reward()[0] == 0 and answers.read_text() == whole


def test_all_answers_are_of_the_day_on_which_the_first_was_asked_for(collect, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "data.json").write_text('{"day": "2001-02-03"}')
    (tmp_path / "dated.jinja").write_text(
        "{{ strftime_now('%Y-%m-%d') }}{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    code, told, files = collect(tmp_path / "run", "person", "q", template=tmp_path / "dated.jinja")
    assert code == 0 and {row["prompt"][:10] for row in files["answers-1"]} == {"2001-02-03"}, told
    assert json.loads((tmp_path / "run" / "data.json").read_text())["day"] == "2001-02-03"


def test_a_reward_that_failed_is_mended_without_new_answers(collect, tmp_path):
    reward = tmp_path / "reward.py"
    fields = {"reward.source": f"{reward}:length"}
    reward.write_text("def length(prompts, answers, **columns): return [float('nan')] * len(answers)")
    code, _, files = collect(tmp_path / "run", "reward", **fields)
    assert code == 2 and len(files["answers-1"]) == 9
    reward.write_text("def length(prompts, answers, **columns): return list(map(len, answers))")
    code, told, mended = collect(tmp_path / "run", "reward", **fields)
    assert code == 0 and mended["answers-1"] == files["answers-1"] and len(mended["rankings"]) == 3, told


def candidates(answers, models, **columns):
    """Of the prompt "p?"."""
    return Candidates(Question("p?", columns, None, ""), answers, models, [("p?", None)] * len(answers), None)


THREE = (
    candidates(["", "long", "x"], [["a", "a"], ["b"], ["b"]], weight=1),
    candidates(["the same"], [["a", "b"]]),
    candidates(["", "said"], [["b"], ["a"]]),
)


def test_a_reward_scores_every_answer_but_none_learns_empty_ones(tmp_path, monkeypatch):
    monkeypatch.setattr("gpt_jax.runs.aligning.rankings.TOGETHER", 1)
    rankings, called = Rankings(tmp_path, THREE, least=1), []

    def reward(episodes):
        called.append(sorted(episodes.columns))
        return [len(answer) or 2 for answer in episodes.answers]

    rank_by_reward("length", reward, THREE, rankings)
    assert called == [["messages", "weight"]] * 3  # the columns do not depend on who is scored together
    assert [row["scores"] for row in rankings.rows] == [[2, 4, 1], [8], [2, 4]]
    [learnt] = rankings.comparisons
    assert learnt["answers"] == ["long", "x"] and learnt["models"] == [["b"], ["b"]]
    assert learnt["ranks"] == [1, 2] and learnt["scores"] == [4, 1]
    assert rankings.alone == 2 and rankings.waiting == [] and rankings.ties == []
    [found] = preferences(rankings.rows)
    assert (found.one, found.won, found.tied, found.lost) == ("a", 1, 2, 0)


def test_the_same_answer_of_two_models_is_a_tie_that_nobody_ranks(tmp_path):
    several = candidates(["one", "two"], [["a"], ["b"]])
    same = candidates(["the same"], [["a", "b"]])
    rankings = Rankings(tmp_path, [same, several, same, several, same], least=2)
    assert rankings.waiting == [1, 3] and len(rankings.ties) == 1
    rankings.add({1: {"ranks": [1, 2], "ranked_by": "Ada"}})
    assert len(rankings.ties) == 2  # the last one's turn has not come
    [found] = preferences([*rankings.rows, *rankings.ties])
    assert (found.won, found.tied, found.lost) == (1, 2, 0)


def test_what_was_ranked_before_counts_and_the_last_of_all_can_be_undone(capsys):
    rows = [0]

    def judged(*typed):
        judge(
            [1], lambda number: (THREE[0].question, ["one", "two"]), done=1, seed=0,
            record=lambda number, ranks: rows.append(number), undo=lambda: rows.pop() if rows else None,
            typed=iter(typed),
        )  # fmt: skip
        return re.findall(r"\d done, \d left|all are ranked", capsys.readouterr().out)

    assert judged("u", "u", "q") == ["1 done, 1 left", "0 done, 2 left"] and rows == []
    rows.append(0)
    last = "all are ranked"
    assert judged("1 2", "2 1", "u", "2 1", "q") == ["1 done, 1 left", last, last, "1 done, 1 left", last] and rows == [
        0,
        1,
    ]


def shown(told):
    """Of every prompt that was shown the answers in the order of their numbers."""
    pictures = told.split("─" * 80 + "\n")[1:]
    return [re.findall(r"──\[\d\]─+\n(.*?)\n(?=\n)", picture, re.S) for picture in pictures]


def test_a_person_ranks_blind_undoes_skips_and_goes_on_later(collect, tmp_path):
    code, told, first = collect(tmp_path, "person", "?", "1 2", "2 1=3", "u", "3 1 2", "q", judge="Ada")
    assert code == 0 and "3 is missing" in told and "the second is the best" in told and "2 not ranked yet" in told
    pictures = shown(told)
    assert pictures[0] == pictures[2] and len(pictures) == 4
    [row] = first["rankings"]
    assert row["ranked_by"] == "Ada" and first["comparisons"] == [row]
    ranks = {answer.strip(): rank for answer, rank in zip(row["answers"], row["ranks"], strict=True)}
    assert [ranks[answer] for answer in pictures[0]] == [2, 3, 1]
    code, told, later = collect(tmp_path, "person", "s", "1=2=3", judge="Ada")  # the input ends: the same as q
    assert code == 0 and "1 comparisons of 3 prompts (1 ranked all equal, 1 skipped, 0 not ranked yet" in told
    assert shown(told)[0] == pictures[3]
    assert [row["ranks"] for row in later["rankings"]] == [row["ranks"], None, [1, 1, 1]]
    assert later["answers-1"] == first["answers-1"] and later["comparisons"] == [row]
    drawn = [[answer.strip() for answer in row["answers"]] for row in later["rankings"]]
    assert [pictures[0], *shown(told)] != drawn  # the order of the files tells nothing of what is shown


def test_a_person_ranks_on_a_terminal(collect, tmp_path, models, prompts, folder):
    collect(tmp_path, "person", "q")
    end, theirs = pty.openpty()
    process = subprocess.Popen(
        arguments("person", models[0], prompts, tmp_path), cwd=ROOT, env=environment(folder / "programs"),
        stdin=theirs, stdout=theirs, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    seen = ""

    def until(words):
        nonlocal seen
        deadline = time.monotonic() + 120
        while words not in seen:
            assert time.monotonic() < deadline, seen
            if select.select([end], [], [], 1)[0]:
                seen += os.read(end, 4096).decode(errors="replace")
        seen = seen.partition(words)[2]

    try:
        until("best first (? helps): ")
        os.write(end, b"3 2 1\n")
        until("1 done, 2 left")
        until("best first (? helps): ")
        os.write(end, b"\x04")
        assert process.wait(120) == 0
    finally:
        process.kill()
        process.wait()
    [row] = map(json.loads, (tmp_path / "rankings.jsonl").read_text().splitlines())
    assert sorted(row["ranks"]) == [1, 2, 3]


def test_equal_answers_are_merged_and_two_models_compared(collect, models, tmp_path):
    both = f"{models[0]}+{models[1]}"
    code, told, files = collect(tmp_path / "equal", "person", source=both, temperature=0, answers=2)
    assert code == 0 and "3 with one answer only" in told and files["rankings"] == []
    code, told, files = collect(tmp_path / "drawn", "person", "1 2", "1 2", source=both, answers=1)
    assert code == 0 and files["answers-1"][0]["text"] != files["answers-2"][0]["text"]
    [preference] = json.loads((tmp_path / "drawn" / "scores.json").read_text())["preferences"]
    assert preference["won"] + preference["lost"] == 2 and preference["low"] < 0.5 < preference["high"]


def test_texts_are_continued(collect, models, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 40)
    fields = {"source": models[2], "data.prompts": f"file:{text}", "data.most": 2, "answers": 2}
    code, told, files = collect(tmp_path / "run", "person", "1 2", "2 1", **fields)
    assert code == 0 and "2 comparisons of 2 prompts" in told
    assert all(row["prompt"] in text.read_text() and len(row["prompt"]) == 32 for row in files["comparisons"])


BAD = {
    "model= or prompts= is missing": {"source": ""},
    "names one twice": {"source": "a+a"},
    "it takes two answers": {"answers": 1},
    "answers=0: expected at least 1": {"answers": 0},
    "data.every=0: expected at least 1": {"data.every": 0},
    "length=257: expected 2 to the context of 256": {"length": 257},
    "temperature=-1": {"temperature": -1},
    "/nowhere: no such file": {"source": "/nowhere"},
    "nowhere.jsonl: no such file": {"data.prompts": "file:nowhere.jsonl"},
    "there is no column 'turns' nor 'question'": {"data.columns.messages": "turns", "data.columns.prompt": "question"},
    "no prompt is left to answer: 0 rows are none, 4 leave no room": {"max_new_tokens": 250},
    "has no chat template": {"source": 2},
    "reward is missing": {"preset": "reward"},
    "has no function 'letter'. Did you mean 'letters'": {"preset": "reward", "reward.source": "letter"},
    "gave nan for the prompt 'u:a?": {"preset": "reward", "reward.source": "broken"},
    "gives no scores": {"preset": "reward", "reward.source": 0},
}


@pytest.mark.parametrize("message", BAD)
def test_what_cannot_be_ends_in_one_message(message, collect, models, folder, tmp_path):
    fields = dict(BAD[message])
    preset = fields.pop("preset", "person")
    for name, value in fields.items():
        if name == "reward.source" and isinstance(value, str):
            fields[name] = f"{folder / 'rewards.py'}:{value}"
        elif name in ("source", "reward.source") and isinstance(value, int):
            fields[name] = models[value]
    code, told, files = collect(tmp_path / "run", preset, "q", **fields)
    assert code == 2 and message in told and told.count("error:") == 1 and "Traceback" not in told, told
    assert files or not (tmp_path / "run" / "config.json").exists()


def test_with_other_prompts_or_another_reward_it_stops(by_reward, collect, folder, tmp_path):
    by_reward()
    (folder / "rewards.py").write_text(REWARDS + "#")
    try:
        code, told, _ = by_reward()
    finally:
        (folder / "rewards.py").write_text(REWARDS)
    assert code == 2 and "reward.digest" in told
