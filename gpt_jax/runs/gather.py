"""Scores of many fine-tuning workdirs in one table: Tables 2 to 5 and figure 2 (left) of the GPT-1 paper, remade."""

import dataclasses
import glob
import hashlib
import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from gpt_jax import configuration
from gpt_jax.errors import UserError
from gpt_jax.parallel.runtime import announce, do_on_main_process
from gpt_jax.runs.workdir import open_workdir
from gpt_jax.tasks.registry import TASKS

# Fields that never tell one way to fine-tune from another: which run of it this is, and what is only for the eye.
_SAME_WAY = (
    "seed",
    "seeds",
    "run",
    "mesh.",
    "checkpoint.",
    "report.",
    "train.log_every",
    "data.prefetch",
    "model.preset",
)
# What `way_of` says in words; the weight of the auxiliary language model too, where it is 0.
_IN_WORDS = ("transfer.layers", "transfer.freeze", "transfer.adapters.rank")


@dataclasses.dataclass(frozen=True)
class Result:
    """One fine-tuning run that is done.

    Attributes:
      way: how it was fine-tuned, in words, as a row of the table is called.
      scores: {split: {metric: value}}.
      layers: how many pretrained layers it began with, 0 with the embeddings alone, -1 with nothing; None: it differs
        from the full way in something else.
      fields: of its config, and `tables`, the fingerprints of its data; what may tell it from others of its way.
    """

    workdir: Path
    task: str
    metric: str
    way: str
    seed: int
    scores: dict[str, dict[str, float]]
    layers: int | None
    fields: dict[str, Any]


