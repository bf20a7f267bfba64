"""The one entry: reads --config, starts the runtime, hands over to the run that the config names.

python -m gpt_jax.main --config=configs/NAME.py[:ARGS] [--workdir=DIR] [--config.any.field=value]
                       [--plan=TOPOLOGY [--plan_search] | --doctor]
"""

import ast
import importlib
import itertools
import math
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_flags

from gpt_jax import configuration
from gpt_jax.configuration import flatten
from gpt_jax.errors import Interrupted, UserError, did_you_mean

OUT_OF_MEMORY = (
    "not enough memory on the devices ({reason}). What takes less, the most effective first: a smaller "
    "train.batch_size or a larger train.accumulation, a shorter data.sequence_length, model.remat=block, "
    "model.logits_chunk=128, model.attention_block=128, model.compute_dtype=bfloat16 (not on a CPU), more devices "
    "along mesh.fsdp."
)
USAGE = (
    "python -m gpt_jax.main --config=configs/NAME.py[:ARGS] [--workdir=DIR] [--config.any.field=value] "
    "[--plan=TOPOLOGY [--plan_search] | --doctor]"
)


class Command(NamedTuple):
    """A parsed command line."""

    config: ConfigDict
    workdir: Path
    plan: str | None = None
    plan_search: bool = False
    doctor: bool = False


def parse_flags(argv: list[str]) -> Command:
    """The config with its overrides, the workdir, and what stands beside them.

    Raises:
      UserError: for flags, files and values that are not as expected.
    """
    chosen = _config_argument(argv)
    if chosen is not None and not Path(chosen.partition(":")[0]).is_file():
        shipped = ", ".join(sorted(str(path) for path in Path("configs").glob("*.py"))) or "none here"
        raise UserError(f"--config={chosen}: no file {chosen.partition(':')[0]}. In configs/: {shipped}.")
    overrides = [word for word in argv[1:] if word.lstrip("-").startswith("config.")]
    plain, _ = _parse([word for word in argv if word not in overrides])  # what fails here is no override's fault
    if chosen is not None:
        _check_overrides(overrides, plain.config, chosen)
    try:
        values, positional = _parse(argv)
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # ml_collections' words for a bad override
        words = str(error.args[0] if error.args else error).replace("\\n", " ").replace("\\'", "")
        text = " ".join(words.split()).strip("'\" ")
        raise UserError(f"--config overrides: {text}. The fields stand in {chosen}.") from None
    if values.help:
        print(f"{USAGE}\n\n{_documentation(chosen) or values.get_help()}")
        raise SystemExit(0)
    if positional:
        raise UserError(
            f"unexpected arguments: {' '.join(positional)}. Flags are written --name=value.\nUsage: {USAGE}"
        )
    if chosen is None:
        raise UserError(f"--config is missing.\nUsage: {USAGE}")
    for field, value in flatten(values.config.to_dict()).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{field}={value}: expected a finite number.")
    name, _, argument = chosen.partition(":")
    variant = re.sub(r"[^\w.-]+", "-", argument) or values.config.get("model", {}).get("preset") or "default"
    workdir = Path(values.workdir) if values.workdir else Path("runs") / f"{Path(name).stem}-{variant}"
    if values.plan_search and not values.plan:
        raise UserError(f"--plan_search: for which machine? Say --plan=TOPOLOGY too.\nUsage: {USAGE}")
    return Command(values.config, workdir, values.plan, values.plan_search, values.doctor)


