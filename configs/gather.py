"""One table of many fine-tuning runs: rows are the ways to fine-tune, columns the tasks, medians over seeds.

    python -m gpt_jax.main --config=configs/gather.py:FOLDER[,FOLDER...] --workdir=runs/table

FOLDER: a fine-tuning workdir, or any folder above some; a pattern like `runs/finetune-*` too (by default `runs`).
Written are table.md, table.json, and layers.png where runs differ in the number of layers that were transferred.
"""

from ml_collections import ConfigDict


def get_config(argument: str | None = None) -> ConfigDict:
    """The folders that `argument` names."""
    folders = tuple(word.strip() for word in (argument or "runs").split(",") if word.strip())
    return ConfigDict(dict(run="gather", workdirs=folders)).lock()
