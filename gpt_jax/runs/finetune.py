"""Fine-tuning: labelled examples in; a model that labels, its scores and its mistakes out (GPT-1, §3.2, §3.3)."""

import contextlib
import dataclasses
import functools
import json
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict, FrozenConfigDict

from gpt_jax import configuration
from gpt_jax.data.example_batches import TrainingPlan, training_batches
from gpt_jax.errors import UserError
from gpt_jax.models import decoder
from gpt_jax.models.adapters import adapter_specs, with_adapters
from gpt_jax.models.config import ModelConfig
from gpt_jax.models.flops import training_flops_per_token
from gpt_jax.models.heads import head_specs
from gpt_jax.models.parameters import init_parameters
from gpt_jax.models.presets import adapt, model_config
from gpt_jax.parallel.devices import peak_flops
from gpt_jax.parallel.mesh import make_mesh
from gpt_jax.parallel.rules import sharding
from gpt_jax.parallel.runtime import announce, do_on_main_process, is_main_process
from gpt_jax.progress import StepProgress, clock
from gpt_jax.runs.pretrained import Pretrained, open_pretrained, with_symbols
from gpt_jax.runs.problem import Answer, Predict, Problem, best_step, make_predict, measure, objective, open_problem
from gpt_jax.runs.recipe import (
    check_adapters,
    check_batch,
    check_config,
    check_counts,
    check_model_fits,
    has_begun,
    schedule_and_optimizer,
)
from gpt_jax.runs.workdir import environment, open_workdir
from gpt_jax.tasks.report import write_task_report
from gpt_jax.text.symbols import missing_symbols, with_fine_tuning_symbols
from gpt_jax.text.tokenizer import Tokenizer, load_tokenizer
from gpt_jax.training.checkpoints import Checkpoints, restore_parameters
from gpt_jax.training.frozen import frozen_mask, without_frozen
from gpt_jax.training.loop import Intervals, Loop
from gpt_jax.training.losses import fine_tuning_loss
from gpt_jax.training.metrics_log import MetricsLog
from gpt_jax.training.profiling import Profile, parse_steps
from gpt_jax.training.startup import Startup
from gpt_jax.training.state import TrainState, abstract_state, create_state, initial_state, state_builder
from gpt_jax.training.step import StepFunction, compile_train_step


def run(config: ConfigDict, workdir: Path) -> dict[str, dict[str, float]]:
    """Fine-tunes on `config.data.task`, with one seed or several, or goes on where an earlier start was stopped.

    Returns:
      {split: {metric: value}} of the best epoch; of several seeds, their medians.

    Raises:
      UserError: for everything that the caller can mend; Interrupted: stopped by a signal, the state saved.
    """
    if config.seeds < 1:
        raise UserError(f"seeds={config.seeds}: expected at least 1.")
    if config.seeds == 1:
        return run_seed(config, workdir)
    if (workdir / "config.json").exists():
        raise UserError(f"--workdir={workdir} holds a run of a single seed; several seeds need a folder of their own.")
    scores = []
    for seed in range(config.seed, config.seed + config.seeds):
        one = config.copy_and_resolve_references().unlock()
        one.update(seed=seed, seeds=1)
        scores.append(run_seed(one.lock(), workdir / f"seed-{seed}"))
    summary = {
        split: {metric: summary_of(metric, [score[split][metric] for score in scores]) for metric in scores[0][split]}
        for split in scores[0]
    }
    do_on_main_process(lambda: configuration.write_json(workdir / "scores.json", summary))
    for split, metrics in summary.items():
        for metric, own in metrics.items():
            announce(f"{split} {metric}: median {own['median']:.4f} ({own['worst']:.4f} to {own['best']:.4f})")
    return {
        split: {metric: values["median"] for metric, values in metrics.items()} for split, metrics in summary.items()
    }


def summary_of(metric: str, values: list[float]) -> dict[str, float]:
    """Median, best, worst and standard deviation of one metric over seeds; of the loss the lowest is best."""
    worst, best = sorted((min(values), max(values)), reverse=metric == "loss")
    return {
        "median": statistics.median(values), "best": best, "worst": worst,
        "standard_deviation": statistics.pstdev(values), "seeds": len(values),
    }  # fmt: skip


