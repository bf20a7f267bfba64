"""What pretrained models do without fine-tuning: prompted tasks, GPT-1's heuristics, perplexity, the standard harness.

    python -m gpt_jax.main --config=configs/evaluate.py:TASK[+TASK...][,model=PATH[+PATH...]][,shots=K[+K...]][,...]

PATH of a model: a workdir, one of its checkpoints/STEP, a Hugging Face folder, a GGUF file, OpenAI's release. Several
models stand in one table, as do several tasks; then the fields of each task stand under its own name, a dash written _:
--config.data.arc_easy.test=file:test.jsonl.

Prompted tasks (GPT-2, GPT-3), with `shots=` solved examples before each question, 0 by default: `lambada,shots=0`,
`piqa+copa+arc-easy,shots=0+1+8`, shots=most for as many as fit. Their templates stand in gpt_jax/tasks/templates.toml:
lambada, hellaswag, piqa, arc-easy, arc-challenge, openbookqa, winograd, winogrande, copa, story_cloze, boolq, race,
cbt; cb, rte, wic, wsc, multirc, record; questions, squad, translation, summarisation; generated: arithmetic (all ten,
or arithmetic-2da ...), words (scrambled, all five, or words-cycled ...). The questions are read from
--config.data.test=, solved examples from --config.data.train=: file:PATH (csv, tsv, jsonl, json), race:FOLDER,
tfds:NAME#SPLIT. Any field of a template can be set, --config.data.template.normalisation=character; a task of your
own is `own`:
--config.data.template.context='Q: {question}\\nA:' --config.data.template.choices="('{right}', '{wrong}')" ...

GPT-1's heuristics (section 5; Figure 2, right), where no `shots=` is said: `books-choice` (default) needs no download;
`cola`, `sst2`, `race`, `story_cloze` are read from `folder=`, that of the official release, or from your own table,
--config.data.test=file:PATH; `winograd` (columns context_options, continuation, gold) and `multiple_choice` (any
questions of your own) from your own table only.

`checkpoints=all`: every checkpoint that the pretraining workdir has kept, after the weights that it began with, drawn
anew as step 0: the curve over pretraining, of any of these tasks. Started again later, it goes on with what is new.

`text,source=file:PATH`: perplexity and bits per byte of any text (books and tfds:NAME too), each token scored once;
`length=` and `stride=` of the windows, by default the model's context and half of it; WikiText as people would write
it: --config.data.detokenizer=wikitext.

`lm-eval,tasks=NAME[+NAME...],include_path=FOLDER`: tasks of EleutherAI's lm_eval (pip install -e ".[lm-eval]"),
offline; its result file stands in the workdir.

Measured (2 CPU cores, shared, 2026-11-22): `cola+sst2+winograd+books-choice`, some 2,400 examples and 2,000 more for
CoLA's threshold, take 6 s of CPU time a checkpoint of a decoder of 4 x 128, 19 s of one of 4 x 256.
SmolLM2-135M-Instruct (Q4_1) has 57.1 on `winograd`, 58 on COPA's validation rows as `multiple_choice`, 75.0 on 300
rows of `sst2`.
"""

from pathlib import Path

from ml_collections import ConfigDict, config_dict

from gpt_jax.configuration import optional_fields, parse_argument
from gpt_jax.errors import UserError, did_you_mean
from gpt_jax.models.config import ModelConfig
from gpt_jax.tasks.generated import GROUPS
from gpt_jax.tasks.prompts import heuristic_of
from gpt_jax.tasks.registry import TASKS
from gpt_jax.tasks.task import TEXT_ROLES, ZERO_SHOT_ROLES
from gpt_jax.tasks.templates import Template, prompted_tasks

placeholder = config_dict.placeholder

HEURISTICS = ("books-choice", "cola", "sst2", "race", "story_cloze", "winograd", "multiple_choice")
FIELDS = {
    "model": str,
    "checkpoints": str,
    "folder": str,
    "batch": int,
    "shots": str,
    "source": str,
    "length": int,
    "stride": int,
    "tasks": str,
    "include_path": str,
}
OF_TEXT = ("source", "length", "stride")
OF_HARNESS = ("tasks", "include_path")
ROLES = sorted({role for roles in (TEXT_ROLES | ZERO_SHOT_ROLES).values() for role in roles} | {"label", "id"})


