"""Fine-tuning: labelled examples in; a model that labels, its scores and its mistakes out (GPT-1, §3.2, §3.3)."""

import contextlib
import dataclasses
import functools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from gpt_jax import configuration
from gpt_jax.data.example_batches import ExampleSet, TrainingPlan, evaluation_batches, training_batches
from gpt_jax.data.tables import open_table, split_held_out
from gpt_jax.errors import UserError
from gpt_jax.inference.prediction import compile_predictor
from gpt_jax.models import decoder
from gpt_jax.models.config import ModelConfig
from gpt_jax.models.flops import training_flops_per_token
from gpt_jax.models.heads import Combination, head_specs
from gpt_jax.models.presets import adapt, model_config
from gpt_jax.parallel.devices import peak_flops
from gpt_jax.parallel.mesh import make_mesh
from gpt_jax.parallel.rules import sharding
from gpt_jax.parallel.runtime import announce, do_on_main_process, is_main_process
from gpt_jax.progress import StepProgress, clock
from gpt_jax.runs.pretrained import Pretrained, open_pretrained, with_symbols
from gpt_jax.runs.recipe import check_batch, check_config, has_begun, schedule_and_optimizer
from gpt_jax.runs.workdir import environment, open_workdir
from gpt_jax.tasks.examples import Example
from gpt_jax.tasks.metrics import compute_metrics
from gpt_jax.tasks.reading import check_different_targets, read_examples, with_labels_of
from gpt_jax.tasks.registry import find_task
from gpt_jax.tasks.report import write_task_report
from gpt_jax.tasks.scores import expected_score, soft_score_targets
from gpt_jax.tasks.task import Task
from gpt_jax.tasks.transforms import encode
from gpt_jax.text.symbols import missing_symbols, with_fine_tuning_symbols
from gpt_jax.text.tokenizer import Tokenizer, load_tokenizer
from gpt_jax.training.checkpoints import Checkpoints, restore_parameters
from gpt_jax.training.loop import Intervals, Loop
from gpt_jax.training.losses import Target, fine_tuning_loss
from gpt_jax.training.metrics_log import MetricsLog
from gpt_jax.training.state import TrainState, abstract_state, create_state, initial_state, state_builder
from gpt_jax.training.step import compile_train_step