def run(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Gathers the fine-tuning runs in the folders that `config.workdirs` names, at any depth.

    Returns, and writes as table.json: {split: {way: {task: {median, best, worst, seeds}}}}; beside it table.md, and
    layers.png where runs differ in the layers they were given.
    """
    folders = [Path(path) for pattern in config.workdirs for path in sorted(glob.glob(str(Path(pattern).expanduser())))]
    if not folders:
        raise UserError(
            f"workdirs={tuple(config.workdirs)}: no such folder. Expected fine-tuning runs, or folders of them."
        )
    with open_workdir(workdir):
        return gather(folders, workdir)


def gather(folders: Sequence[Path], workdir: Path) -> dict[str, Any]:
    """`run` for folders that exist."""
    results = read_results(folders)
    splits = sorted(
        {split for result in results for split in result.scores}, key=lambda split: (split != "valid", split)
    )
    tables = {split: table_of(results, split) for split in splits}
    text = "\n".join(line for split, table in tables.items() for line in markdown(split, table, results))

    def write() -> None:
        configuration.write_json(workdir / "table.json", tables)
        (workdir / "table.md").write_text(text + "\n", encoding="utf-8")
        _draw_layers(results, workdir / "layers.png")

    do_on_main_process(write)
    announce(text)
    announce(f"table: {workdir / 'table.md'}")
    return tables


def read_results(folders: Sequence[Path]) -> list[Result]:
    """The runs below `folders` that are done; those that are not are counted and said.

    Raises:
      UserError: there is none.
    """
    results, unfinished = [], 0
    for path in sorted({path for folder in folders for path in folder.rglob("config.json")}):
        place = path.parent
        try:
            config = json.loads(path.read_text())
            if config.get("run") != "finetune":
                continue
            if not (place / "scores.json").exists():
                unfinished += 1
                continue
            scores, facts = (json.loads((place / name).read_text()) for name in ("scores.json", "data.json"))
            results.append(_result(place, config, facts, scores))
        except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
            raise UserError(
                f"{place}: config.json, data.json or scores.json is not as a fine-tuning run of this version leaves it "
                f"({error!r}). Restore or move the folder."
            ) from None
    if unfinished:
        announce(f"{unfinished} runs are not done yet: left out")
    if not results:
        raise UserError(f"no fine-tuning run that is done below {', '.join(map(str, folders))}.")
    return _told_apart(results)


def _result(place: Path, config: dict[str, Any], facts: dict[str, Any], scores: dict[str, Any]) -> Result:
    transfer, fields = config["transfer"], configuration.flatten(config)
    weight = config["objective"]["language_model_weight"]
    told = [name for name in fields if name.startswith((*_SAME_WAY, *_IN_WORDS))]
    told += ["objective.language_model_weight"] if weight == 0 else []
    layers = config["model"]["num_layers"] if transfer["layers"] is None else transfer["layers"]
    otherwise = weight == 0 or transfer["freeze"] or transfer["adapters"]["rank"] or config["model"]["core"] == "lstm"
    return Result(
        workdir=place, task=facts["task"], metric=facts["metrics"][0], way=way_of(config), seed=config["seed"],
        scores={split: {facts["metrics"][0]: float(own[facts["metrics"][0]])} for split, own in scores.items()},
        layers=None if otherwise else layers,
        fields={name: value for name, value in fields.items() if name not in told} | {"tables": facts["tables"]},
    )  # fmt: skip


def way_of(config: dict[str, Any]) -> str:
    """How a run fine-tuned, in the words of the paper's Table 5."""
    transfer, words = config["transfer"], []
    if config["model"].get("core") == "lstm":
        words.append("LSTM")
    if config["objective"]["language_model_weight"] == 0:
        words.append("without auxiliary LM")
    match transfer["layers"]:
        case -1:
            words.append("without pretraining")
        case 0:
            words.append("embeddings transferred")
        case int(layers):
            words.append(f"{layers} of {config['model']['num_layers']} layers transferred")
    if transfer["freeze"]:
        words.append(f"{transfer['freeze']} of {config['model']['num_layers']} layers frozen")
    if transfer.get("adapters", {}).get("rank"):
        words.append(f"adapters of rank {transfer['adapters']['rank']}")
    return ", ".join(words) or "full"


def _told_apart(results: list[Result]) -> list[Result]:
    """The same results; where runs of one way and task differ in other fields, their ways are called by those too.

    Raises:
      UserError: two runs differ in nothing, not even the seed.
    """
    families: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        families.setdefault((result.way, result.task), []).append(result)
    named = []
    for family in families.values():
        names = sorted({name for result in family for name in result.fields})
        differ = [name for name in names if any(one.fields.get(name) != family[0].fields.get(name) for one in family)]
        for result in family:
            words = [f"{name}={_short(result.fields.get(name))}" for name in differ]
            named.append(dataclasses.replace(result, way=", ".join([result.way, *words])))
    seen: dict[tuple[str, str, int], Path] = {}
    for result in named:
        other = seen.setdefault((result.way, result.task, result.seed), result.workdir)
        if other != result.workdir:
            raise UserError(f"{other} and {result.workdir} hold the same run, seed and all. Name only one of them.")
    return sorted(named, key=lambda result: result.workdir)


def _short(value: Any) -> str:
    """A field's value; of the data's fingerprints a few digits."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:6] if isinstance(value, dict) else str(value)


def table_of(results: Iterable[Result], split: str) -> dict[str, dict[str, dict[str, float]]]:
    """{way: {task: {median, best, worst, seeds}}} of the scores by each task's first metric."""
    values: dict[str, dict[str, list[float]]] = {}
    for result in results:
        if split in result.scores:
            values.setdefault(result.way, {}).setdefault(result.task, []).append(result.scores[split][result.metric])
    return {
        way: {
            task: {"median": statistics.median(own), "best": max(own), "worst": min(own), "seeds": len(own)}
            for task, own in by_task.items()
        }
        for way, by_task in sorted(values.items(), key=lambda item: (item[0] != "full", item[0]))
    }


def markdown(split: str, table: dict[str, dict[str, dict[str, float]]], results: Sequence[Result]) -> list[str]:
    """The table of one split: a row for each way, a column for each task, medians over seeds with worst and best."""
    metric_of = {result.task: result.metric for result in results}
    tasks = sorted({task for row in table.values() for task in row}, key=list(TASKS | metric_of).index)
    lines = [f"## {split}: median over seeds, times 100 (worst to best)", ""]
    lines.append("| | " + " | ".join(f"{task} ({metric_of[task]})" for task in tasks) + " | average |")
    lines.append("|---" * (len(tasks) + 2) + "|")
    for way, row in table.items():
        cells = [_cell(row[task]) if task in row else "" for task in tasks]
        whole = all(task in row for task in tasks)
        average = f"{100 * statistics.mean(row[task]['median'] for task in tasks):.1f}" if whole else ""
        lines.append(f"| {way} | {' | '.join(cells)} | {average} |")
    paper = [TASKS[task].paper.get(split) if task in TASKS else None for task in tasks]
    if any(score is not None for score in paper):
        lines.append(f"| GPT-1 (paper) | {' | '.join('' if score is None else str(score) for score in paper)} | |")
    return [*lines, ""]


def _cell(scores: dict[str, float]) -> str:
    median, worst, best = (f"{100 * scores[name]:.1f}" for name in ("median", "worst", "best"))
    return f"{median} ({worst} to {best})" if scores["seeds"] > 1 else median


def _draw_layers(results: Sequence[Result], path: Path) -> None:
    """Draws the validation score by the layers transferred, a line for each task that was run with three or more."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    points: dict[str, dict[int, list[float]]] = {}
    for result in results:
        if result.layers is not None and "valid" in result.scores:
            # what a way is called by beside its layers
            _, _, apart = result.way.partition(", ") if "=" in result.way else ("", "", "")
            line = ", ".join(filter(None, [f"{result.task} ({result.metric})", apart]))
            score = 100 * result.scores["valid"][result.metric]
            points.setdefault(line, {}).setdefault(result.layers, []).append(score)
    points = {line: by_layers for line, by_layers in points.items() if len(by_layers) > 2}
    if not points:
        return
    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)  # drawn in memory: no display, no global state
    axes = figure.subplots()
    for name, by_layers in sorted(points.items()):
        layers = sorted(by_layers)
        (line,) = axes.plot(layers, [statistics.median(by_layers[k]) for k in layers], marker="o", label=name)
        axes.fill_between(
            layers, [min(by_layers[k]) for k in layers], [max(by_layers[k]) for k in layers],
            color=line.get_color(), alpha=0.15,
        )  # fmt: skip
    axes.set(xlabel="pretrained layers transferred (0: embeddings, -1: nothing)", ylabel="validation score")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)
