"""The reward model: ranked answers in; a model that scores answers, and how far it agrees with people, out.

The second of InstructGPT's three steps (Ouyang et al. 2022, §3.5).
"""

import functools
import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from gpt_jax import configuration
from gpt_jax.alignment.comparisons import centred_bias, comparison_losses
from gpt_jax.alignment.ranked_losses import reward_head_specs, reward_loss
from gpt_jax.alignment.reward_quality import Length, draw_reliability, judge, pairs_of
from gpt_jax.models import decoder
from gpt_jax.models.adapters import with_adapters
from gpt_jax.models.config import ModelConfig
from gpt_jax.models.parameters import init_parameters
from gpt_jax.models.presets import model_config
from gpt_jax.parallel.mesh import make_mesh
from gpt_jax.parallel.runtime import announce, do_on_main_process, is_main_process
from gpt_jax.progress import clock
from gpt_jax.runs.aligning.answer_scores import Rewards, make_rewards
from gpt_jax.runs.aligning.comparisons import Comparisons, Split, open_comparisons
from gpt_jax.runs.aligning.ranked_training import number_of_steps, resolve, train
from gpt_jax.runs.aligning.reward_model import REWARD
from gpt_jax.runs.aligning.start import fresh_parameters, record
from gpt_jax.runs.recipe import check_batch, check_config, check_model_fits, schedule_and_optimizer
from gpt_jax.runs.workdir import open_workdir
from gpt_jax.training.metrics_log import MetricsLog
from gpt_jax.training.profiling import parse_steps
from gpt_jax.training.report import write_report
from gpt_jax.training.startup import Startup


def run(config: ConfigDict, workdir: Path) -> dict[str, float]:
    """Learns from the ranked answers of `config.data.source`, or goes on where an earlier start was stopped.

    Returns:
      Of the held-out pairs `loss`, `accuracy`, `length_accuracy` (of length alone) and `calibration_error`.

    Raises:
      UserError: for everything that the caller can mend; Interrupted: stopped by a signal, the state saved.
    """
    began, startup = time.monotonic(), Startup()
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
        rewards = make_rewards(
            model,
            mesh,
            start.tokenizer.specials.pad,
            2 * config.train.batch_size // config.train.accumulation,  # answers, as many at once as in training
            config.data.sequence_length,
        )
        params, log = train(
            config, model, mesh, data.train,
            draw=functools.partial(fresh, model, config.transfer.adapters),
            given=lambda: start.pretrained.parameters(mesh, model),
            loss=lambda params, batch, key: reward_loss(
                with_adapters(params, config.transfer.adapters.alpha), model, batch, key
            ),
            evaluate=lambda state: measure(config, state.params, rewards, data.valid),
            sample=lambda state: [],
            steps=steps, workdir=workdir, startup=startup,
        )  # fmt: skip
        return finish(config, model, params, rewards, data, workdir, log, began)


def fresh(model: ModelConfig, adapters: ConfigDict, key: jax.Array) -> dict:
    """A decoder, adapters where their rank is not 0, and the head."""
    model_key, head_key = jax.random.split(key)
    head = init_parameters(reward_head_specs(model), head_key, jnp.dtype(model.param_dtype))
    return fresh_parameters(model, adapters, model_key) | {"head": head}


def rewards_of(config: ConfigDict, params: Any, rewards: Rewards, split: Split) -> np.ndarray:
    """The reward of every answer of a split, float32 [G, K], 0 where there is none."""
    sequences = [ids for own in split.encoded.sequences for ids in own]
    return split.encoded.by_prompt(rewards(with_adapters(params, config.transfer.adapters.alpha), sequences))


