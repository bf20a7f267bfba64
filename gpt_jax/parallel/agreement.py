"""What must be the same on all hosts of a run, or they would hang in each other's collectives or compute nonsense."""

import hashlib
import importlib.metadata
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gpt_jax.configuration import flatten

PACKAGES = ("jax", "jaxlib", "libtpu", "flax", "optax", "orbax-checkpoint", "numpy")
# What changes the program that is compiled.
VARIABLES = (
    "JAX_PLATFORMS",
    "JAX_ENABLE_X64",
    "JAX_DEFAULT_MATMUL_PRECISION",
    "JAX_DEFAULT_PRNG_IMPL",
    "XLA_FLAGS",
    "LIBTPU_INIT_ARGS",
)
# Of each host's own: its disks and its memory. Everything else decides which collectives run, and when.
FREE_FIELDS = ("data.cache_dir", "data.prefetch")
SHOWN = 8  # differences in a message


def facts(config: Mapping[str, Any] | None) -> dict[str, str]:
    """{name: value} of this host: the fields of `config`, a digest of each file of the package, versions, variables."""
    fields = {f"config {name}": repr(value) for name, value in flatten(config or {}).items() if name not in FREE_FIELDS}
    versions = {f"version of {name}": _version(name) for name in PACKAGES}
    variables = {name: _without_dumps(os.environ.get(name, "")) for name in VARIABLES}
    return fields | versions | {"version of Python": platform.python_version()} | variables | code()


def code() -> dict[str, str]:
    """{`code` path: digest} of every Python file of the package."""
    package = Path(__file__).parents[1]
    return {
        f"code {path.relative_to(package.parent).as_posix()}": hashlib.sha256(path.read_bytes()).hexdigest()[:12]
        for path in sorted(package.rglob("*.py"))
    }


def disagreement(facts_of: Sequence[Mapping[str, str]], hosts: Sequence[str]) -> str | None:
    """A message that says which process has what, where their facts differ; None where they agree."""
    names = dict.fromkeys(name for facts in facts_of for name in facts)
    lines = []
    for name in names:
        holders: dict[str, list[int]] = {}
        for process, facts in enumerate(facts_of):
            holders.setdefault(facts.get(name, "nothing"), []).append(process)
        if len(holders) > 1:
            shown = "; ".join(f"{value or 'not set'} on {who(ids, hosts)}" for value, ids in holders.items())
            lines.append(f"  {name}: {shown}")
    if not lines:
        return None
    rest = [f"  and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return "\n".join(
        [
            "the processes of this run do not agree:",
            *lines[:SHOWN],
            *rest,
            "Start the same command with the same code and packages on every host.",
        ]
    )


def who(processes: Sequence[int], hosts: Sequence[str]) -> str:
    """`process 3 (host b)`; `processes 1, 2 (hosts a, b)`; of many, the first few."""
    few = processes[:4]
    more = f" and {len(processes) - len(few)} more" if len(processes) > len(few) else ""
    places = list(dict.fromkeys(hosts[process] for process in few))
    plural, hosts_plural = "es" if len(processes) > 1 else "", "s" if len(places) > 1 else ""
    return f"process{plural} {', '.join(map(str, few))}{more} (host{hosts_plural} {', '.join(places)})"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _without_dumps(text: str) -> str:
    """XLA's flags but those that only write files, as one does on one host to look at a program."""
    return " ".join(word for word in text.split() if not word.startswith("--xla_dump"))