def run_seed(config: ConfigDict, workdir: Path) -> dict[str, dict[str, float]]:
    """`run` with one seed."""
    began, startup = time.monotonic(), Startup()
    config, pretrained, tokenizer = resolve(config, workdir)
    model = model_config(None, **config.model)
    mesh = make_mesh(config.mesh)
    check_model_fits(model, mesh)
    check_batch(config.train.batch_size, mesh, accumulation=config.train.accumulation)
    with open_workdir(workdir):
        do_on_main_process(lambda: check_config(config, workdir))
        startup.end("start")
        problem = open_problem(config, tokenizer)
        do_on_main_process(lambda: record(config, problem, workdir))
        announce(
            f"{config.data.task}: {', '.join(f'{len(s.examples):,} {name}' for name, s in problem.splits.items())} "
            f"examples; {decoder.parameter_count(model):,} parameters; writing to {workdir}"
        )
        # as many rows at once as in training, where the batch may be worked off in parts
        predict = make_predict(problem.answer, model, mesh, config.train.batch_size // config.train.accumulation)
        best = train(config, model, mesh, pretrained, problem, predict, workdir, startup)
        return finish(
            config, model, problem, with_adapters(best, config.transfer.adapters.alpha), predict, workdir, began
        )


def resolve(config: ConfigDict, workdir: Path) -> tuple[ConfigDict, Pretrained, Tokenizer]:
    """A copy in which nothing is left to a default, the weights that it begins with, and a tokenizer with all symbols.

    Raises:
      UserError: when fields contradict each other or the weights.
    """
    config = config.copy_and_resolve_references().unlock()
    if config.init_from is None:
        raise UserError(
            "init_from is missing: a workdir, a Hugging Face folder, a GGUF file or OpenAI's release to begin with. "
            "The README's first command trains one: init_from=runs/pretrain-books."
        )
    begun = has_begun(workdir)  # then it is its own source: what it began with may be gone
    pretrained = open_pretrained(workdir if begun else config.init_from)
    fields = {name: value for name, value in config.model.items() if name != "vocab_size"}
    model = adapt(pretrained.config, **fields)
    tokenizer = load_tokenizer(workdir / "tokenizer") if begun else pretrained.tokenizer(config.tokenizer.path)
    if missing := missing_symbols(tokenizer):
        announce(f"the vocabulary has no symbols for {', '.join(missing)}: appended, their embeddings drawn N(0, 0.02)")
        tokenizer = with_fine_tuning_symbols(tokenizer)
    model = dataclasses.replace(model, vocab_size=max(model.vocab_size, tokenizer.vocab_size))
    for name in config.model:
        config.model[name] = getattr(model, name)
    layers = config.transfer.layers
    if layers is not None and not -1 <= layers <= model.num_layers:
        raise UserError(
            f"transfer.layers={layers}: expected -1 (nothing), 0 (embeddings) to {model.num_layers} (all layers)."
        )
    if not 0 <= config.transfer.freeze <= model.num_layers:
        raise UserError(f"transfer.freeze={config.transfer.freeze}: expected 0 to {model.num_layers} layers.")
    check_adapters(config, model)
    if config.transfer.adapters.rank and config.transfer.freeze:
        raise UserError("transfer: with adapters the whole decoder is frozen already; leave freeze at 0.")
    if config.objective.score not in ("score", "score_distribution"):
        raise UserError(f"objective.score={config.objective.score!r}: expected score or score_distribution.")
    if config.objective.language_model_weight < 0 or not 0 <= config.objective.classifier_dropout < 1:
        raise UserError("objective: expected language_model_weight >= 0 and classifier_dropout from 0 to below 1.")
    check_counts(config, ("train.log_every", "checkpoint.every", "data.max_train", "data.max_valid"))
    if config.train.epochs <= 0:
        raise UserError(f"train.epochs={config.train.epochs}: expected a positive number.")
    parse_steps(config.report.profile_steps)
    return config.lock(), pretrained, tokenizer


def record(config: ConfigDict, problem: Problem, workdir: Path) -> None:
    """Writes what the run is made of, now that nothing is left to refuse; UserError where its data are others."""
    configuration.check_same(workdir, "data.json", problem.facts, what="data (they have changed since the run began)")
    problem.tokenizer.save(workdir / "tokenizer")
    configuration.write_json(workdir / "data.json", problem.facts)
    configuration.write_json(workdir / "environment.json", environment())
    configuration.write_json(workdir / "config.json", configuration.as_json(config))


@dataclasses.dataclass(frozen=True)
class Program:
    """What is compiled: the same for runs that differ in seed, examples and first weights only."""

    abstract: TrainState
    optimizer: optax.GradientTransformation
    step: StepFunction


@functools.lru_cache(maxsize=4)
def make_program(
    recipe: FrozenConfigDict, model: ModelConfig, mesh: jax.sharding.Mesh, answer: Answer, steps: int
) -> Program:
    """The training step of a run of `steps` steps, and the state that it works on.

    Args:
      recipe: those parts of the config that the step depends on.
    """
    adapters, learning = recipe.transfer.adapters, recipe.objective
    settings = ConfigDict(recipe.to_dict())  # a copy in depth: what is cached by must not change
    settings.schedule.warmup_steps = recipe.schedule.warmup_fraction * steps
    schedule, optimizer = schedule_and_optimizer(settings, steps)
    rank, targets = adapters.rank, adapters.targets
    draw = functools.partial(fresh_parameters, model, answer.outputs, rank, targets)
    with jax.set_mesh(mesh):
        params = jax.eval_shape(draw, jax.random.key(0))
    frozen = frozen_mask(params, recipe.transfer.freeze)
    optimizer = without_frozen(optimizer, frozen)
    abstract = abstract_state(state_builder(draw, optimizer, seed=0), mesh)

    def loss(params: dict, batch: dict, key: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        return fine_tuning_loss(
            with_adapters(params, adapters.alpha), model, batch, key,
            combination=answer.combination, target=answer.target,
            language_model_weight=learning.language_model_weight, classifier_dropout=learning.classifier_dropout,
        )  # fmt: skip

    step = compile_train_step(
        abstract, mesh, loss_fn=loss, optimizer=optimizer, schedule=schedule,
        accumulation=recipe.train.accumulation, frozen=frozen,
    )  # fmt: skip
    return Program(abstract, optimizer, step)


def recipe_of(config: ConfigDict) -> FrozenConfigDict:
    """What the training step depends on, of all of `config`."""
    recipe = {part: config[part].to_dict() for part in ("objective", "transfer", "optimizer", "schedule")}
    del recipe["transfer"]["layers"]  # says what the first state is, no more
    return FrozenConfigDict(recipe | {"train": {"accumulation": config.train.accumulation}})


def fresh_parameters(model: ModelConfig, outputs: int, rank: int, targets: tuple[str, ...], key: jax.Array) -> dict:
    """A decoder as pretraining would begin with, a head, and with a `rank` adapters for the kernels `targets`."""
    model_key, head_key = jax.random.split(key)
    dtype = jnp.dtype(model.param_dtype)
    params = {
        "model": decoder.init(model, model_key),
        "head": init_parameters(head_specs(model, outputs), head_key, dtype),
    }
    if rank:
        params["adapters"] = init_parameters(adapter_specs(model, rank, targets), head_key, dtype)
    return params


def transferred(given: dict, fresh: dict, layers: int | None) -> dict:
    """The decoder that fine-tuning begins with: `given`, as far as it is transferred, over `fresh`.

    Args:
      layers: None: everything; 0: the embeddings; k: the first k layers too (GPT-1, figure 2, left).
    """
    if layers is None:
        return given
    kept = {room: given[room] for room in ("embedding", "unembedding") if room in given}
    begun = jax.tree.map(lambda old, new: new.at[:layers].set(old[:layers]), given["layers"], fresh["layers"])
    return fresh | kept | {"layers": begun}


def first_state(
    config: ConfigDict,
    model: ModelConfig,
    mesh: jax.sharding.Mesh,
    pretrained: Pretrained,
    problem: Problem,
    program: Program,
) -> TrainState:
    """The state of step 0: the pretrained decoder, as far as it is transferred, under a fresh head."""
    layers, seed, adapters = config.transfer.layers, config.seed, config.transfer.adapters

    def begin(given: dict | None = None) -> TrainState:
        params = fresh_parameters(
            model, problem.answer.outputs, adapters.rank, tuple(adapters.targets), jax.random.key(seed)
        )
        if given is not None:
            params["model"] = transferred(given, params["model"], layers)
        return initial_state(params, program.optimizer)

    if layers == -1:
        return create_state(begin, program.abstract, mesh)
    specials = problem.tokenizer.specials
    symbols = (specials.start, specials.delimiter, specials.extract)
    narrow = dataclasses.replace(model, vocab_size=pretrained.config.vocab_size)
    given = pretrained.parameters(mesh, narrow)
    given = with_symbols(given, narrow, problem.tokenizer.vocab_size, symbols, seed, mesh)
    return create_state(begin, program.abstract, mesh, given)


def train(
    config: ConfigDict,
    model: ModelConfig,
    mesh: jax.sharding.Mesh,
    pretrained: Pretrained,
    problem: Problem,
    predict: Predict,
    workdir: Path,
    startup: Startup,
) -> dict:
    """From the examples to the parameters of the epoch with the best validation score."""
    c = config
    plan = TrainingPlan(problem.splits["train"].encoded, c.train.batch_size, c.seed)
    steps = max(round(c.train.epochs * plan.steps_per_epoch), 1)
    profiled = parse_steps(c.report.profile_steps, steps)
    padding = plan.padding()
    announce(
        f"{plan.steps_per_epoch:,} steps of {c.train.batch_size} examples an epoch, {steps:,} in all; "
        f"{padding.share:.0%} of positions are padding (padded to the context: {1 / padding.of_context:.1f} times more)"
    )
    startup.end("data")
    program = make_program(recipe_of(config), model, mesh, problem.answer, steps)
    checkpoints = Checkpoints(workdir / "checkpoints", keep=c.checkpoint.keep)
    state = checkpoints.restore(program.abstract)
    if state is None:
        state = first_state(config, model, mesh, pretrained, problem, program)
    else:
        announce(f"going on from the checkpoint of step {int(state.step)}")
    rows, valid = sharding((c.train.batch_size,), ("batch",), mesh), problem.splits["valid"]
    tokens = sum(len(sequence) for own in plan.examples.sequences for sequence in own)
    tokens_per_step = max(round(tokens / len(plan.examples) * c.train.batch_size), 1)
    log = MetricsLog(
        workdir, resume_step=int(state.step), main_process=is_main_process(), tensorboard=c.report.tensorboard
    )
    progress = StepProgress(total=steps, start=int(state.step), main_process=is_main_process())
    profile = Profile(profiled, workdir / "profile", progress.say)
    startup.end("state")
    with contextlib.ExitStack() as stack:
        for closed_at_the_end in (checkpoints, log, progress, profile):
            stack.callback(closed_at_the_end.close)
        loop = Loop(
            train_step=startup.watch(functools.partial(program.step, seed=c.seed), progress.say),
            batches=training_batches(
                plan, first_step=int(state.step), steps=steps, sharding=rows, prefetch=c.data.prefetch
            ),
            steps=steps,
            intervals=Intervals(
                log=c.train.log_every,
                evaluate=plan.steps_per_epoch,
                sample=0,
                checkpoint=c.checkpoint.every,
                save_evaluated=True,
            ),
            tokens=lambda step: step * tokens_per_step,
            flops_per_token=training_flops_per_token(model, max(round(tokens_per_step / c.train.batch_size), 1)),
            peak_flops=peak_flops(),
            evaluate=lambda state: measure(
                problem, "valid", predict(with_adapters(state.params, c.transfer.adapters.alpha), valid.encoded)
            ),
            sample=lambda state: [],
            describe_batch=lambda step: (
                f"examples {[problem.splits['train'].examples[i].place for i in plan.indices(step)]}"
            ),
            checkpoints=checkpoints,
            log=log,
            progress=progress,
            profile=profile,
            objective=lambda row: objective(row, problem.task.metrics[0]),
        )
        loop.fit(state)
    return restore_parameters(workdir / "checkpoints", program.abstract.params, step=best_step(workdir))


def finish(
    config: ConfigDict,
    model: ModelConfig,
    problem: Problem,
    params: dict,
    predict: Predict,
    workdir: Path,
    began: float,
) -> dict[str, dict[str, float]]:
    """Scores every labelled split with the best epoch's parameters; writes scores.json and the report."""
    held_out = {split: own for split, own in problem.splits.items() if split != "train"}
    outputs = {split: predict(params, own.encoded) for split, own in held_out.items()}
    scores = {split: measure(problem, split, outputs[split]) for split in held_out}
    if is_main_process():
        path = write_task_report(
            workdir,
            task=problem.task,
            scores=scores,
            examples={split: own.examples for split, own in held_out.items()},
            outputs=outputs,
            answers={split: problem.answer.of(outputs[split]) for split in held_out},
            summary=[
                ("parameters", f"{decoder.parameter_count(model):,}"),
                ("training examples", f"{len(problem.splits['train'].examples):,}"),
                ("initialised from", str(config.init_from) if config.transfer.layers != -1 else "nothing"),
                ("time of this start", clock(time.monotonic() - began)),
            ],
            rows=[json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()],
            config=configuration.as_json(config),
        )
        configuration.write_json(workdir / "scores.json", scores)  # the last: it says that the run is done
        for split, metrics in scores.items():
            print(f"{split}: " + ", ".join(f"{name} {value:.4f}" for name, value in metrics.items()))
        print(f"time of this start: {clock(time.monotonic() - began)}")
        print(f"report: {path}")
    return scores
