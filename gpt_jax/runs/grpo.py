"""GRPO: a policy learns from several answers to each prompt, judged against each other (Shao et al. 2024)."""

import typing
from pathlib import Path

from ml_collections import ConfigDict

from gpt_jax.alignment.group_advantages import Normalisation
from gpt_jax.alignment.grpo import GRPO
from gpt_jax.errors import UserError
from gpt_jax.runs.aligning import policy_gradient


def run(config: ConfigDict, workdir: Path) -> dict[str, float]:
    """Learns from the rewards of `config.reward`, or goes on where an earlier start was stopped.

    Returns:
      The metrics of the last evaluation.

    Raises:
      UserError: for everything that the caller can mend; Interrupted: stopped by a signal, the state saved.
    """
    return policy_gradient.run(config, workdir, objective_of(config))


def objective_of(config: ConfigDict) -> GRPO:
    """What the run minimises. UserError: fields that cannot be."""
    c = config.objective
    if c.normalisation not in typing.get_args(Normalisation):
        known = ", ".join(typing.get_args(Normalisation))
        raise UserError(f"objective.normalisation={c.normalisation!r}: expected one of {known}.")
    if c.answers < 2:
        raise UserError(f"objective.answers={c.answers}: expected at least 2, which are judged against each other.")
    if not 0 < c.clip or c.beta < 0:
        raise UserError(f"objective: clip={c.clip}, beta={c.beta}: expected clip above 0, beta at least 0.")
    return GRPO(c.answers, c.clip, c.beta, c.normalisation, c.scale)
