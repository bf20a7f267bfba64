"""Collecting comparisons: prompts in; answers of one model or several, ranked by a reward or by a person, out.

InstructGPT's way to the data of its reward models (Ouyang et al. 2022, §3.2): the newest policy answers, and labelers
rank what it said.
"""

import dataclasses
import datetime
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from tqdm import tqdm

from gpt_jax import configuration
from gpt_jax.alignment.conversations import Left
from gpt_jax.alignment.questions import Question, chosen_questions, questions_of_text, read_questions
from gpt_jax.data.sources import open_source
from gpt_jax.data.tables import is_table, open_table
from gpt_jax.disk import digest
from gpt_jax.errors import UserError
from gpt_jax.inference.generation import continue_prompts
from gpt_jax.inference.sampling import Sampling
from gpt_jax.parallel.runtime import announce
from gpt_jax.runs.aligning.judging import PROMPT, judge
from gpt_jax.runs.aligning.ranking_report import report_rankings
from gpt_jax.runs.aligning.rankings import Candidates, Rankings, rank_by_reward
from gpt_jax.runs.aligning.rewards import open_reward
from gpt_jax.runs.aligning.start import first_day
from gpt_jax.runs.chat import lines
from gpt_jax.runs.chat_model import ChatModel, missing_template, open_chat_model
from gpt_jax.runs.generate import Generations, record
from gpt_jax.runs.pretrained import prompt_ids
from gpt_jax.runs.workdir import cache_folder, open_workdir
from gpt_jax.text.chat_template import Message
from gpt_jax.training.checkpoints import digests
from gpt_jax.training.metrics_log import read_rows

Row = dict[str, Any]
DEMONSTRATION = "demonstration"  # who gave the answer that stood in the prompt's row


def run(config: ConfigDict, workdir: Path) -> list[Row]:
    """Draws the answers to the prompts of `config.data.prompts`, ranks them, and says which model is preferred.

    Returns:
      The rows of comparisons.jsonl.

    Raises:
      UserError: for everything that the caller can mend.
    """
    sampling = sampling_of(config)
    day = first_day(workdir)
    models = open_models(config, day)
    judged = open_reward(config.reward, models[0].mesh) if config.rank == "reward" else None
    with open_workdir(workdir):
        free = () if read_rows(workdir / "rankings.jsonl") else ("reward",)  # it has ranked nothing: another may
        current, keep = configuration.as_json(config), configuration.FREE_TO_CHANGE + free
        configuration.check_same(workdir, "config.json", current, what="config", free=keep)
        asked, left_out = open_questions(config, models)
        facts = {
            "prompts": digest([[one.prompt, one.demonstration] for one in asked]),
            "tokenizers": [model.tokenizer.fingerprint for model in models],
            "templates": [model.template and digest(model.template.source) for model in models],
            "reward": judged and judged[1],
            "left_out": left_out,
            "day": day.isoformat(),
        }
        configuration.check_same(workdir, "data.json", facts, what="prompts, models or reward", free=free)
        record(config, facts, workdir)
        answers = [draw(config, number, model, asked, sampling, workdir) for number, model in enumerate(models)]
        candidates = [
            candidates_of(config, models, question, drawn, empty=judged is not None)
            for question, *drawn in zip(asked, *answers, strict=True)
        ]
        rankings = Rankings(workdir, candidates, least=2 if judged is None else 1)
        if judged is None:
            judge(
                rankings.waiting,
                lambda number: (candidates[number].question, candidates[number].answers),
                done=len(rankings.rows),
                seed=config.seed,
                record=lambda number, ranks: rankings.add({number: {"ranks": ranks, "ranked_by": config.judge}}),
                undo=rankings.undo,
                typed=lines(PROMPT, "q or Ctrl-D leaves; all that was ranked is saved."),
            )
        else:
            rank_by_reward(config.reward.source, judged[0], candidates, rankings)
        title = f"Answers to {config.data.prompts}, ranked by {config.reward.source if judged else config.judge}"
        names = [str(model.pretrained.path) for model in models]
        report_rankings(title, dict(zip(names, answers, strict=True)), rankings, workdir)
        return rankings.comparisons


