"""PPO: a policy learns from rewards, beside a value function that foretells them (InstructGPT's third step)."""

from pathlib import Path

from ml_collections import ConfigDict

from gpt_jax.alignment.policy_gradient import Penalty
from gpt_jax.alignment.ppo import PPO
from gpt_jax.errors import UserError
from gpt_jax.runs.aligning import policy_gradient


def run(config: ConfigDict, workdir: Path) -> dict[str, float]:
    """Learns from the rewards of `config.reward`, or goes on where an earlier start was stopped.

    Returns:
      The metrics of the last evaluation.

    Raises:
      UserError: for everything that the caller can mend; Interrupted: stopped by a signal, the state saved.
    """
    return policy_gradient.run(config, workdir, objective_of(config), penalty_of(config))


def objective_of(config: ConfigDict) -> PPO:
    """What the run minimises. UserError: fields that cannot be."""
    c = config.objective
    for name, least, most in (("discount", 0, 1), ("decay", 0, 1), ("clip", 1e-6, 1e6), ("value_clip", 1e-6, 1e6)):
        if not least <= c[name] <= most:
            raise UserError(f"objective.{name}={c[name]}: expected {least} to {most}.")
    for name, value in (
        ("objective.value_coefficient", c.value_coefficient),
        ("pretraining", config.pretraining.coefficient),
    ):
        if value < 0:
            raise UserError(f"{name}={value}: expected 0 or more.")
    if config.value.peak is not None and not (config.value.peak >= 0 and config.schedule.peak > 0):
        raise UserError(
            f"value.peak={config.value.peak}, schedule.peak={config.schedule.peak}: expected a rate of at least 0 for "
            "the value function, and one above 0 for the policy."
        )
    return PPO(
        c.clip, c.value_clip, c.value_coefficient, c.discount, c.decay, c.whiten_rewards, c.whiten_advantages,
        config.pretraining.coefficient,
    )  # fmt: skip


def penalty_of(config: ConfigDict) -> Penalty:
    """The KL penalty. UserError: fields that cannot be."""
    c = config.kl
    if c.coefficient < 0 or (c.target is not None and c.target <= 0) or c.horizon < 1:
        raise UserError(
            f"kl: coefficient={c.coefficient}, target={c.target}, horizon={c.horizon}: expected a coefficient of at "
            "least 0, a target above 0 (nats an answer) or none, and a horizon of at least 1 answer."
        )
    return Penalty(c.coefficient, c.target, c.horizon)