COMBINATIONS: dict[str, Combination] = {
    "classification": "single", "entailment": "single", "similarity": "sum", "multiple_choice": "choice",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Split:
    """The examples of one split, and as the model reads them."""

    examples: list[Example]
    encoded: ExampleSet


@dataclasses.dataclass(frozen=True)
class Problem:
    """A task, its examples, and how the model's outputs answer it."""

    task: Task
    tokenizer: Tokenizer
    splits: dict[str, Split]
    facts: dict[str, Any]
    target: Target

    @property
    def combination(self) -> Combination:
        """How the sequences of an example become one prediction."""
        return COMBINATIONS[self.task.kind]

    @property
    def outputs(self) -> int:
        """O: width of the head."""
        if self.target == "score_distribution":
            low, high = self.task.score_range
            return int(high - low) + 1
        return len(self.task.labels) if self.target == "classes" and self.combination != "choice" else 1

    def answers(self, outputs: np.ndarray) -> np.ndarray:
        """Label numbers [n], or scores [n], of a predictor's outputs [n, O]."""
        if self.target == "classes":
            return outputs.argmax(axis=1)
        low, high = self.task.score_range
        if self.target == "score":
            return low + (high - low) * outputs[:, 0]
        return expected_score(outputs, int(low))

    def loss(self, outputs: np.ndarray, targets: np.ndarray) -> float:
        """L2, the mean over examples: nats of the right answers, or squared error."""
        if self.target == "score":
            return float(np.mean((outputs[:, 0] - targets) ** 2))
        nats = -np.log(np.maximum(outputs, np.finfo(np.float32).tiny))
        if self.target == "classes":
            return float(np.mean(nats[np.arange(len(nats)), targets]))
        return float(np.mean(np.sum(targets * nats, axis=1)))


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
    scores = []
    for seed in range(config.seed, config.seed + config.seeds):
        one = config.copy_and_resolve_references().unlock()
        one.update(seed=seed, seeds=1)
        scores.append(run_seed(one.lock(), workdir / f"seed-{seed}"))
    summary = {
        split: {metric: summary_of([score[split][metric] for score in scores]) for metric in scores[0][split]}
        for split in scores[0]
    }
    do_on_main_process(lambda: configuration.write_json(workdir / "scores.json", summary))
    for split, metrics in summary.items():
        for metric, values in metrics.items():
            print(f"{split} {metric}: median {values['median']:.4f} ({values['worst']:.4f} to {values['best']:.4f})")
    return {
        split: {metric: values["median"] for metric, values in metrics.items()} for split, metrics in summary.items()
    }


def summary_of(values: list[float]) -> dict[str, float]:
    """Median, best, worst and standard deviation of one metric over seeds."""
    return {
        "median": statistics.median(values), "best": max(values), "worst": min(values),
        "standard_deviation": statistics.pstdev(values), "seeds": len(values),
    }  # fmt: skip


def run_seed(config: ConfigDict, workdir: Path) -> dict[str, dict[str, float]]:
    """`run` with one seed."""
    began = time.monotonic()
    config, pretrained, tokenizer = resolve(config, workdir)
    model = model_config(None, **config.model)
    mesh = make_mesh(config.mesh)
    check_batch(config, mesh)
    with open_workdir(workdir):
        do_on_main_process(lambda: check_config(config, workdir))
        problem = open_problem(config, tokenizer)
        do_on_main_process(lambda: record(config, problem, workdir))
        announce(
            f"{config.data.task}: {', '.join(f'{len(s.examples):,} {name}' for name, s in problem.splits.items())} "
            f"examples; {decoder.parameter_count(model):,} parameters; writing to {workdir}"
        )
        best = train(config, model, mesh, pretrained, problem, workdir)
        return finish(config, model, mesh, problem, best, workdir, began)


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
    if config.objective.score not in ("score", "score_distribution"):
        raise UserError(f"objective.score={config.objective.score!r}: expected score or score_distribution.")
    if config.objective.language_model_weight < 0 or not 0 <= config.objective.classifier_dropout < 1:
        raise UserError("objective: expected language_model_weight >= 0 and classifier_dropout from 0 to below 1.")
    if config.train.epochs <= 0:
        raise UserError(f"train.epochs={config.train.epochs}: expected a positive number.")
    return config.lock(), pretrained, tokenizer


def open_problem(config: ConfigDict, tokenizer: Tokenizer) -> Problem:
    """Reads the tables, and turns their rows into token sequences.

    Raises:
      UserError: for what is wrong with the task, the tables or the tokenizer.
    """
    data = config.data
    task = find_task(
        data.task,
        columns={role: name for role, name in data.columns.items() if name is not None},
        labels=data.labels,
        score_range=tuple(data.score_range) or None,
        metrics=data.metrics,
    )
    own = {split: data[split] for split in ("train", "valid", "test") if data[split]}
    addresses = own or task.tables(data.folder)
    if "train" not in addresses:
        raise UserError("data.train is missing: the address of the table of training examples.")
    tables = {
        split: open_table(
            address,
            encoding=data.encoding,
            header=None if own else task.headers.get(split),
            skip_bad_rows=data.skip_bad_rows or task.skip_bad_rows,
        )
        for split, address in addresses.items()
    }
    task = with_labels_of(task, tables["train"])
    examples = {}
    for split, table in tables.items():
        # GLUE keeps the labels of its test sets to itself
        labelled = not (split.startswith("test") and task.submissions and not own)
        if labelled:
            reading = read_examples(
                table, task, skip_bad_rows=data.skip_bad_rows or task.skip_bad_rows, max_answers=data.max_answers
            )
            examples[split] = reading.examples
            dropped = {"unlabelled": reading.unlabelled, "bad": reading.bad + table.skipped}
            for what, count in dropped.items():
                if count:
                    announce(f"{split}: {count} {what} rows are left out")
    if "valid" not in examples:
        examples["train"], examples["valid"] = split_held_out(
            examples["train"], lambda example: example.inputs.shared, data.validation_fraction
        )
    examples["train"] = sample(examples["train"], data.max_train)
    examples["valid"] = sample(examples["valid"], data.max_valid)
    check_different_targets(examples["train"], task)
    target = "classes" if not task.score_range else config.objective.score
    splits, truncated = {}, {}
    for split, own_examples in examples.items():
        encoded = encode(own_examples, tokenizer, config.model.context_length)
        truncated[split] = encoded.truncated_parts
        if encoded.truncated_parts:
            announce(f"{split}: {encoded.truncated_parts:,} of {encoded.parts:,} texts are cut to fit the context")
        targets = targets_of(own_examples, task, target)
        splits[split] = Split(
            own_examples,
            ExampleSet(encoded.sequences, targets, tokenizer.specials.pad, config.model.context_length),
        )
    facts = {
        "task": task.name, "labels": list(task.labels), "tokenizer": tokenizer.fingerprint, "truncated": truncated,
        "tables": {split: table.fingerprint for split, table in tables.items()},
        "examples": {split: len(own_examples) for split, own_examples in examples.items()},
    }  # fmt: skip
    return Problem(task, tokenizer, splits, facts, target)


def sample(examples: list[Example], most: int) -> list[Example]:
    """At most `most` of the examples, the same whatever the seed of the run; 0: all."""
    if not most or len(examples) <= most:
        return examples
    chosen = np.random.RandomState(0).permutation(len(examples))[:most]
    return [examples[index] for index in sorted(chosen)]


def targets_of(examples: list[Example], task: Task, target: Target) -> np.ndarray:
    """What the head learns: label numbers [n], scores from 0 to 1 [n], or distributions over whole scores [n, O]."""
    values = np.array([example.target for example in examples])
    if target == "classes":
        return values.astype(np.int32)
    low, high = task.score_range
    if target == "score":
        return ((values - low) / (high - low)).astype(np.float32)
    return soft_score_targets(values, int(low), int(high))


def record(config: ConfigDict, problem: Problem, workdir: Path) -> None:
    """Writes what the run is made of, now that nothing is left to refuse; UserError where its data are others."""
    configuration.check_same(workdir, "data.json", problem.facts, what="data (they have changed since the run began)")
    problem.tokenizer.save(workdir / "tokenizer")
    configuration.write_json(workdir / "data.json", problem.facts)
    configuration.write_json(workdir / "environment.json", environment())
    configuration.write_json(workdir / "config.json", configuration.as_json(config))


def fresh_parameters(model: ModelConfig, outputs: int, key: jax.Array) -> dict:
    """A decoder as pretraining would begin with, and a head."""
    model_key, head_key = jax.random.split(key)
    head = decoder.init_parameters(head_specs(model, outputs), head_key, jnp.dtype(model.param_dtype))
    return {"model": decoder.init(model, model_key), "head": head}


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
    optimizer: optax.GradientTransformation,
    abstract: TrainState,
) -> TrainState:
    """The state of step 0: the pretrained decoder, as far as it is transferred, under a fresh head."""
    layers, seed = config.transfer.layers, config.seed

    def begin(given: dict | None = None) -> TrainState:
        params = fresh_parameters(model, problem.outputs, jax.random.key(seed))
        if given is not None:
            params["model"] = transferred(given, params["model"], layers)
        return initial_state(params, optimizer)

    if layers == -1:
        return create_state(begin, abstract, mesh)
    specials = problem.tokenizer.specials
    symbols = (specials.start, specials.delimiter, specials.extract)
    narrow = dataclasses.replace(model, vocab_size=pretrained.config.vocab_size)
    given = pretrained.parameters(mesh, narrow)
    given = with_symbols(given, narrow, problem.tokenizer.vocab_size, symbols, seed, mesh)
    return create_state(begin, abstract, mesh, given)


