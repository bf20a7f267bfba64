"""Rewards: who gives them, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from gpt_jax.alignment.rewards import Episodes, score
from gpt_jax.errors import UserError
from gpt_jax.parallel.mesh import single_device_mesh
from gpt_jax.runs.aligning.rewards import open_reward

EPISODES = Episodes(["1+1=", "2+2="], ["2", "5"], {"answer": ["2", "4"], "no name": [0, 0]})


@pytest.fixture
def functions(tmp_path) -> Path:
    path = tmp_path / "sums.py"
    path.write_text(
        "def right(prompts, answers, answer, **columns):\n"
        "    return [float(said == true) for said, true in zip(answers, answer)]\n"
        "def short(prompts, answers, **columns):\n    return [1.0]\n"
        "def nothing(prompts, answers, **columns):\n    return None\n"
        "def broken(prompts, answers, **columns):\n    return [1.0, float('nan')]\n"
        "def huge(prompts, answers, **columns):\n    return [1, 10**400]\n"
        "def raises(prompts, answers, **columns):\n    return [1 / len(answer.strip('25')) for answer in answers]\n"
    )
    return path


def opened(source: str | None, **fields):
    config = ConfigDict(dict(source=source, label=None, text="answer") | fields)
    return open_reward(config, single_device_mesh())


def test_a_python_function_gives_scores_and_sees_the_columns(functions):
    reward, facts = opened(f"{functions}:right")
    scores = score(reward, EPISODES, "right")
    assert scores.dtype == np.float64 and scores.tolist() == [1, 0]
    functions.write_text(functions.read_text() + "\n")
    assert opened(f"{functions}:right")[1] != facts


@pytest.mark.parametrize(
    ("name", "message"),
    {
        "broken": "gave nan for the prompt '2\\+2=' with the answer '5'; so it is with 1 of 2",
        "short": r"shape \[1\] for 2 answers",
        "huge": "Expected a list of numbers",
        "raises": "sums.py:raises failed, see above: ZeroDivisionError",
        "nothing": r"gave None|shape \[\] for 2 answers",
    }.items(),
)
def test_what_is_no_score_is_refused_with_its_prompt(functions, name, message):
    reward, _ = opened(f"{functions}:{name}")
    with pytest.raises(UserError, match=message):
        score(reward, EPISODES, name)


def test_a_function_that_wants_other_columns_is_told_which_there_are(functions):
    reward, _ = opened(f"{functions}:right")
    with pytest.raises(UserError, match="missing a required argument: 'answer'.*the columns are: said"):
        score(reward, EPISODES._replace(columns={"said": ["2", "4"]}), "right")


def test_an_address_without_a_reward_is_refused(functions, tmp_path):
    for source, message in (
        (None, "reward is missing"),
        (str(functions), "which function of it"),
        (f"{functions}:rihgt", "has no function 'rihgt'. Did you mean 'right'"),
        (f"{tmp_path}/none.py:right", "no such file"),
        (f"{tmp_path}/none", "reward.source=.*/none: no such file or folder"),
    ):
        with pytest.raises(UserError, match=message):
            opened(source)
    with pytest.raises(UserError, match="reward.text='prompt'"):
        opened(f"{functions}:right", text="prompt")


@pytest.mark.parametrize(
    ("code", "message"), {"def f(:": "SyntaxError", "import no_such_module": "No module named"}.items()
)
def test_a_file_that_cannot_be_read_is_named(code, message, tmp_path):
    (tmp_path / "own.py").write_text(code)
    with pytest.raises(UserError, match=f"own.py failed, see above: .*{message}"):
        opened(f"{tmp_path / 'own.py'}:f")
