"""Prediction of a reward model: a table of prompts with answers in, the reward of every answer out."""

import json
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from gpt_jax import configuration
from gpt_jax.alignment.conversations import text_of
from gpt_jax.alignment.ranked_answers import Prompt, read_answers, read_prompt
from gpt_jax.data.rows import Row
from gpt_jax.data.tables import open_table
from gpt_jax.disk import write_atomically
from gpt_jax.errors import UserError
from gpt_jax.parallel.mesh import make_mesh
from gpt_jax.parallel.runtime import announce, do_on_main_process, is_main_process
from gpt_jax.runs.aligning.reward_model import open_reward_model
from gpt_jax.runs.recipe import check_config
from gpt_jax.runs.workdir import environment, open_workdir

NOT_HERE = ("data.folder", "data.max_answers", "model.context_length", "model.compute_dtype")


def run(config: ConfigDict, workdir: Path) -> dict[str, dict[str, float]]:
    """Scores the answers of `config.data.table` with the reward model at `config.model.path`.

    Returns:
      {"table": {"lowest", "mean", "highest"}} of the rewards.

    Raises:
      UserError: for everything that the caller can mend; nothing is written then.
    """
    if config.model.path is None or config.data.table is None:
        raise UserError(
            "model or table is missing: --config=configs/predict.py:answers,model=WORKDIR,table=file:ROWS.jsonl, the "
            "workdir of a reward model."
        )
    for field, value in configuration.flatten(config.to_dict()).items():
        if value is not None and (field in NOT_HERE or field.startswith("data.columns.")):
            raise UserError(f"{field} does not go with configs/predict.py:answers, which takes the model as it is.")
    with open_workdir(workdir):
        do_on_main_process(lambda: check_config(config, workdir))
        model = open_reward_model(config.model.path, make_mesh(config.mesh))
        table = open_table(config.data.table, encoding=config.data.encoding, skip_bad_rows=config.data.skip_bad_rows)
        rows, left = [], 0
        for row in table:
            try:
                rows.append((row, *answered(row, model.as_text)))
            except UserError:
                if not config.data.skip_bad_rows:
                    raise
                left += 1
        if not rows:
            raise UserError(f"{config.data.table}: none of its {left:,} rows has a prompt with an answer.")
        if left + table.skipped:
            announce(f"left out: {left + table.skipped:,} rows without a prompt and an answer")
        announce(f"{len(rows):,} prompts, by {config.model.path}; writing to {workdir}")
        asked = [(prompt, answer) for _, prompt, answers in rows for answer in answers]
        rewards = model.score(*zip(*asked, strict=True))
        do_on_main_process(lambda: record(config, rows, rewards, workdir))
    found = {"lowest": float(rewards.min()), "mean": float(rewards.mean()), "highest": float(rewards.max())}
    if is_main_process():
        print("rewards: " + ", ".join(f"{name} {value:.3f}" for name, value in found.items()))
    return {"table": found}


def answered(row: Row, as_text: bool) -> tuple[Prompt, list[str]]:
    """The prompt of a row and its `answer`, or its `answers`; UserError: it has none."""
    if "prompt" in row.fields and "answer" in row.fields:
        return read_prompt(row, "prompt", as_text), [text_of(row.fields["answer"], f"{row.place}: answer")]
    if "prompt" in row.fields and "answers" in row.fields and (answers := read_answers(row, "answers")):
        return read_prompt(row, "prompt", as_text), answers
    raise UserError(
        f"{row.place}: expected a prompt (text or messages) with an answer or a list of answers. There are: "
        f"{', '.join(row.fields)}."
    )


def record(config: ConfigDict, rows: list[tuple[Row, Prompt, list[str]]], rewards: np.ndarray, workdir: Path) -> None:
    """Writes predictions.jsonl, a line a prompt: its `id` and its answers' `rewards`."""
    configuration.write_json(workdir / "environment.json", environment())
    configuration.write_json(workdir / "config.json", configuration.as_json(config))
    left, lines = iter(rewards.tolist()), []
    for number, (row, _, answers) in enumerate(rows):
        own = [float(f"{next(left):.7g}") for _ in answers]
        lines.append(json.dumps({"id": str(row.fields.get("id", number)), "rewards": own}) + "\n")
    write_atomically(workdir / "predictions.jsonl", "".join(lines).encode())
    print(f"written: {workdir / 'predictions.jsonl'}")
