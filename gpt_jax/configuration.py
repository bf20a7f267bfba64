"""Experiment configs: what stands behind the colon, the workdir's record of a config, and what differs."""

import dataclasses
import json
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, config_dict

from gpt_jax.disk import write_atomically
from gpt_jax.errors import UserError, did_you_mean

# Fields that change neither the data order nor, but for rounding, the numbers: a run may go on with others.
FREE_TO_CHANGE = ("mesh.", "checkpoint.", "report.", "data.cache_dir", "data.prefetch", "model.attention_kernel")


def parse_argument(argument: str | None, *, presets: Mapping[str, Any] | list[str], fields: Mapping[str, type]):
    """Splits what follows the colon of `--config=FILE:ARGUMENT`: a preset, then key=value pairs.

    Args:
      argument: for example `gpt2-small,batch=32,steps=1000`; None or empty: the first preset, no pairs.
      presets: the names that may stand first.
      fields: the keys a config takes, with the type of their value.

    Returns:
      (preset, {key: value})

    Raises:
      UserError: for an unknown preset or key, or a value of another type.
    """
    names = list(presets)
    words = [word.strip() for word in (argument or "").split(",") if word.strip()]
    preset = words.pop(0) if words and "=" not in words[0] else names[0]
    if preset not in names:
        raise UserError(f"--config: no preset {preset!r}.{did_you_mean(preset, names)} There are: {', '.join(names)}.")
    values = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or key not in fields:
            raise UserError(
                f"--config: {word!r} behind the preset.{did_you_mean(key, fields)} Expected "
                f"{', '.join(f'{name}={kind.__name__}' for name, kind in fields.items())}; "
                "any other field is set by --config.FIELD=VALUE."
            )
        try:
            values[key] = fields[key](text)
        except ValueError:
            raise UserError(f"--config: {word!r}: expected {key}={fields[key].__name__}.") from None
    return preset, values


def optional_fields(dataclass: type) -> dict[str, Any]:
    """A placeholder for each of a dataclass's fields, of its type: empty, and settable from the command line."""
    kinds = typing.get_type_hints(dataclass)
    return {
        field.name: config_dict.placeholder(_plain_type(kinds[field.name])) for field in dataclasses.fields(dataclass)
    }


def _plain_type(kind: Any) -> type:
    """int of `int | None`, str of `Literal["a", "b"]`, tuple of `tuple[str, ...]`."""
    if typing.get_origin(kind) is tuple:
        return tuple
    first, *_ = typing.get_args(kind) or (kind,)
    return first if isinstance(first, type) else type(first)


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested fields as {"model.num_layers": 4, ...}."""
    flat = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def as_json(config: ConfigDict) -> dict[str, Any]:
    """A config as plain JSON values, the same after a round trip through a file."""
    return json.loads(config.to_json())


def check_same(workdir: Path, name: str, current: dict[str, Any], *, what: str, free: tuple[str, ...] = ()) -> None:
    """Holds `current` against what an earlier start of this run wrote as workdir/name; writes nothing.

    Raises:
      UserError: when a field differs that is not `free` to change; the message lists them all. Fields that the earlier
        start did not know are passed over.
    """
    path = workdir / name
    if not path.exists():
        return
    try:
        earlier = flatten(json.loads(path.read_text()))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not whole JSON ({error}): restore it, or use another --workdir.") from None
    now = flatten(json.loads(json.dumps(current)))  # a tuple is a list there
    differ = [
        f"  {field}: {earlier[field]!r} there, {now.get(field)!r} here"
        for field in sorted(earlier)
        if earlier[field] != now.get(field) and not field.startswith(free)
    ]
    if differ:
        raise UserError(
            f"{workdir} holds a run with another {what}:\n" + "\n".join(differ) + "\n"
            "Use another --workdir for a new run, or set these back to go on with the old one."
        )


def write_json(path: Path, value: Any) -> None:
    """Writes JSON in one move: a kill leaves the old file or the new one, never half of one."""
    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())