# --- what is asked, and of whom


def sampling_of(config: ConfigDict) -> Sampling:
    """The options of the draws. UserError: for what is out of range or contradictory."""
    for name, least in (("answers", 1), ("slots", 1), ("data.most", 0), ("data.prompt_tokens", 1), ("data.every", 1)):
        value = configuration.flatten(config.to_dict())[name]
        if value < least:
            raise UserError(f"{name}={value}: expected at least {least}.")
    if not all(config.stop):
        raise UserError("stop: an empty stop string would end every answer before it begins: leave it out.")
    options = {name: config[name] for name in ("top_k", "top_p", "min_p") if config[name] is not None}
    return Sampling(config.max_new_tokens, config.temperature, seed=config.seed, **options)


def open_models(config: ConfigDict, day: datetime.date) -> list[ChatModel]:
    """The models that `config.source` names, `+` between them. `day`: as of `ChatTemplate`.

    Raises:
      UserError: there are none; they cannot answer; or one would give each prompt a single answer.
    """
    if not config.source or not config.data.prompts:
        raise UserError(
            "model= or prompts= is missing: --config=configs/collect.py:model=PATH,prompts=file:PROMPTS.jsonl. PATH: a "
            "workdir, a Hugging Face folder, a GGUF file; several: PATH+PATH."
        )
    paths = config.source.split("+")
    if len(set(paths)) < len(paths):
        raise UserError(f"model={config.source}: names one twice. To draw more answers of it, raise answers=.")
    if len(paths) * config.answers + config.data.demonstrations < 2:
        raise UserError("answers=1 of one model: it takes two answers to compare. Raise answers=, or name two models.")
    models = []
    for path in paths:
        own = config.copy_and_resolve_references().unlock()
        own.source = path
        models.append(open_chat_model(own, day))
    return models


def open_questions(config: ConfigDict, models: Sequence[ChatModel]) -> tuple[list[Question], Row]:
    """The prompts that fit all the models, and how many rows were left out.

    Raises:
      UserError: for what is wrong with them; none is left.
    """
    data, left = config.data, Left()
    if is_table(data.prompts):
        table = open_table(data.prompts, encoding=data.encoding, skip_bad_rows=data.skip_bad_rows)
        found = list(read_questions(table, data.columns, skip_bad_rows=data.skip_bad_rows, left=left))
        left.broken += table.skipped
    else:
        source = open_source(
            data.prompts, validation_fraction=0.0, encoding=data.encoding, cache_dir=cache_folder(None)
        )
        found = list(questions_of_text(source, models[0].tokenizer, tokens=data.prompt_tokens, every=data.every))
    fitting = []
    for question in found:
        if all(fits(config, model, question) for model in models):
            fitting.append(question)
        else:
            left.too_long += 1
    if not fitting:
        raise UserError(
            f"{data.prompts}: no prompt is left to answer: {left.broken:,} rows are none, {left.too_long:,} leave no "
            f"room in the context for max_new_tokens={config.max_new_tokens}."
        )
    if left.broken or left.too_long:
        announce(f"left out: {left.broken:,} rows that are no prompts, {left.too_long:,} prompts that are too long")
    return chosen_questions(fitting, data.most, config.seed), dataclasses.asdict(left)


def fits(config: ConfigDict, model: ChatModel, question: Question) -> bool:
    """Whether the context has room for the prompt and an answer with its end, which those who learn from it write."""
    return len(ids_of(config, model, question)) + config.max_new_tokens < model.length


def conversation_of(config: ConfigDict, model: ChatModel, question: Question) -> list[Message] | None:
    """The prompt as messages to `model`; None: it is a text that goes on.

    Raises:
      UserError: it is a conversation, and the model has no template for one.
    """
    if not isinstance(question.prompt, str):
        if model.template is None:
            raise missing_template(str(model.pretrained.path))
        return [dict(message) for message in question.prompt]
    if model.template is None or not config.chat:
        return None
    return [{"role": "user", "content": question.prompt}]


