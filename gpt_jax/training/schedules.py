"""Learning-rate schedules: Optax's, by name."""

import optax

from gpt_jax.errors import UserError


def make_schedule(
    name: str,
    *,
    peak: float,
    steps: int,
    warmup_steps: int = 0,
    decay_steps: int | None = None,
    final_fraction: float = 0.0,
) -> optax.Schedule:
    """Linear warm-up from 0 to `peak`, then `cosine`, `linear` or `constant`.

    Update t, counted from 1, uses the value at t: the first update already moves (a schedule read at 0 would waste it),
    and update `warmup_steps` is the first at the peak.

    Args:
      steps: length of the run, in updates.
      decay_steps: the decay ends at this update, `steps` by default, and stays at its last value from there on.
      final_fraction: where the decay ends, as a share of the peak (0.1 in GPT-3).

    Returns:
      A function of the number of updates already made.

    Raises:
      UserError: for an unknown name, or a warm-up that does not fit the run.
    """
    decay_end = steps if decay_steps is None else decay_steps
    if not 0 <= warmup_steps < max(decay_end, 1):
        raise UserError(
            f"schedule: warmup_steps={warmup_steps} leaves nothing of the {decay_end} steps until the decay ends. "
            "Expected 0 <= warmup_steps < steps; lower --config.schedule.warmup_steps."
        )
    decay = decay_end - warmup_steps
    match name:
        case "cosine":
            after = optax.cosine_decay_schedule(peak, decay, alpha=final_fraction)
        case "linear":
            after = optax.linear_schedule(peak, peak * final_fraction, decay)
        case "constant":
            after = optax.constant_schedule(peak)
        case _:
            raise UserError(f"schedule.name={name!r}: expected one of cosine, linear, constant.")
    warmup = optax.linear_schedule(0.0, peak, max(warmup_steps, 1))
    schedule = optax.join_schedules([warmup, after], [warmup_steps])
    return lambda count: schedule(count + 1)
