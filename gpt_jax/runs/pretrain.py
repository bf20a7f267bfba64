"""Pretraining: documents in, a language model, its loss curve and its own sentences out."""

import contextlib
import functools
import json
import math
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from gpt_jax import configuration
from gpt_jax.data.batch_sizes import BatchSizes
from gpt_jax.data.loader import batch_indices, evaluation_batches, training_batches
from gpt_jax.data.mixture import parse_mixture
from gpt_jax.data.token_store import TokenStore
from gpt_jax.data.windows import EvaluationWindows
from gpt_jax.errors import UserError
from gpt_jax.inference.engine import Engine
from gpt_jax.inference.generation import continue_prompts
from gpt_jax.inference.sampling import Sampling
from gpt_jax.inference.scoring import compile_scorer
from gpt_jax.models import decoder
from gpt_jax.models.config import ModelConfig
from gpt_jax.models.flops import training_flops_per_token
from gpt_jax.models.presets import adapt, model_config
from gpt_jax.parallel.devices import peak_flops
from gpt_jax.parallel.mesh import make_mesh
from gpt_jax.parallel.rules import sharding
from gpt_jax.parallel.runtime import announce, do_on_main_process, is_main_process
from gpt_jax.progress import StepProgress, clock
from gpt_jax.runs.pretrained import Pretrained, check_vocabulary, open_pretrained, prompt_ids
from gpt_jax.runs.recipe import (
    check_batch,
    check_config,
    check_counts,
    check_model_fits,
    check_ramp,
    has_begun,
    schedule_and_optimizer,
)
from gpt_jax.runs.training_text import Text, found_tokenizer, open_text, resolve_sources
from gpt_jax.runs.workdir import cache_folder, environment, open_workdir
from gpt_jax.text.tokenizer import load_tokenizer
from gpt_jax.training.checkpoints import Checkpoints
from gpt_jax.training.loop import Intervals, Loop
from gpt_jax.training.losses import language_model_loss
from gpt_jax.training.metrics_log import MetricsLog
from gpt_jax.training.profiling import Profile, parse_steps
from gpt_jax.training.report import write_report
from gpt_jax.training.startup import Startup
from gpt_jax.training.state import TrainState, abstract_state, create_state, initial_state, state_builder
from gpt_jax.training.step import compile_train_step

COUNTS = (  # 0 switches each of them off
    "train.log_every",
    "train.eval_every",
    "checkpoint.every",
    "report.sample_every",
    "report.sample_tokens",
    "report.top_k",
    "train.tokens",
    "train.ramp_tokens",
)
PROMPT_TOKENS = 16  # of held-out text, which samples continue


def run(config: ConfigDict, workdir: Path) -> dict[str, float]:
    """Trains what `config` describes, or goes on where an earlier start in `workdir` was stopped.

    Returns:
      The metrics of the last validation.

    Raises:
      UserError: for everything that the caller can mend; Interrupted: stopped by a signal, the state saved.
    """
    began, startup = time.monotonic(), Startup()
    config, pretrained = resolve(config, workdir)
    model = model_config(**config.model)
    mesh = make_mesh(config.mesh)
    check_model_fits(model, mesh, config.data.sequence_length)
    check_batch(config.train.batch_size, mesh, accumulation=config.train.accumulation)
    check_sequence(config, mesh)
    sizes = batch_sizes(config)
    check_ramp(config, sizes, mesh)
    schedule_and_optimizer(config, planned_steps(config) or 10**9, sizes)  # refuses what cannot be, before any work
    with open_workdir(workdir):
        do_on_main_process(lambda: check_config(config, workdir))
        announce(f"{title(config)}: {decoder.parameter_count(model):,} parameters; writing to {workdir}")
        startup.end("start")
        text = open_text(config, sizes, workdir)
        steps = total_steps(config, len(text.windows))
        schedule_and_optimizer(config, steps, sizes)  # again, now that the epochs are steps
        parse_steps(config.report.profile_steps, steps)
        do_on_main_process(lambda: record(config, text, workdir))
        startup.end("data")
        log = train(config, model, mesh, pretrained, text, steps, workdir, startup)
        return finish(config, model, text, workdir, log, steps, began) if is_main_process() else {}