def get_config(argument: str | None = None) -> ConfigDict:
    """The evaluation that `argument` names; see the module's docstring."""
    first = (argument or "").partition(",")[0]
    names = first if first and "=" not in first else HEURISTICS[0]
    _, values = parse_argument(argument, presets=[names], fields=FIELDS)
    tasks = list(dict.fromkeys(task for name in names.split("+") for task in GROUPS.get(name, (name,))))
    if tasks == ["text"] and "shots" in values:
        raise UserError("--config: shots= is of prompted tasks, not of text: leave it out.")
    config = defaults()
    sections = {field(task): fields_of(task, values) for task in tasks}
    if len(tasks) > 1 and "folder" in values:
        raise UserError(f"--config: folder= of {names}: give each task its own: --config.data.{tasks[0]}.folder=PATH.")
    if len(tasks) > 1 and "lm-eval" in tasks:
        raise UserError(f"--config: {names}: lm-eval stands alone; its own tasks are tasks=NAME+NAME.")
    config.data.update(sections[field(tasks[0])] if len(tasks) == 1 else sections)
    if "folder" in values:
        config.data.folder = values["folder"]
    if "model" in values:
        one = Path(values["model"]).expanduser().exists()  # whose name may hold a plus
        config.models = (values["model"],) if one else tuple(values["model"].split("+"))
    config.checkpoints = values.get("checkpoints", config.checkpoints)
    config.batch_size = values.get("batch", config.batch_size)
    return config.lock()


def field(task: str) -> str:
    """What the section of `task` is called: flags know no dash."""
    return task.replace("-", "_")


def defaults() -> ConfigDict:
    """Every field of an evaluation but `data`."""
    return ConfigDict(
        dict(
            run="evaluate",
            seed=0,  # of the solved examples that are drawn, and of generated tasks
            models=("runs/pretrain-books",),  # what `model=` behind the colon names
            checkpoints="one",  # one: what `models` name, of a workdir the newest | all: every one that it has kept
            # Fields of ModelConfig that do not change what the weights mean: context_length, dtypes, ...
            model=optional_fields(ModelConfig),
            tokenizer=dict(path=placeholder(str)),  # by default the one beside the weights
            data={},  # `fields_of` the task; of several, one section each
            mesh=dict(data=-1, fsdp=1, tensor=1, sequence=1, slices=1),
            batch_size=32,  # texts at a time, over all devices
        )
    )


def fields_of(task: str, values: dict) -> dict:
    """Where the examples of one task come from, and how they are asked. UserError: no such task."""
    if task == "text":
        return text_fields(values)
    if task == "lm-eval":
        return harness_fields(values)
    for name in (*OF_TEXT, *OF_HARNESS):
        if name in values:
            raise UserError(f"--config: {name}= is of {'text' if name in OF_TEXT else 'lm-eval'}, not of {task}.")
    known = prompted_tasks()
    if "shots" in values or task in known and task not in HEURISTICS:
        if task not in known:
            raise UserError(
                f"--config: no prompt template for {task!r}.{did_you_mean(task, known)} There are: {', '.join(known)}."
            )
        return prompted_fields(task, values)
    if task in TASKS:
        heuristic_of(TASKS[task])
    elif task not in HEURISTICS:
        names = (*HEURISTICS, *known, "text", "lm-eval")
        raise UserError(
            f"--config: no task {task!r}.{did_you_mean(task, names)} There are: {', '.join(dict.fromkeys(names))}."
        )
    return heuristic_fields(task)


def heuristic_fields(task: str) -> dict:
    """GPT-1's heuristics."""
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


def prompted_fields(task: str, values: dict) -> dict:
    """Prompts, by the task's template."""
    return dict(
        task=task,
        shots=tuple(values.get("shots", "0").split("+")),  # solved examples in the prompt; most: as many as fit
        test=placeholder(str),  # the address of the questions: file:PATH (csv, tsv, jsonl, json), race:..., tfds:...
        train=placeholder(str),  # that of the solved examples
        template=optional_fields(Template),  # what is other than in gpt_jax/tasks/templates.toml
        words=placeholder(str) if not task.startswith("words-") else "books",  # the text whose words are scrambled
        encoding="utf-8",
        skip_bad_rows=False,
        max_test=0,  # examples; 0: all
    )


def text_fields(values: dict) -> dict:
    """The perplexity of a text."""
    return dict(
        task="text",
        source=values.get("source", placeholder(str)),  # books, file:PATH-or-glob, tfds:NAME
        length=values.get("length", placeholder(int)),  # tokens of a window; by default the model's context
        stride=values.get("stride", placeholder(int)),  # from one window to the next; by default half a window
        detokenizer="none",  # none | wikitext | penn_treebank: what is undone before the model reads the text
        text_field="text",  # of .jsonl
        encoding="utf-8",
    )


def harness_fields(values: dict) -> dict:
    """Tasks of lm_eval."""
    shots = values.get("shots")
    if shots is not None and not shots.isdecimal():
        raise UserError(f"--config: shots={shots} of lm-eval: expected one number of examples, from 0 on.")
    return dict(
        task="lm-eval",
        tasks=tuple(filter(None, values.get("tasks", "").split("+"))),
        include_path=values.get("include_path", placeholder(str)),  # a folder of YAML files; without, its own tasks
        shots=placeholder(int) if shots is None else int(shots),  # by default the tasks' own
        max_test=0,  # examples of each task; 0: all
        bootstrap=1000,  # samples for standard errors that have no formula
    )
