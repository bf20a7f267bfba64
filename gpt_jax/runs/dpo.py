"""Direct preference optimization: ranked answers in; a model that prefers the better ones, without a reward model.

Rafailov et al. 2023 (the loss `sigmoid`); Azar et al. 2023 (`ipo`). The reference is the model that the run begins
with; how likely it finds each answer is computed once, before the first step.
"""

import dataclasses
import functools
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from gpt_jax import configuration
from gpt_jax.alignment.preferences import PairLogProbs, preference_metrics
from gpt_jax.alignment.ranked_answers import AnswerEncoder, RankedAnswers
from gpt_jax.alignment.ranked_losses import preference_loss, preference_losses
from gpt_jax.alignment.reward_quality import pairs_of
from gpt_jax.errors import UserError, did_you_mean
from gpt_jax.models import decoder
from gpt_jax.models.adapters import with_adapters
from gpt_jax.models.presets import model_config
from gpt_jax.parallel.mesh import make_mesh
from gpt_jax.parallel.runtime import announce, do_on_main_process, is_main_process
from gpt_jax.progress import clock
from gpt_jax.runs.aligning.answer_scores import LogLikelihoods, make_log_likelihoods
from gpt_jax.runs.aligning.comparisons import Comparisons, Split, open_comparisons
from gpt_jax.runs.aligning.ranked_training import number_of_steps, resolve, train
from gpt_jax.runs.aligning.reference_log_probs import reference_log_probs
from gpt_jax.runs.aligning.start import Start, fresh_parameters, record
from gpt_jax.runs.recipe import check_batch, check_config, check_model_fits, has_begun, schedule_and_optimizer
from gpt_jax.runs.sft import make_sample
from gpt_jax.runs.workdir import open_workdir
from gpt_jax.training.metrics_log import MetricsLog
from gpt_jax.training.profiling import parse_steps
from gpt_jax.training.report import write_report
from gpt_jax.training.startup import Startup

LOSSES = ("sigmoid", "ipo")


def run(config: ConfigDict, workdir: Path) -> dict[str, float]:
    """Learns from the ranked answers of `config.data.source`, or goes on where an earlier start was stopped.

    Returns:
      The metrics of the last validation.

    Raises:
      UserError: for everything that the caller can mend; Interrupted: stopped by a signal, the state saved.
    """
    began, startup = time.monotonic(), Startup()
    check_objective(config)
    config, start = resolve(config, workdir)
    model = model_config(None, **config.model)
    mesh = make_mesh(config.mesh)
    check_model_fits(model, mesh)
    check_batch(config.train.batch_size, mesh, accumulation=config.train.accumulation)
    schedule_and_optimizer(config, steps=config.train.steps or 10**9)  # refuses what cannot be, before any work
    with open_workdir(workdir):
        do_on_main_process(lambda: check_config(config, workdir))
        announce(f"{config.init_from}: {decoder.parameter_count(model):,} parameters; writing to {workdir}")
        startup.end("start")
        data = open_comparisons(config, start)
        steps = number_of_steps(config, data.train.encoded)
        schedule_and_optimizer(config, steps)  # again, now that the epochs are steps
        parse_steps(config.report.profile_steps, steps)
        do_on_main_process(lambda: record(config, start, data.facts, workdir))
        startup.end("data")
        answers = 2 * config.train.batch_size // config.train.accumulation  # at once, as in training
        log_likelihoods = make_log_likelihoods(
            model, mesh, start.tokenizer.specials.pad, answers, config.data.sequence_length
        )
        given = None if has_begun(workdir) else start.pretrained.parameters(mesh, model)
        splits = {"train": data.train, "valid": data.valid}
        reference = reference_log_probs(given, log_likelihoods, splits, workdir, answers)
        training, held_out = (with_reference(split, reference[name]) for name, split in splits.items())
        startup.end("reference")
        _, log = train(
            config, model, mesh, training,
            draw=functools.partial(fresh_parameters, model, config.transfer.adapters),
            given=lambda: given,
            loss=lambda params, batch, key: preference_loss(
                with_adapters(params, config.transfer.adapters.alpha)["model"], model, batch, key, **objective(config)
            ),
            evaluate=lambda state: measure(config, state.params, log_likelihoods, held_out),
            sample=make_sample(config, model, mesh, start, questions_of(data.valid.rows, config, start)),
            steps=steps, workdir=workdir, startup=startup,
        )  # fmt: skip
        return finish(config, workdir, log, data, decoder.parameter_count(model), began) if is_main_process() else {}


def check_objective(config: ConfigDict) -> None:
    """Raises UserError unless the fields of `config.objective` can be."""
    c = config.objective
    if c.loss not in LOSSES:
        raise UserError(
            f"objective.loss={c.loss!r}: expected one of {', '.join(LOSSES)}.{did_you_mean(c.loss, LOSSES)}"
        )
    if c.beta <= 0 or not 0 <= c.label_smoothing < 0.5:
        raise UserError(
            f"objective: beta={c.beta}, label_smoothing={c.label_smoothing}: expected a positive beta, and a share "
            "below a half of pairs that are labelled the wrong way round."
        )
    if c.label_smoothing and c.loss != "sigmoid":
        raise UserError("objective.label_smoothing goes with objective.loss=sigmoid.")