def ids_of(config: ConfigDict, model: ChatModel, question: Question) -> list[int]:
    """The prompt as `model` reads it. UserError: its template refuses it."""
    if (messages := conversation_of(config, model, question)) is None:
        return prompt_ids(model.tokenizer, question.prompt)
    try:
        return model.template.encode(messages).tolist()
    except UserError as error:
        raise UserError(f"{question.place}: {error}") from None


def text_of(config: ConfigDict, model: ChatModel, question: Question) -> str:
    """The same as text."""
    messages = conversation_of(config, model, question)
    return question.prompt if messages is None else model.template.render(messages)


# --- what is answered


def draw(
    config: ConfigDict, number: int, model: ChatModel, asked: Sequence[Question], sampling: Sampling, workdir: Path
) -> list[list[Row]]:
    """Of each prompt the answers of model `number`, as rows of its file of answers; draws those that are missing.

    An answer follows from the seed and its own place among all answers: a killed run goes on with the same ones.
    """
    name, count = model.pretrained.path, config.answers
    models = len(config.source.split("+"))
    prompts = [text_of(config, model, question) for question in asked]
    with Generations(workdir / f"answers-{number + 1}.jsonl", prompts, resumed=True) as generations:
        wanted = [[n for n in range(count) if (i, n) not in generations.done] for i in range(len(asked))]
        if missing := sum(map(len, wanted)):
            announce(f"{name}: {missing:,} answers to {len(asked):,} prompts")
            firsts = [(i * models + number) * count for i in range(len(asked))]  # the number of a prompt's first answer
            samples = [[first + n for n in own] for first, own in zip(firsts, wanted, strict=True)]
            ids = [ids_of(config, model, question) for question in asked]
            engine = model.engine(slots=config.slots)
            keep_weights(engine.params, model, workdir / f"weights-{number + 1}.json")
            pieces = continue_prompts(engine, model.tokenizer, ids, sampling, stop=config.stop, samples=samples)
            with tqdm(total=missing, unit="answer", disable=not sys.stderr.isatty()) as bar:
                for piece in pieces:
                    if (found := piece.so_far).finished:
                        place = piece.sample - firsts[piece.prompt]
                        generations.add(piece.prompt, place, found.text, found.finished, len(found.ids))
                        bar.update()
    rows: list[list[Row]] = [[] for _ in asked]
    for row in generations.rows:
        rows[row["index"]].append(row)
    return rows


def keep_weights(params: Any, model: ChatModel, path: Path) -> None:
    """Notes at `path` with which weights a model answers. UserError: it began with others.

    Asked where answers are drawn: once all are there, the model may learn on, and they can still be ranked.
    """
    source, step = model.pretrained.source, model.pretrained.chosen_step
    if step is None and isinstance(source, Path):
        step = max(int(path.name) for path in source.iterdir() if path.name.isdigit())
    facts = {"step": step, "weights": digest(digests(params))}
    what = f"{model.pretrained.path} (its weights have changed since it began to answer)"
    configuration.check_same(path.parent, path.name, facts, what=what)
    configuration.write_json(path, facts)


def candidates_of(
    config: ConfigDict, models: Sequence[ChatModel], question: Question, drawn: Sequence[Sequence[Row]], *, empty: bool
) -> Candidates:
    """Merges equal answers; leaves out empty ones unless `empty`."""
    given: dict[str, list[str]] = {}
    read: dict[str, tuple[str, list[Message] | None]] = {}

    def add(answer: str, name: str, model: ChatModel) -> None:
        if empty or answer.strip():
            given.setdefault(answer, []).append(name)
            read.setdefault(answer, (text_of(config, model, question), conversation_of(config, model, question)))

    for model, rows in zip(models, drawn, strict=True):
        for row in rows:
            add(row["text"], str(model.pretrained.path), model)
    reference = None
    if config.data.demonstrations and (own := question.demonstration) and own.strip():
        add(own, DEMONSTRATION, models[0])
        reference = list(given).index(own)
    return Candidates(question, list(given), list(given.values()), list(read.values()), reference)
