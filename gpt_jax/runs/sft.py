"""Supervised fine-tuning: conversations in; a model that answers, its losses and its answers out.

The first of InstructGPT's three steps (Ouyang et al. 2022, §3.5). The loss falls on what the assistant says.
"""

import contextlib
import functools
import json
import time
from collections.abc import Callable
from pathlib import Path

import jax
from ml_collections import ConfigDict

from gpt_jax import configuration
from gpt_jax.data.batch_sizes import BatchSizes
from gpt_jax.data.loader import batch_indices, evaluation_batches, training_batches, window_order
from gpt_jax.data.packing import PackedTexts
from gpt_jax.errors import UserError
from gpt_jax.inference.engine import Engine
from gpt_jax.inference.generation import continue_prompts
from gpt_jax.inference.sampling import Sampling
from gpt_jax.inference.scoring import compile_scorer
from gpt_jax.models import decoder
from gpt_jax.models.adapters import with_adapters
from gpt_jax.models.config import ModelConfig
from gpt_jax.models.flops import training_flops_per_token
from gpt_jax.models.presets import model_config
from gpt_jax.parallel.devices import peak_flops
from gpt_jax.parallel.mesh import make_mesh
from gpt_jax.parallel.rules import sharding
from gpt_jax.parallel.runtime import announce, do_on_main_process, is_main_process
from gpt_jax.progress import StepProgress, clock
from gpt_jax.runs.aligning.demonstrations import Demonstrations, open_demonstrations
from gpt_jax.runs.aligning.start import Start, fresh_parameters, open_learner, record, resolve_start
from gpt_jax.runs.pretrain import check_sequence
from gpt_jax.runs.recipe import (
    check_batch,
    check_config,
    check_counts,
    check_model_fits,
    schedule_and_optimizer,
)
from gpt_jax.runs.workdir import open_workdir
from gpt_jax.text.tokenizer import Tokenizer
from gpt_jax.training.checkpoints import Checkpoints
from gpt_jax.training.loop import Intervals, Loop
from gpt_jax.training.losses import language_model_loss
from gpt_jax.training.metrics_log import MetricsLog
from gpt_jax.training.profiling import Profile, parse_steps
from gpt_jax.training.report import write_report
from gpt_jax.training.startup import Startup
from gpt_jax.training.state import TrainState
from gpt_jax.training.step import compile_train_step

COUNTS = (
    "train.log_every",
    "train.eval_every",
    "checkpoint.every",
    "report.sample_every",
    "report.samples",
    "report.sample_tokens",
    "report.temperature",
    "schedule.peak",
    "optimizer.clip_norm",
    "optimizer.weight_decay",
)


def run(config: ConfigDict, workdir: Path) -> dict[str, float]:
    """Fine-tunes on the conversations of `config.data.source`, or goes on where an earlier start was stopped.

    Returns:
      The metrics of the last validation.

    Raises:
      UserError: for everything that the caller can mend; Interrupted: stopped by a signal, the state saved.
    """
    began, startup = time.monotonic(), Startup()
    config, start = resolve(config, workdir)
    model = model_config(None, **config.model)
    mesh = make_mesh(config.mesh)
    check_model_fits(model, mesh, config.data.sequence_length)
    check_batch(config.train.batch_size, mesh, accumulation=config.train.accumulation)
    check_sequence(config, mesh)
    schedule_and_optimizer(config, steps=config.train.steps or 10**9)  # refuses what cannot be, before any work
    with open_workdir(workdir):
        do_on_main_process(lambda: check_config(config, workdir))
        announce(f"{config.init_from}: {decoder.parameter_count(model):,} parameters; writing to {workdir}")
        startup.end("start")
        data = open_demonstrations(config, start.tokenizer, start.template)
        steps = config.train.steps or max(int(config.train.epochs * len(data.train) / config.train.batch_size), 1)
        schedule_and_optimizer(config, steps)  # again, now that the epochs are steps
        parse_steps(config.report.profile_steps, steps)
        do_on_main_process(lambda: record(config, start, data.facts, workdir))
        startup.end("data")
        log = train(config, model, mesh, start, data, steps, workdir, startup)
        return finish(config, model, data, workdir, log, steps, began) if is_main_process() else {}


def resolve(config: ConfigDict, workdir: Path) -> tuple[ConfigDict, Start]:
    """A copy in which nothing is left to a default, and what the run begins with.

    Raises:
      UserError: when fields contradict each other or the weights.
    """
    config, start = resolve_start(config, workdir)
    if config.model.core == "lstm" and config.data.packing:
        raise UserError("data.packing=True: an LSTM cannot keep apart the texts of a row. Set data.packing=False.")
    check_counts(config, COUNTS)
    return config.lock(), start