def title(config: ConfigDict) -> str:
    """What is trained, in a word."""
    return config.model.preset or Path(config.init_from).name


def record(config: ConfigDict, text: Text, workdir: Path) -> None:
    """Writes what the run is made of, now that nothing is left to refuse; UserError where its text is another."""
    configuration.check_same(workdir, "data.json", text.facts, what="text (it has changed since the run began)")
    text.tokenizer.save(workdir / "tokenizer")
    configuration.write_json(workdir / "data.json", text.facts)
    configuration.write_json(workdir / "environment.json", environment())
    configuration.write_json(workdir / "config.json", configuration.as_json(config))


def resolve(config: ConfigDict, workdir: Path | None = None) -> tuple[ConfigDict, Pretrained | None]:
    """A copy in which nothing is left to a default, and the weights to begin with, where `init_from` names some.

    The preset's fields are filled in, token counts turned into steps.

    Args:
      workdir: where a run that was begun has all it needs of the weights and their tokenizer.

    Raises:
      UserError: when fields contradict each other.
    """
    config = config.copy_and_resolve_references().unlock()
    model, pretrained = resolve_model(config, workdir)
    for name in config.model:
        if name != "preset":
            config.model[name] = getattr(model, name)
    if config.data.sequence_length is None:  # published contexts are longer than most machines can train on
        config.data.sequence_length = min(model.context_length, 512 if config.init_from else model.context_length)
    if not 1 <= config.data.sequence_length <= model.context_length:
        raise UserError(
            f"data.sequence_length={config.data.sequence_length}: expected 1 to model.context_length="
            f"{model.context_length}."
        )
    lengths = {name: config.train[name] for name in ("steps", "epochs", "tokens")}
    if sum(value > 0 for value in lengths.values()) != 1:
        given = ", ".join(f"train.{name}={value}" for name, value in lengths.items())
        raise UserError(f"{given}: give exactly one of them and set the others to 0.")
    check_counts(config, (*COUNTS, "report.temperature"))
    for name in ("batch_size", "ramp_from", "ramp_stages"):
        if config.train[name] < 1:
            raise UserError(f"train.{name}={config.train[name]}: expected at least 1.")
    parse_steps(config.report.profile_steps, planned_steps(config))
    for name in ("warmup", "decay"):
        if (tokens := config.schedule[f"{name}_tokens"]) is not None:
            config.schedule[f"{name}_steps"] = batch_sizes(config).reaching(tokens / config.data.sequence_length)
    resolve_sources(config.data)
    config.data.cache_dir = str(cache_folder(config.data.cache_dir))
    return config.lock(), pretrained


def resolve_model(config: ConfigDict, workdir: Path | None) -> tuple[ModelConfig, Pretrained | None]:
    """The model that is trained: the preset's, or that of the weights in `init_from`; its vocabulary the tokenizer's.

    Fills in `config.tokenizer` where the tokenizer is not trained but found.

    Raises:
      UserError: for fields that contradict each other, the weights or the tokenizer.
    """
    fields = {name: value for name, value in config.model.items() if name != "preset"}
    begun = workdir is not None and has_begun(workdir)
    if config.init_from:
        if config.model.preset is not None and not begun:
            announce(
                f"init_from: the model and its tokenizer are those of {config.init_from}; of the preset "
                f"{config.model.preset} only the recipe counts (schedule.peak={config.schedule.peak})"
            )
        config.model.preset = None
        # A run that was begun is its own source: what it began with may be gone.
        pretrained = open_pretrained(workdir if begun else config.init_from)
        if begun:
            tokenizer = load_tokenizer(workdir / "tokenizer")
            config.tokenizer.path = config.tokenizer.path or earlier_config(workdir)["tokenizer"]["path"]
        else:
            tokenizer = pretrained.tokenizer(config.tokenizer.path)
            config.tokenizer.path = config.tokenizer.path or str(pretrained.tokenizer_path)
        config.tokenizer.update(kind=tokenizer.kind, vocab_size=tokenizer.vocab_size)
        return adapt(pretrained.config, **fields), pretrained
    if config.model.preset is None:
        raise UserError("init_from is missing: --config=configs/pretrain.py:weights,init_from=PATH.")
    if config.tokenizer.path:
        tokenizer = found_tokenizer(config, workdir if begun else None)
        config.tokenizer.update(kind=tokenizer.kind, vocab_size=tokenizer.vocab_size)
    vocab_size = config.model.vocab_size or config.tokenizer.vocab_size
    model = model_config(config.model.preset, **fields | {"vocab_size": vocab_size})
    if config.tokenizer.path:
        check_vocabulary(tokenizer, Path(config.tokenizer.path), model)
    elif model.vocab_size != config.tokenizer.vocab_size:
        raise UserError(
            f"model.vocab_size={config.model.vocab_size}, tokenizer.vocab_size={config.tokenizer.vocab_size}: leave "
            "the first one empty, it follows the tokenizer."
        )
    return model, None