def objective(config: ConfigDict) -> dict[str, Any]:
    """The arguments of `preference_losses`."""
    return {"kind": config.objective.loss} | {name: config.objective[name] for name in ("beta", "label_smoothing")}


def with_reference(split: Split, log_probs: np.ndarray) -> Split:
    """The split, with the log-probabilities [G, K] of its answers under the reference in its batches."""
    columns = split.encoded.columns | {"reference_log_probs": log_probs}
    return Split(split.rows, dataclasses.replace(split.encoded, columns=columns))


def questions_of(rows: Sequence[RankedAnswers], config: ConfigDict, start: Start) -> list[list[int]]:
    """Ids of the first prompts that leave room for an answer, as many as samples are wanted."""
    encode, found = AnswerEncoder(start.tokenizer, start.template, config.data.last_messages), []
    for row in rows:
        if len(found) == config.report.samples:
            break
        ids = encode.prompt(row.prompt).tolist()
        if ids and ids not in found and len(ids) + config.report.sample_tokens <= config.data.sequence_length:
            found.append(ids)
    return found


def measure(config: ConfigDict, params: Any, log_likelihoods: LogLikelihoods, split: Split) -> dict[str, float]:
    """`loss`, `preference_metrics` over all pairs, and the mean log-probability of their better and worse answers."""
    data = split.encoded
    sequences, starts = [ids for own in data.sequences for ids in own], data.starts[data.mask]
    decoder_alone = with_adapters(params, config.transfer.adapters.alpha)["model"]
    policy_GK = data.by_prompt(log_likelihoods(decoder_alone, sequences, starts))
    reference_GK = data.columns["reference_log_probs"]
    lengths_GK = data.by_prompt(np.array([len(ids) for ids in sequences]) - starts)
    losses_G = preference_losses(
        policy_GK, reference_GK, lengths_GK, data.columns["ranks"], data.mask, **objective(config)
    )
    pairs = pairs_of(data.columns["ranks"], data.mask)

    def of_pairs(x_GK: np.ndarray) -> PairLogProbs:
        return PairLogProbs(x_GK[pairs.prompt, pairs.better], x_GK[pairs.prompt, pairs.worse])

    said = of_pairs(policy_GK)
    if config.objective.loss == "ipo":  # whose margins are those of a token
        policy_GK, reference_GK = (x_GK / np.maximum(lengths_GK, 1) for x_GK in (policy_GK, reference_GK))
    metrics = preference_metrics(of_pairs(policy_GK), of_pairs(reference_GK), beta=config.objective.beta)
    metrics["accuracy"] = pairs.hits(policy_GK - reference_GK).mean()  # where they are equal still, a half
    metrics |= {"log_prob_chosen": np.mean(said.chosen_P), "log_prob_rejected": np.mean(said.rejected_P)}
    return {"loss": float(jnp.mean(losses_G))} | {name: float(value) for name, value in metrics.items()}


def finish(
    config: ConfigDict, workdir: Path, log: MetricsLog, data: Comparisons, parameters: int, began: float
) -> dict[str, float]:
    """Writes the report and prints the result."""
    first, result = (log.rows("valid")[place] for place in (0, -1))
    facts = data.facts

    def measured(name: str) -> str:
        return f"{result[name]:.4f}" + (f", {first[name]:.4f} before" if first["step"] == 0 else "")

    summary = [
        ("accuracy on held-out pairs", measured("accuracy")),
        ("margin of the implicit rewards", measured("margin")),
        ("validation loss", measured("loss")),
        ("log-probability of the better answer", measured("log_prob_chosen")),
        ("log-probability of the worse answer", measured("log_prob_rejected")),
        ("pairs", f"{facts['train']['pairs']:,}, {facts['valid']['pairs']:,} held out"),
        ("prompts", f"{facts['train']['prompts']:,}, {facts['valid']['prompts']:,} held out"),
        ("parameters", f"{parameters:,}"),
        ("initialised from", str(config.init_from)),
        ("time of this start", clock(time.monotonic() - began)),
    ]
    path = write_report(
        workdir,
        title=f"Direct preference optimization of {Path(config.init_from).name} on {config.data.source}",
        summary=summary,
        rows=log.rows(),
        samples=log.samples(),
        config=configuration.as_json(config),
        environment=json.loads((workdir / "environment.json").read_text()),
        loss="per prompt",
    )
    for name, value in summary:
        print(f"{name}: {value}")
    print(f"report: {path}")
    return {name: value for name, value in result.items() if name not in ("step", "split", "tokens")}
