"""Prediction: what a fine-tuned model says of a table's rows, or a reward model of answers.

    python -m gpt_jax.main --config=configs/predict.py:FORMAT,model=WORKDIR,table=ADDRESS[,batch=INT] --workdir=DIR
    python -m gpt_jax.main --config=configs/predict.py:glue,model=WORKDIR,folder=PATH --workdir=DIR
    python -m gpt_jax.main --config=configs/predict.py:answers,model=WORKDIR,table=ADDRESS --workdir=DIR

WORKDIR is that of a fine-tuning run (of one seed), or one of its checkpoints/STEP; by default the epoch with the best
validation score speaks. ADDRESS is a table as fine-tuning takes them: file:PATH (csv, tsv, jsonl, json), tfds:...; its
columns are called as they were there, unless `data.columns` says otherwise. Labels are not needed, and not read.

FORMAT `jsonl` (default) writes predictions.jsonl into DIR, a line for each row, in the order of the table:

    {"id": "17", "label": "positive", "probabilities": {"negative": 0.03, "positive": 0.97}}
    {"id": "17", "score": 3.61}                                    where the task has scores

The id is the row's own, or its number from 0. `glue` writes that and the files that gluebenchmark.com takes; `folder`
is the official release's, of which it takes every test split (MNLI has two).

`answers` takes the workdir of a reward model (configs/reward.py) and rows with a `prompt`, text or messages, and an
`answer` or a list of `answers`; it writes {"id": "17", "rewards": [0.61, -1.3]}. Of what is longer than the model's
context it reads the end.

Measured: the 1,821 sentences of the SST-2 test set by a model of 1.3 million parameters take 14 s on two CPU cores that
had other work too, 7 s of CPU time (2026-11-22).
"""

from ml_collections import ConfigDict, config_dict

from gpt_jax.configuration import parse_argument
from gpt_jax.tasks.task import TEXT_ROLES

placeholder = config_dict.placeholder

FORMATS = ("jsonl", "glue", "answers")
FIELDS = {"model": str, "table": str, "folder": str, "batch": int}
ROLES = sorted({role for roles in TEXT_ROLES.values() for role in roles} | {"id"})


def get_config(argument: str | None = None) -> ConfigDict:
    """The prediction that `argument` names; see the module's docstring."""
    form, values = parse_argument(argument, presets=FORMATS, fields=FIELDS)
    config = ConfigDict(
        dict(
            run="predict",
            format=form,
            model=dict(
                path=placeholder(str),  # the workdir of a fine-tuning run, or one of its checkpoints/STEP
                context_length=placeholder(int),  # tokens; by default that of the fine-tuning, as all fields left empty
                compute_dtype=placeholder(str),
            ),
            data=dict(
                table=placeholder(str),
                folder=placeholder(str),  # of GLUE's release, instead of a table
                columns={role: placeholder(str) for role in ROLES},  # what this table calls them; ONE+TWO joins several
                encoding="utf-8",
                skip_bad_rows=False,
                max_answers=placeholder(int),
            ),
            batch_size=32,  # examples, over all devices
            mesh=dict(data=-1, fsdp=1, tensor=1, sequence=1, slices=1),
        )
    )
    config.model.path = values.get("model")
    config.data.table = values.get("table")
    config.data.folder = values.get("folder")
    config.batch_size = values.get("batch", config.batch_size)
    return config.lock()