def _parse(argv: list[str]) -> tuple[flags.FlagValues, list[str]]:
    """The flags of `argv`, and what is no flag."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config", help_string=f"The experiment. {USAGE}", flag_values=values, lock_config=True, sys_argv=argv
    )
    flags.DEFINE_string("workdir", None, "Where the run writes; by default runs/CONFIG-PRESET/.", flag_values=values)
    flags.DEFINE_string("plan", None, "Compile for this machine, v5e-16 say, instead of running.", flag_values=values)
    flags.DEFINE_bool("plan_search", False, "With --plan: try variants and keep the best.", flag_values=values)
    flags.DEFINE_bool("doctor", False, "Check everything that the run needs, and run nothing.", flag_values=values)
    flags.DEFINE_bool("help", False, "Shows this text.", short_name="h", flag_values=values)
    try:
        return values, values(argv)[1:]
    except flags.Error as error:
        raise UserError(f"{error}\nUsage: {USAGE}") from None


def _check_overrides(overrides: list[str], config: ConfigDict, chosen: str) -> None:
    """Raises UserError for an override of a field that the config does not have."""
    fields = flatten(config.to_dict())
    for word in overrides:
        name = word.lstrip("-").partition("=")[0].removeprefix("config.")
        if name not in fields and not any(field.startswith(f"{name}.") for field in fields):
            raise UserError(
                f"--config.{name}: {chosen.partition(':')[0]} has no such field.{did_you_mean(name, fields)} "
                "The fields, with what they mean, stand in that file."
            )


def _documentation(chosen: str | None) -> str | None:
    """What the config file says of itself: how it is called, and its fields."""
    if chosen is None:
        return None
    path = Path(chosen.partition(":")[0])
    return f"{ast.get_docstring(ast.parse(path.read_text()))}\n\nThe fields, with what they mean, stand in {path}."


def _config_argument(argv: list[str]) -> str | None:
    """What `--config` was given, as `--config=X` or `--config X`."""
    for word, following in itertools.pairwise([*argv[1:], None]):
        flag, equals, value = word.lstrip("-").partition("=")
        if word.startswith("-") and flag == "config":
            return value if equals else following
    return None


def run(config: ConfigDict, workdir: str | Path, began: float | None = None):
    """Starts the runtime and does the run that `config.run` names; returns what it returns.

    Args:
      began: `time.monotonic()` of the start, whose first step tells how long it took to get there; by default now.

    Raises:
      UserError: for everything that the caller can mend.
    """
    began = time.monotonic() if began is None else began
    from gpt_jax.parallel import compilation_cache, runtime
    from gpt_jax.runs import RUNS
    from gpt_jax.runs.workdir import cache_folder
    from gpt_jax.training import startup

    if config.run not in RUNS:
        raise UserError(f"run={config.run!r}: expected one of {', '.join(RUNS)}.")
    startup.begin(began)
    runtime.start(configuration.as_json(config))
    compilation_cache.keep_compiled_programs(cache_folder(config.get("data", {}).get("cache_dir")) / "programs")
    with runtime.guarded():
        return importlib.import_module(f"gpt_jax.runs.{config.run}").run(config, Path(workdir))


def _interrupt(number: int, frame) -> None:
    """Ctrl-C, as Python handles it, but not inside JAX's hook on the garbage collector, where it would be lost."""
    if frame is not None and frame.f_code.co_name == "_xla_gc_callback":
        threading.Timer(0.01, signal.raise_signal, [number]).start()
        return
    raise KeyboardInterrupt


def main(argv: list[str]) -> int:
    """Runs the command line `argv`; returns the exit code: 0 done, 2 for what the user can mend, 128 + signal."""
    began = time.monotonic()
    signal.signal(signal.SIGINT, _interrupt)
    try:
        command = parse_flags(argv)
        if command.doctor:
            from gpt_jax.runs import doctor

            return doctor.run(command.config, command.workdir)
        if command.plan:
            # Before JAX starts: it would take hold of a TPU that is here, and a plan needs none.
            os.environ.setdefault("JAX_PLATFORMS", "cuda,cpu" if command.plan == "gpu" else "cpu")
            from gpt_jax.runs import plan, plan_search

            (plan_search if command.plan_search else plan).run(command.config, command.workdir, command.plan)
            return 0
        run(command.config, command.workdir, began)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Interrupted as stop:
        print(f"{stop}. The same command goes on from there.", file=sys.stderr)
        return 128 + stop.signal_number
    except Exception as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        print(f"error: {OUT_OF_MEMORY.format(reason=str(error).splitlines()[0])}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped. The same command begins again where it can.", file=sys.stderr)
        return 128 + signal.SIGINT
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