def earlier_config(workdir: Path) -> dict[str, Any]:
    """config.json as an earlier start wrote it. UserError: it is damaged."""
    try:
        return json.loads((workdir / "config.json").read_text())
    except ValueError as error:
        raise UserError(
            f"{workdir / 'config.json'} is not whole JSON ({error}): restore it, or use another --workdir."
        ) from None


def check_sequence(config: ConfigDict, mesh: jax.sharding.Mesh) -> None:
    """Raises UserError unless the sequence divides over its axis of the mesh."""
    if config.data.sequence_length % mesh.shape["sequence"]:
        raise UserError(
            f"data.sequence_length={config.data.sequence_length} does not divide by mesh.sequence="
            f"{mesh.shape['sequence']}."
        )


def batch_sizes(config: ConfigDict) -> BatchSizes:
    """The sequences of each step: `train.batch_size`, and before it those of the ramp, where there is one."""
    train, length = config.train, config.data.sequence_length
    if not train.ramp_tokens:
        return BatchSizes.constant(train.batch_size)
    first = max(train.ramp_from // length, 1)
    return BatchSizes.ramp(first, train.batch_size, train.ramp_tokens / length, train.ramp_stages)


def planned_steps(config: ConfigDict) -> int | None:
    """Updates of the whole run; None where they depend on the text."""
    if config.train.tokens:
        return batch_sizes(config).reaching(config.train.tokens / config.data.sequence_length)
    return config.train.steps or None


def total_steps(config: ConfigDict, num_windows: int) -> int:
    """Updates of the whole run. An epoch of a mixture is as many windows as all its sources have together."""
    return planned_steps(config) or max(batch_sizes(config).steps(config.train.epochs * num_windows), 1)


def train(
    config: ConfigDict,
    model: ModelConfig,
    mesh: jax.sharding.Mesh,
    pretrained: Pretrained | None,
    text: Text,
    steps: int,
    workdir: Path,
    startup: Startup,
) -> MetricsLog:
    """From the opened text to the last checkpoint; returns the record of the run, closed."""
    c, sizes, length = config, batch_sizes(config), config.data.sequence_length
    settings = step_settings(config, model, steps)
    optimizer = settings["optimizer"]
    build = state_builder(functools.partial(decoder.init, model), optimizer, c.seed)
    abstract = abstract_state(build, mesh)
    checkpoints = Checkpoints(workdir / "checkpoints", keep=c.checkpoint.keep)
    state = checkpoints.restore(abstract)
    if state is None and pretrained is not None:
        params = pretrained.parameters(mesh, model)
        state = create_state(lambda params: initial_state(params, optimizer), abstract, mesh, params)
    elif state is None:
        state = create_state(build, abstract, mesh)
    else:
        announce(f"going on from the checkpoint of step {int(state.step)}")
    start = int(state.step)
    describe(config, text, steps)
    step = compile_train_step(abstract, mesh, **settings)
    rows = sharding((sizes.full, length), ("batch", "time"), mesh)
    batches = training_batches(
        text.windows, text.order, sizes=sizes, first_step=start, sharding=rows, prefetch=c.data.prefetch
    )
    tokens = lambda step: sizes.examples(step) * length  # noqa: E731
    log = MetricsLog(workdir, resume_step=start, main_process=is_main_process(), tensorboard=c.report.tensorboard)
    progress = StepProgress(total=steps, start=start, main_process=is_main_process(), work=tokens)
    profile = Profile(parse_steps(c.report.profile_steps, steps), workdir / "profile", progress.say)
    startup.end("state")
    with contextlib.ExitStack() as stack:
        for closed_at_the_end in (checkpoints, log, progress, profile):
            stack.callback(closed_at_the_end.close)
        loop = Loop(
            train_step=startup.watch(functools.partial(step, seed=c.seed), progress.say),
            batches=batches,
            steps=steps,
            intervals=Intervals(
                log=c.train.log_every,
                evaluate=c.train.eval_every,
                sample=c.report.sample_every,
                checkpoint=c.checkpoint.every,
            ),
            tokens=tokens,
            flops_per_token=training_flops_per_token(model, length),
            peak_flops=peak_flops(),
            evaluate=make_evaluate(config, model, mesh, text),
            sample=make_sample(config, model, mesh, text),
            describe_batch=lambda step: text.windows.describe(batch_indices(text.order, sizes, step)),
            columns=lambda step: {
                f"{name}/epochs": round(epochs, 6) for name, epochs in text.epochs(sizes.examples(step)).items()
            },
            checkpoints=checkpoints,
            log=log,
            progress=progress,
            profile=profile,
        )
        loop.fit(state)
    return log


def describe(config: ConfigDict, text: Text, steps: int) -> None:
    """Says how long the run is: in windows, steps and epochs, of a mixture of each source."""
    sizes = batch_sizes(config)
    examples, length, last = sizes.examples(steps), text.windows.length, sizes.size(max(steps - 1, 0))
    announce(
        f"{len(text.windows):,} windows of {length} tokens; {steps:,} steps of {last} windows "
        f"({examples / len(text.windows):.1f} epochs); the first step takes a while: it is compiled"
    )
    if len(sizes.sizes) > 1:
        ended = "" if last == sizes.full else f", beyond this run's end: it never reaches {sizes.full}"
        announce(
            f"the batch grows from {sizes.sizes[0]} windows on, in {len(sizes.sizes) - 1} stages, until step "
            f"{sizes.first_steps[-1]:,}{ended}; each stage compiles the step anew"
        )
    for name, epochs in text.epochs(examples).items():
        announce(f"{name}: {epochs:.2f} epochs of {text.facts['sources'][name]['train']['tokens']:,} tokens")
    phases = parse_mixture(config.data.mixture).phases if config.data.mixture else ()
    for phase in (phase for phase in phases if phase.step >= steps):
        announce(f"Warning: data.mixture: the weights from step {phase.step:,} on are never reached")


def step_settings(config: ConfigDict, model: ModelConfig, steps: int) -> dict[str, Any]:
    """What makes `train_step` this run's step; planning compiles the same."""
    schedule, optimizer = schedule_and_optimizer(config, steps, batch_sizes(config))
    return dict(
        loss_fn=lambda params, batch, key: language_model_loss(params, model, batch, key),
        optimizer=optimizer,
        schedule=schedule,
        accumulation=config.train.accumulation,
    )


def make_evaluate(
    config: ConfigDict, model: ModelConfig, mesh: jax.sharding.Mesh, text: Text
) -> Callable[[TrainState], dict[str, float]]:
    """A function state -> `loss` and `bits_per_byte` of the whole held-out text.

    Of a mixture both are the mean over its sources by their shares, and each source's own stand beside them.
    """
    # as many rows at once as in training, where the batch may be worked off in parts
    batch, length = config.train.batch_size // config.train.accumulation, config.data.sequence_length
    windows = [EvaluationWindows(own.tokens, length, pad=text.tokenizer.specials.pad) for own in text.held_out]
    rows = sharding((batch, length), ("batch", "time"), mesh)
    score = compile_scorer(model, text.tokenizer.token_bytes, mesh)

    def evaluate(state: TrainState) -> dict[str, float]:
        scores = [score(state.params, evaluation_batches(own, batch_size=batch, sharding=rows)) for own in windows]
        if len(scores) == 1:
            return scores[0]
        means = {
            name: math.fsum(own.share * metrics[name] for own, metrics in zip(text.held_out, scores, strict=True))
            for name in scores[0]
        }
        each = zip(text.held_out, scores, strict=True)
        return means | {f"{own.name}/{name}": value for own, metrics in each for name, value in metrics.items()}

    return evaluate


def make_sample(
    config: ConfigDict, model: ModelConfig, mesh: jax.sharding.Mesh, text: Text
) -> Callable[[TrainState], list[dict[str, str]]]:
    """A function state -> rows of `prompt` and `continuation`; prompts are the config's, or held-out passages."""
    r, tokenizer = config.report, text.tokenizer
    if not (r.sample_every and r.sample_tokens > 0 and model.context_length > 1):
        return lambda state: []
    if r.prompts:
        prompts = [prompt_ids(tokenizer, prompt) for prompt in r.prompts]
    else:
        prompts = [passage for own in text.held_out for passage in passages(own.tokens, -(-4 // len(text.held_out)))]
    most = min(r.sample_tokens, max(model.context_length - PROMPT_TOKENS, 1))
    sampling = Sampling(most, r.temperature, r.top_k if r.temperature else 0, seed=config.seed)
    prompts = [prompt[-(model.context_length - most) :] for prompt in prompts]

    def sample(state: TrainState) -> list[dict[str, str]]:
        engine = Engine(state.params, model, mesh, vocab_size=tokenizer.vocab_size, slots=len(prompts))
        texts = [""] * len(prompts)
        for piece in continue_prompts(engine, tokenizer, prompts, sampling):
            texts[piece.prompt] = piece.so_far.text
        return [
            {"prompt": tokenizer.decode(prompt), "continuation": text}
            for prompt, text in zip(prompts, texts, strict=True)
        ]

    return sample


def passages(tokens: TokenStore, number: int) -> list[list[int]]:
    """Short passages of a held-out text, to be continued."""
    places = np.linspace(0, max(len(tokens) - PROMPT_TOKENS, 0), number + 1, dtype=int)[:-1]
    return [tokens.read(place, min(place + PROMPT_TOKENS, len(tokens))).tolist() for place in places]


def finish(
    config: ConfigDict, model: ModelConfig, text: Text, workdir: Path, log: MetricsLog, steps: int, began: float
) -> dict[str, float]:
    """Writes the report and prints the result."""
    result = log.rows("valid")[-1]
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    summary = [
        ("validation loss", f"{result['loss']:.4f} nats per token"),
        ("bits per byte", f"{result['bits_per_byte']:.4f}"),
        ("steps", f"{steps:,}"),
        ("tokens", f"{result['tokens']:,}"),
        ("parameters", f"{decoder.parameter_count(model):,}"),
        ("time of this start", clock(time.monotonic() - began)),
        ("peak host memory", f"{peak_bytes / 2**20:,.0f} MiB"),
    ]
    path = write_report(
        workdir,
        title=f"Pretraining {title(config)} on {config.data.source or 'a mixture'}",
        summary=summary,
        rows=log.rows(),
        samples=log.samples(),
        config=configuration.as_json(config),
        environment=json.loads((workdir / "environment.json").read_text()),
        sources=source_rows(config, text, result, steps),
    )
    for name, value in summary:
        print(f"{name}: {value}")
    print(f"report: {path}")
    return {"loss": result["loss"], "bits_per_byte": result["bits_per_byte"]}


def source_rows(config: ConfigDict, text: Text, result: dict[str, float], steps: int) -> list[dict[str, str]]:
    """The report's table of a mixture's sources; of a single source none."""
    if config.data.mixture is None:
        return []
    rows, shares = [], parse_mixture(config.data.mixture).shares
    for name, epochs in text.epochs(batch_sizes(config).examples(steps)).items():
        facts = text.facts["sources"][name]["train"]
        row = {"source": name, "documents": f"{facts['documents']:,}", "tokens": f"{facts['tokens']:,}"}
        row |= {"weight": f"{shares[name]:.2%}", "epochs": f"{epochs:.2f}"}
        for metric, title in (("loss", "nats per token"), ("bits_per_byte", "bits per byte")):
            value = result.get(f"{name}/{metric}")
            row[title] = "" if value is None else f"{value:.4f}"
        rows.append(row)
    return rows
