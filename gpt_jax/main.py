"""The one entry: reads --config, starts the runtime, hands over to the run that the config names.

python -m gpt_jax.main --config=configs/NAME.py[:ARGS] [--workdir=DIR] [--config.any.field=value]
"""

import importlib
import itertools
import re
import signal
import sys
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from gpt_jax.errors import Interrupted, UserError

USAGE = "python -m gpt_jax.main --config=configs/NAME.py[:ARGS] [--workdir=DIR] [--config.any.field=value]"


def parse_flags(argv: list[str]) -> tuple[ConfigDict, Path]:
    """The config with its overrides, and the workdir.

    Raises:
      UserError: for flags, files and values that are not as expected.
    """
    chosen = _config_argument(argv)
    if chosen is not None and not Path(chosen.partition(":")[0]).is_file():
        shipped = ", ".join(sorted(str(path) for path in Path("configs").glob("*.py"))) or "none here"
        raise UserError(f"--config={chosen}: no file {chosen.partition(':')[0]}. In configs/: {shipped}.")
    overrides = [word for word in argv[1:] if word.lstrip("-").startswith("config.")]
    _parse([word for word in argv if word not in overrides])  # what fails here is no override's fault
    try:
        values, positional = _parse(argv)
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # ml_collections' words for a bad override
        words = str(error.args[0] if error.args else error).replace("\\n", " ").replace("\\'", "")
        text = " ".join(words.split()).strip("'\" ")
        raise UserError(f"--config overrides: {text}. The fields stand in {chosen}.") from None
    if values.help:
        print(f"{USAGE}\n\n{values.get_help()}")
        raise SystemExit(0)
    if positional:
        raise UserError(
            f"unexpected arguments: {' '.join(positional)}. Flags are written --name=value.\nUsage: {USAGE}"
        )
    if chosen is None:
        raise UserError(f"--config is missing.\nUsage: {USAGE}")
    name, _, argument = chosen.partition(":")
    variant = re.sub(r"[^\w.-]+", "-", argument) or values.config.get("model", {}).get("preset") or "default"
    workdir = Path(values.workdir) if values.workdir else Path("runs") / f"{Path(name).stem}-{variant}"
    return values.config, workdir


def _parse(argv: list[str]) -> tuple[flags.FlagValues, list[str]]:
    """The flags of `argv`, and what is no flag."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config", help_string=f"The experiment. {USAGE}", flag_values=values, lock_config=True, sys_argv=argv
    )
    flags.DEFINE_string("workdir", None, "Where the run writes; by default runs/CONFIG-PRESET/.", flag_values=values)
    flags.DEFINE_bool("help", False, "Shows this text.", short_name="h", flag_values=values)
    try:
        return values, values(argv)[1:]
    except flags.Error as error:
        raise UserError(f"{error}\nUsage: {USAGE}") from None


def _config_argument(argv: list[str]) -> str | None:
    """What `--config` was given, as `--config=X` or `--config X`."""
    for word, following in itertools.pairwise([*argv[1:], None]):
        flag, equals, value = word.lstrip("-").partition("=")
        if word.startswith("-") and flag == "config":
            return value if equals else following
    return None


def run(config: ConfigDict, workdir: str | Path):
    """Starts the runtime and does the run that `config.run` names; returns what it returns.

    Raises:
      UserError: for everything that the caller can mend.
    """
    from gpt_jax.parallel import runtime
    from gpt_jax.runs import RUNS

    if config.run not in RUNS:
        raise UserError(f"run={config.run!r}: expected one of {', '.join(RUNS)}.")
    runtime.start()
    return importlib.import_module(f"gpt_jax.runs.{config.run}").run(config, Path(workdir))


def main(argv: list[str]) -> int:
    """Runs the command line `argv`; returns the exit code: 0 done, 2 for what the user can mend, 128 + signal."""
    try:
        config, workdir = parse_flags(argv)
        run(config, workdir)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Interrupted as stop:
        print(f"{stop}. The same command goes on from there.", file=sys.stderr)
        return 128 + stop.signal_number
    except KeyboardInterrupt:
        print("stopped. The same command begins again where it can.", file=sys.stderr)
        return 128 + signal.SIGINT
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