def train(
    config: ConfigDict,
    model: ModelConfig,
    mesh: jax.sharding.Mesh,
    start: Start,
    data: Demonstrations,
    steps: int,
    workdir: Path,
    startup: Startup,
) -> MetricsLog:
    """From the packed conversations to the last checkpoint; returns the record of the run, closed."""
    c, batch, length = config, config.train.batch_size, config.data.sequence_length
    adapters = c.transfer.adapters
    schedule, optimizer = schedule_and_optimizer(config, steps)
    checkpoints = Checkpoints(workdir / "checkpoints", keep=c.checkpoint.keep)
    learner = open_learner(
        functools.partial(fresh_parameters, model, adapters),
        lambda: start.pretrained.parameters(mesh, model),
        optimizer,
        checkpoints,
        mesh,
        c.seed,
    )
    state = learner.state
    first = int(state.step)
    announce(
        f"{data.facts['train']['conversations']:,} conversations in {len(data.train):,} rows of {length} tokens, "
        f"{data.train.filled:.0%} filled, {data.facts['train']['answer_tokens']:,} tokens to learn; {steps:,} steps of "
        f"{batch} rows ({steps * batch / len(data.train):.1f} epochs); the first step takes a while: it is compiled"
    )

    def loss(params: dict, batch: dict, key: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        return language_model_loss(with_adapters(params, adapters.alpha)["model"], model, batch, key)

    step = compile_train_step(
        learner.abstract, mesh, loss_fn=loss, optimizer=learner.optimizer, schedule=schedule,
        accumulation=c.train.accumulation, frozen=learner.frozen,
    )  # fmt: skip
    rows = sharding((batch, length), ("batch", "time"), mesh)
    order, sizes = window_order(len(data.train), c.seed), BatchSizes.constant(batch)
    log = MetricsLog(workdir, resume_step=first, main_process=is_main_process(), tensorboard=c.report.tensorboard)
    progress = StepProgress(total=steps, start=first, main_process=is_main_process())
    profile = Profile(parse_steps(c.report.profile_steps, steps), workdir / "profile", progress.say)
    startup.end("state")
    with contextlib.ExitStack() as stack:
        for closed_at_the_end in (checkpoints, log, progress, profile):
            stack.callback(closed_at_the_end.close)
        loop = Loop(
            train_step=startup.watch(functools.partial(step, seed=c.seed), progress.say),
            batches=training_batches(
                data.train, order, sizes=sizes, first_step=first, sharding=rows, prefetch=c.data.prefetch
            ),
            steps=steps,
            intervals=Intervals(
                log=c.train.log_every,
                evaluate=c.train.eval_every,
                sample=c.report.sample_every,
                checkpoint=c.checkpoint.every,
            ),
            tokens=lambda step: step * batch * length,
            flops_per_token=training_flops_per_token(model, length),
            peak_flops=peak_flops(),
            evaluate=startup.aside("evaluation", make_evaluate(config, model, mesh, start.tokenizer, data.valid)),
            sample=startup.aside("samples", make_sample(config, model, mesh, start, data.questions)),
            describe_batch=lambda step: data.train.describe(batch_indices(order, sizes, step)),
            checkpoints=checkpoints,
            log=log,
            progress=progress,
            profile=profile,
            evaluate_first=True,  # what the model could do before
        )
        loop.fit(state)
    return log


def make_evaluate(
    config: ConfigDict, model: ModelConfig, mesh: jax.sharding.Mesh, tokenizer: Tokenizer, valid: PackedTexts
) -> Callable[[TrainState], dict[str, float]]:
    """A function state -> `loss` and `bits_per_byte` of all held-out answers."""
    batch = config.train.batch_size // config.train.accumulation
    rows = sharding((batch, valid.length), ("batch", "time"), mesh)
    score = compile_scorer(model, tokenizer.token_bytes, mesh)

    def evaluate(state: TrainState) -> dict[str, float]:
        params = with_adapters(state.params, config.transfer.adapters.alpha)["model"]
        return score(params, evaluation_batches(valid, batch_size=batch, sharding=rows))

    return evaluate


def make_sample(
    config: ConfigDict, model: ModelConfig, mesh: jax.sharding.Mesh, start: Start, questions: list[list[int]]
) -> Callable[[TrainState], list[dict[str, str]]]:
    """A function state -> rows of `prompt`, a held-out question as the model reads it, and `continuation`."""
    r, tokenizer = config.report, start.tokenizer
    if not (r.sample_every and r.sample_tokens and questions):
        return lambda state: []
    sampling = Sampling(r.sample_tokens, r.temperature, seed=config.seed)

    def sample(state: TrainState) -> list[dict[str, str]]:
        params = with_adapters(state.params, config.transfer.adapters.alpha)["model"]
        engine = Engine(
            params, model, mesh, vocab_size=tokenizer.vocab_size, slots=len(questions), end_ids=start.end_ids
        )
        answers = [""] * len(questions)
        for piece in continue_prompts(engine, tokenizer, questions, sampling):
            answers[piece.prompt] = piece.so_far.text
        return [
            {"prompt": tokenizer.decode(question), "continuation": answer}
            for question, answer in zip(questions, answers, strict=True)
        ]

    return sample


def finish(
    config: ConfigDict,
    model: ModelConfig,
    data: Demonstrations,
    workdir: Path,
    log: MetricsLog,
    steps: int,
    began: float,
) -> dict[str, float]:
    """Writes the report and prints the result."""
    first, result = (log.rows("valid")[place] for place in (0, -1))

    def measured(name: str) -> str:
        before = f", {first[name]:.4f} before" if first["step"] == 0 else ""
        return f"{result[name]:.4f}{before}"

    summary = [
        ("validation loss", f"{measured('loss')} (nats per token of an answer)"),
        ("bits per byte of the answers", measured("bits_per_byte")),
        ("steps", f"{steps:,}"),
        (
            "conversations",
            f"{data.facts['train']['conversations']:,}, {data.facts['valid']['conversations']:,} held out",
        ),
        ("parameters", f"{decoder.parameter_count(model):,}"),
        ("initialised from", str(config.init_from)),
        ("time of this start", clock(time.monotonic() - began)),
    ]
    path = write_report(
        workdir,
        title=f"Supervised fine-tuning of {Path(config.init_from).name} on {config.data.source}",
        summary=summary,
        rows=log.rows(),
        samples=log.samples(),
        config=configuration.as_json(config),
        environment=json.loads((workdir / "environment.json").read_text()),
    )
    for name, value in summary:
        print(f"{name}: {value}")
    print(f"report: {path}")
    return {"loss": result["loss"], "bits_per_byte": result["bits_per_byte"]}