def measure(config: ConfigDict, params: Any, rewards: Rewards, split: Split) -> dict[str, float]:
    """`loss`, `accuracy` (of all pairs), `margin` (mean difference of the rewards of a pair)."""
    found_GK = rewards_of(config, params, rewards, split)
    ranks_GK, mask_GK = split.encoded.columns["ranks"], split.encoded.mask
    pairs = pairs_of(ranks_GK, mask_GK)
    losses_G, _ = comparison_losses(found_GK, ranks_GK, mask_GK)
    return {
        "loss": float(np.mean(losses_G)),
        "accuracy": float(pairs.hits(found_GK).mean()),
        "margin": float(pairs.differences(found_GK).mean()),
    }


def finish(
    config: ConfigDict,
    model: ModelConfig,
    params: Any,
    rewards: Rewards,
    data: Comparisons,
    workdir: Path,
    log: MetricsLog,
    began: float,
) -> dict[str, float]:
    """Sets the bias, judges the rewards of held-out answers, writes reward.json and the report, prints the result."""
    bias = centre(config, params, rewards, data.train)
    found_GK = rewards_of(config, params, rewards, data.valid) + bias
    if not is_main_process():
        return {}
    train, valid = data.train.encoded, data.valid.encoded
    rule = Length.learnt(characters(data.train), pairs_of(train.columns["ranks"], train.mask))
    found = judge(found_GK, characters(data.valid), pairs_of(valid.columns["ranks"], valid.mask), rule)
    facts = data.facts
    summary = [
        ("accuracy on held-out pairs (95%)", str(found.accuracy)),
        (f"of length alone ({rule})", str(found.by_length)),
        ("accuracy more than that", str(found.gain)),
        ("calibration error", f"{found.calibration.error:.4f}"),
        ("rewards of held-out answers", f"mean {found_GK[valid.mask].mean():.3f}, standard deviation "
         f"{found_GK[valid.mask].std():.3f}; 0 is the mean of the answers in training that are references"),
        ("pairs", f"{facts['train']['pairs']:,}, {found.pairs:,} held out"),
        ("prompts", f"{facts['train']['prompts']:,}, {facts['valid']['prompts']:,} held out"),
        ("parameters", f"{decoder.parameter_count(model):,}"),
        ("initialised from", str(config.init_from)),
        ("time of this start", clock(time.monotonic() - began)),
    ]  # fmt: skip
    draw_reliability(found.calibration, workdir / "reliability.png")
    path = write_report(
        workdir,
        title=f"Reward model of {Path(config.init_from).name} on {config.data.source}",
        summary=summary,
        rows=log.rows(),
        samples=[],
        config=configuration.as_json(config),
        environment=json.loads((workdir / "environment.json").read_text()),
        loss="nats per prompt",
        pictures={"Is it as often right as it says?": "reliability.png"},
    )
    for name, value in summary:
        print(f"{name}: {value}")
    print(f"report: {path}")
    result = {
        "loss": log.rows("valid")[-1]["loss"],
        "accuracy": found.accuracy.value,
        "length_accuracy": found.by_length.value,
        "calibration_error": found.calibration.error,
    }
    configuration.write_json(workdir / "scores.json", {"valid": result})
    configuration.write_json(workdir / REWARD, {"bias": bias})  # the last: it says that the run is done
    return result


def centre(config: ConfigDict, params: Any, rewards: Rewards, split: Split) -> float:
    """The bias with which the mean reward of the references is 0: of demonstrations, else of the best answers."""
    demonstrated = any(row.reference is not None for row in split.rows)
    references = [
        ids[number]
        for row, ids in zip(split.rows, split.encoded.sequences, strict=True)
        if row.reference is not None or not demonstrated
        for number in row.references
    ]
    found = rewards(with_adapters(params, config.transfer.adapters.alpha), references)
    return float(centred_bias(params["head"]["bias"], found, np.ones(len(found)))[0])


def characters(split: Split) -> np.ndarray:
    """How long every answer is, int [G, K]."""
    lengths = np.array([len(answer) for row in split.rows for answer in row.answers])
    return split.encoded.by_prompt(lengths)