def train(
    config: ConfigDict,
    model: ModelConfig,
    mesh: jax.sharding.Mesh,
    pretrained: Pretrained,
    problem: Problem,
    workdir: Path,
) -> dict:
    """From the examples to the parameters of the epoch with the best validation score."""
    c = config
    plan = TrainingPlan(problem.splits["train"].encoded, c.train.batch_size, c.seed)
    steps = max(round(c.train.epochs * plan.steps_per_epoch), 1)
    padding = plan.padding()
    announce(
        f"{plan.steps_per_epoch:,} steps of {c.train.batch_size} examples an epoch, {steps:,} in all; "
        f"{padding.share:.0%} of positions are padding (padded to the context: {1 / padding.of_context:.1f} times more)"
    )
    settings = config.copy_and_resolve_references().unlock()
    settings.schedule.warmup_steps = c.schedule.warmup_fraction * steps
    schedule, optimizer = schedule_and_optimizer(settings, steps)

    build = state_builder(functools.partial(fresh_parameters, model, problem.outputs), optimizer, c.seed)
    abstract = abstract_state(build, mesh)
    checkpoints = Checkpoints(workdir / "checkpoints", keep=c.checkpoint.keep)
    state = checkpoints.restore(abstract)
    if state is None:
        state = first_state(config, model, mesh, pretrained, problem, optimizer, abstract)
    else:
        announce(f"going on from the checkpoint of step {int(state.step)}")
    loss = fine_tuning_loss_of(config, model, problem)
    frozen = frozen_mask(abstract.params, c.transfer.freeze)
    step = compile_train_step(
        abstract, mesh, loss_fn=loss, optimizer=optimizer, schedule=schedule, seed=c.seed,
        accumulation=c.train.accumulation, frozen=frozen,
    )  # fmt: skip
    rows = sharding((c.train.batch_size,), ("batch",), mesh)
    tokens = sum(len(sequence) for own in plan.examples.sequences for sequence in own)
    tokens_per_step = max(round(tokens / len(plan.examples) * c.train.batch_size), 1)
    log = MetricsLog(
        workdir, resume_step=int(state.step), main_process=is_main_process(), tensorboard=c.report.tensorboard
    )
    progress = StepProgress(total=steps, start=int(state.step), main_process=is_main_process())
    with contextlib.ExitStack() as stack:
        for closed_at_the_end in (checkpoints, log, progress):
            stack.callback(closed_at_the_end.close)
        loop = Loop(
            train_step=step,
            batches=training_batches(
                plan, first_step=int(state.step), steps=steps, sharding=rows, prefetch=c.data.prefetch
            ),
            steps=steps,
            intervals=Intervals(
                log=c.train.log_every,
                evaluate=plan.steps_per_epoch,
                sample=0,
                checkpoint=c.checkpoint.every or plan.steps_per_epoch,
            ),
            tokens_per_step=tokens_per_step,
            flops_per_token=training_flops_per_token(model, max(round(tokens_per_step / c.train.batch_size), 1)),
            peak_flops=peak_flops(),
            evaluate=make_evaluate(config, model, mesh, problem),
            sample=lambda state: [],
            describe_batch=lambda step: (
                f"examples {[problem.splits['train'].examples[i].place for i in plan.indices(step)]}"
            ),
            checkpoints=checkpoints,
            log=log,
            progress=progress,
            objective=lambda row: objective(row, problem.task),
        )
        loop.fit(state)
    best = min(log.rows("valid"), key=lambda row: (objective(row, problem.task), row["step"]))
    return restore_parameters(workdir / "checkpoints", abstract.params, step=best["step"])


