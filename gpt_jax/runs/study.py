"""Many fine-tuning runs in one process: tasks, ablations and seeds, and the tables and pictures that come of them.

What GPT-1 reports in its Tables 2 to 5 and on the left of figure 2. A run that is done is not done again, one that was
stopped goes on, and runs that differ only in seed and first weights share what is compiled.
"""

import dataclasses
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from gpt_jax import configuration
from gpt_jax.data.files import matching_files
from gpt_jax.errors import UserError
from gpt_jax.parallel.runtime import announce, do_on_main_process
from gpt_jax.runs import finetune
from gpt_jax.runs.gather import gather
from gpt_jax.runs.problem import find_tables
from gpt_jax.runs.workdir import open_workdir

FREE_TO_CHANGE = (*configuration.FREE_TO_CHANGE, "study.", "seeds")  # more runs may join a study


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to fine-tune: a name with maybe a number, and the fields that it sets."""

    form: str
    fields: Callable[[ConfigDict, int], dict[str, Any]]


VARIANTS = (
    Variant("full", lambda config, _: {}),
    Variant("without-auxiliary", lambda config, _: {"objective.language_model_weight": 0.0}),
    Variant("without-pretraining", lambda config, _: {"transfer.layers": -1}),
    Variant("lstm", lambda config, _: {"init_from": config.study.lstm}),
    Variant("layers-K", lambda config, k: {"transfer.layers": k}),
    Variant("freeze-K", lambda config, k: {"transfer.freeze": k}),
    Variant("adapters-K", lambda config, k: {"transfer.adapters.rank": k}),
)


def run(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Does every run of the study that is not done yet, each in WORKDIR/TASK/VARIANT/seed-N, and gathers their scores.

    Seed by seed, so that a study which is stopped early has every task and variant.

    Returns:
      What `gather` returns.

    Raises:
      UserError: for everything that the caller can mend; Interrupted: stopped by a signal, the state saved.
    """
    study = config.study
    if config.seeds < 1 or not study.tasks or not study.variants:
        raise UserError("a study needs at least one of study.tasks, of study.variants, and seeds.")
    check(config, workdir)
    with open_workdir(workdir):
        recorded = configuration.as_json(config)
        configuration.check_same(workdir, "config.json", recorded, what="config", free=FREE_TO_CHANGE)
        do_on_main_process(lambda: configuration.write_json(workdir / "config.json", recorded))
        jobs = [
            (task, variant, seed)
            for seed in range(config.seed, config.seed + config.seeds)
            for task in dict.fromkeys(study.tasks)
            for variant in dict.fromkeys(study.variants)
        ]
        for number, (task, variant, seed) in enumerate(jobs, start=1):
            folder = workdir / task / variant / f"seed-{seed}"
            if not (folder / "scores.json").exists():
                announce(f"--- run {number} of {len(jobs)}: {task}, {variant}, seed {seed}")
                finetune.run_seed(single_run(config, task, variant, seed), folder)
            if not study.keep_checkpoints:
                do_on_main_process(lambda folder=folder: shutil.rmtree(folder / "checkpoints", ignore_errors=True))
        return gather([workdir], workdir)


def check(config: ConfigDict, workdir: Path) -> None:
    """Raises UserError for what would stop a later run of the study, before the first one costs time."""
    for variant in config.study.variants:
        finetune.resolve(single_run(config, config.study.tasks[0], variant, config.seed), workdir)
    tested = 0
    for task in config.study.tasks:
        one = single_run(config, task, config.study.variants[0], config.seed)
        find_tables(one)
        tested += one.data.test is not None
        if config.data.test and one.data.test is None:
            announce(f"{task}: no test table at {config.data.test}; scored on the validation rows alone")
    if config.data.test and not tested:
        raise UserError(f"data.test={config.data.test}: no task has such a table.")


def single_run(config: ConfigDict, task: str, variant: str, seed: int) -> ConfigDict:
    """The config of one fine-tuning run of the study.

    `{task}` in an address or in the folder stands for the task's name; a test table that is not there is left out.
    """
    one = config.copy_and_resolve_references().unlock()
    del one.study
    one.update(run="finetune", seed=seed, seeds=1)
    one.data.task = task
    for field in ("folder", "train", "valid", "test"):
        if one.data[field]:
            one.data[field] = one.data[field].replace("{task}", task)
    if one.data.test and one.data.test.startswith("file:"):
        try:
            matching_files(one.data.test.removeprefix("file:"))
        except UserError:
            one.data.test = None
    one.update_from_flattened_dict(variant_fields(config, variant))
    return one.lock()


def variant_fields(config: ConfigDict, name: str) -> dict[str, Any]:
    """The fields that the variant `name` ("full", "layers-2", ...) sets. UserError: there is no such variant."""
    for variant in VARIANTS:
        match = re.fullmatch(variant.form.replace("K", r"(\d+)"), name)
        if match:
            number = int(match[1]) if match.groups() else 0
            if number == 0 and variant.form in ("freeze-K", "adapters-K"):
                raise UserError(f"study.variants: {name!r} is the full way; expected a number from 1 on.")
            fields = variant.fields(config, number)
            if fields.get("init_from", "") is None:
                raise UserError("study.lstm is missing: the workdir of a pretrained LSTM (configs/pretrain.py:lstm).")
            return fields
    forms = ", ".join(variant.form for variant in VARIANTS)
    raise UserError(f"study.variants: {name!r}: expected some of {forms}, with a number for K.")
