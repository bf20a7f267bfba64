"""What a pretrained model can do without fine-tuning, by the heuristics of the GPT-1 paper (section 5, Figure 2 right).

    python -m gpt_jax.main --config=configs/evaluate.py:TASK[+TASK...][,model=PATH][,checkpoints=all][,folder=PATH]

TASK: `books-choice` (default) needs no download; `cola`, `sst2`, `race`, `story_cloze` are read from `folder`, that of
the official release, or from your own table, --config.data.test=file:PATH; `winograd` (columns context_options,
continuation, gold) and `multiple_choice` (any questions of your own) from your own table only. PATH of the model: a
workdir, one of its checkpoints/STEP, a Hugging Face folder, a GGUF file, OpenAI's release.

`checkpoints=all`: every checkpoint that the pretraining workdir has kept, after the weights that it began with, drawn
anew as step 0: the curve over pretraining. Started again later, it goes on with those that are new.

Several tasks in one run, one picture and one table: `cola+sst2+winograd+books-choice`. Then the fields of each stand
under its own name: --config.data.cola.test=file:dev.jsonl --config.data.cola.train=file:train.jsonl.

Measured (2 CPU cores, shared, 2026-11-22): `cola+sst2+winograd+books-choice`, some 2,400 examples and 2,000 more for
CoLA's threshold, take 6 s of CPU time a checkpoint of a decoder of 4 x 128, 19 s of one of 4 x 256.
SmolLM2-135M-Instruct (Q4_1) has 57.1 on `winograd`, 58 on COPA's validation rows as `multiple_choice`, 75.0 on 300
rows of `sst2`.
"""

from ml_collections import ConfigDict, config_dict

from gpt_jax.configuration import optional_fields, parse_argument
from gpt_jax.errors import UserError, did_you_mean
from gpt_jax.models.config import ModelConfig
from gpt_jax.tasks.prompts import heuristic_of
from gpt_jax.tasks.registry import TASKS
from gpt_jax.tasks.task import TEXT_ROLES, ZERO_SHOT_ROLES

placeholder = config_dict.placeholder

NAMES = ("books-choice", "cola", "sst2", "race", "story_cloze", "winograd", "multiple_choice")
FIELDS = {"model": str, "checkpoints": str, "folder": str, "batch": int}
ROLES = sorted({role for roles in (TEXT_ROLES | ZERO_SHOT_ROLES).values() for role in roles} | {"label", "id"})


def get_config(argument: str | None = None) -> ConfigDict:
    """The evaluation that `argument` names; see the module's docstring."""
    first = (argument or "").partition(",")[0]
    names = first if first and "=" not in first else NAMES[0]
    _, values = parse_argument(argument, presets=[names], fields=FIELDS)
    tasks = list(dict.fromkeys(names.split("+")))
    for task in tasks:
        check_name(task)
    if len(tasks) > 1 and "folder" in values:
        raise UserError(f"--config: folder= of {names}: give each task its own: --config.data.{tasks[0]}.folder=PATH.")
    config = defaults()
    config.data.update(fields_of(tasks[0]) if len(tasks) == 1 else {field(task): fields_of(task) for task in tasks})
    if "folder" in values:
        config.data.folder = values["folder"]
    config.source = values.get("model", config.source)
    config.checkpoints = values.get("checkpoints", config.checkpoints)
    config.batch_size = values.get("batch", config.batch_size)
    return config.lock()


def check_name(task: str) -> None:
    """UserError: no such task, or none that a pretrained model can be asked without learning it."""
    if task in TASKS:
        heuristic_of(TASKS[task])
    elif task not in NAMES:
        raise UserError(f"--config: no task {task!r}.{did_you_mean(task, NAMES)} There are: {', '.join(NAMES)}.")


def field(task: str) -> str:
    """What the section of `task` is called: flags know no dash."""
    return task.replace("-", "_")


def defaults() -> ConfigDict:
    """Every field of an evaluation but `data`."""
    return ConfigDict(
        dict(
            run="evaluate",
            source="runs/pretrain-books",  # what `model=` behind the colon names
            checkpoints="one",  # one: what `source` names, of a workdir the newest | all: every one that it has kept
            # Fields of ModelConfig that do not change what the weights mean: context_length, dtypes, ...
            model=optional_fields(ModelConfig),
            tokenizer=dict(path=placeholder(str)),  # by default the one beside the weights
            data={},  # `fields_of` the task; of several, one section each
            mesh=dict(data=-1, fsdp=1, tensor=1, sequence=1, slices=1),
            batch_size=32,  # texts at a time, over all devices
        )
    )


def fields_of(task: str) -> dict:
    """Where the examples of one task come from."""
    return dict(
        task=task,
        folder=placeholder(str),  # of the official release
        test=placeholder(str),  # or the address of your own table: file:PATH (csv, tsv, jsonl, json), tfds:...
        train=placeholder(str),  # with it CoLA's threshold is found; else it is the median of the scored sentences
        columns={role: placeholder(str) for role in ROLES},  # what your columns are called; ONE+TWO joins several
        labels=(),  # how the label column calls the first, the second ... answer
        encoding="utf-8",
        skip_bad_rows=False,
        max_answers=16,
        max_train=2000,  # examples; 0: all
        max_test=0,
    )