def objective(row: dict[str, float], task: Task) -> float:
    """What the best epoch has least of: minus the score; of two equal ones the earlier is better."""
    return 1e-9 * row["step"] - row[task.metrics[0]]


def fine_tuning_loss_of(config: ConfigDict, model: ModelConfig, problem: Problem) -> Callable:
    """(params, batch, key) -> summed L3 and number of examples."""

    def loss(params: dict, batch: dict, key: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        return fine_tuning_loss(
            params, model, batch, key,
            combination=problem.combination, target=problem.target,
            language_model_weight=config.objective.language_model_weight,
            classifier_dropout=config.objective.classifier_dropout,
        )  # fmt: skip

    return loss


def frozen_mask(params: Any, layers: int) -> Any:
    """1 for what learns, 0 for what stays as it is: the embeddings and the first `layers` layers; None: all learns."""
    if not layers:
        return None

    def mask(path: tuple, leaf: Any) -> jax.Array | float:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name.startswith("model/embedding"):
            return 0.0
        if name.startswith("model/layers/"):
            return (jnp.arange(leaf.shape[0]) >= layers).astype(leaf.dtype).reshape(-1, *[1] * (leaf.ndim - 1))
        return 1.0

    return jax.tree_util.tree_map_with_path(mask, params)


def make_evaluate(
    config: ConfigDict, model: ModelConfig, mesh: jax.sharding.Mesh, problem: Problem
) -> Callable[[Any], dict[str, float]]:
    """A function state -> `loss` (L2) and the task's metrics on the validation examples."""
    predict = make_predict(config, model, mesh, problem)
    return lambda state: measure(problem, "valid", predict(state.params, problem.splits["valid"].encoded))


def make_predict(
    config: ConfigDict, model: ModelConfig, mesh: jax.sharding.Mesh, problem: Problem
) -> Callable[[Any, ExampleSet], np.ndarray]:
    """A function (parameters, examples) -> outputs [n, O]: probabilities, or scores from 0 to 1."""
    predictor = compile_predictor(model, mesh, problem.combination, probabilities=problem.target != "score")
    rows = sharding((config.train.batch_size,), ("batch",), mesh)

    def predict(params: Any, examples: ExampleSet) -> np.ndarray:
        batches = evaluation_batches(examples, batch_size=config.train.batch_size, sharding=rows)
        return predictor(params, batches, len(examples))

    return predict


def measure(problem: Problem, split: str, outputs: np.ndarray) -> dict[str, float]:
    """`loss` and the task's metrics of a split."""
    truth = np.array([example.target for example in problem.splits[split].examples])
    scores = compute_metrics(
        problem.task.metrics, problem.answers(outputs), truth, num_labels=len(problem.task.labels) or None
    )
    return {"loss": problem.loss(outputs, problem.splits[split].encoded.targets)} | scores


def finish(
    config: ConfigDict,
    model: ModelConfig,
    mesh: jax.sharding.Mesh,
    problem: Problem,
    params: dict,
    workdir: Path,
    began: float,
) -> dict[str, dict[str, float]]:
    """Scores every labelled split with the best epoch's parameters; writes scores.json and the report."""
    predict = make_predict(config, model, mesh, problem)
    held_out = {split: own for split, own in problem.splits.items() if split != "train"}
    outputs = {split: predict(params, own.encoded) for split, own in held_out.items()}
    scores = {split: measure(problem, split, outputs[split]) for split in held_out}
    if is_main_process():
        configuration.write_json(workdir / "scores.json", scores)
        path = write_task_report(
            workdir,
            task=problem.task,
            scores=scores,
            examples={split: own.examples for split, own in held_out.items()},
            outputs=outputs,
            answers={split: problem.answers(outputs[split]) for split in held_out},
            summary=[
                ("parameters", f"{decoder.parameter_count(model):,}"),
                ("training examples", f"{len(problem.splits['train'].examples):,}"),
                ("initialised from", str(config.init_from) if config.transfer.layers != -1 else "nothing"),
                ("time of this start", clock(time.monotonic() - began)),
            ],
            rows=[json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()],
            config=configuration.as_json(config),
        )
        for split, metrics in scores.items():
            print(f"{split}: " + ", ".join(f"{name} {value:.4f}" for name, value in metrics.items()))
        print(f"time of this start: {clock(time.monotonic() - began)}")
        print(f"report: {path}")
    return scores
