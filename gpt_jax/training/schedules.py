"""Learning-rate schedules by name: Optax's, and the three of OpenAI's GPT-1 code."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gpt_jax.errors import UserError


def make_schedule(
    name: str,
    *,
    peak: float,
    steps: float,
    warmup_steps: float = 0,
    decay_steps: float | None = None,
    final_fraction: float = 0.0,
    position: Callable[[jax.Array], jax.Array] | None = None,
) -> optax.Schedule:
    """Linear warm-up from 0 to `peak`, then `cosine`, `linear` or `constant`; or OpenAI's (see `openai_schedule`).

    Update t, counted from 1, uses the value at t: the first update already moves (a schedule read at 0 would waste it),
    and update `warmup_steps` is the first at the peak.

    Args:
      steps: length of the run, in updates.
      warmup_steps: may be a fraction of one for OpenAI's schedules, whose warm-up is a share of the run.
      decay_steps: the decay ends at this update, `steps` by default, and stays at its last value from there on.
      final_fraction: where the decay ends, as a share of the peak (0.1 in GPT-3).
      position: where updates are not equally large: of the number of updates made, what they are together in the unit
        that `steps`, `warmup_steps` and `decay_steps` are then given in (see `grown_position`).

    Returns:
      A function of the number of updates already made.

    Raises:
      UserError: for an unknown name, or a warm-up that does not fit the run.
    """
    decay_end = steps if decay_steps is None else decay_steps
    if decay_end < 1:
        raise UserError(f"schedule.decay_steps={decay_end}: expected at least 1.")
    if not 0 <= warmup_steps < decay_end:
        unit = "steps" if position is None else "full batches' worth of tokens"
        raise UserError(
            f"schedule: warmup_steps={warmup_steps:g} leaves nothing of the {decay_end:g} {unit} until the decay ends. "
            "Expected 0 <= warmup_steps < steps; lower --config.schedule.warmup_steps, or warmup_tokens where set."
        )
    if name in OPENAI_SHAPES:
        if final_fraction:
            raise UserError(
                f"schedule.final_fraction={final_fraction}: {name} ends at 0; use cosine or linear for another end."
            )
        return openai_schedule(
            name, peak=peak, steps=decay_end, warmup_steps=warmup_steps, position=position or (lambda count: count)
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
            raise UserError(
                f"schedule.name={name!r}: expected one of cosine, linear, constant, {', '.join(OPENAI_SHAPES)}."
            )
    warmup = optax.linear_schedule(0.0, peak, warmup_steps or 1)
    schedule = optax.join_schedules([warmup, after], [warmup_steps])
    if position is None:
        return lambda count: schedule(count + 1)
    return lambda count: schedule(position(count + 1))


def grown_position(first_steps: Sequence[int], sizes: Sequence[int]) -> Callable[[jax.Array], jax.Array]:
    """A function of the number of updates made: the examples they took, in batches of the last size.

    Args:
      first_steps, sizes: from update `first_steps[j]` on (the first is 0) an update takes `sizes[j]` examples.
    """
    firsts, shares = np.asarray(first_steps, float), np.asarray(sizes, float) / sizes[-1]
    lengths = np.append(np.diff(firsts), np.inf)

    def position(count: jax.Array) -> jax.Array:
        t = jnp.asarray(count).astype(float)  # float64 where JAX is set to it
        return jnp.sum(jnp.clip(t - firsts.astype(t.dtype), 0, lengths.astype(t.dtype)) * shares.astype(t.dtype))

    return position


# Share of the peak at x, the share of the run that is done (the update at hand included). Read literally from
# openai/finetune-transformer-lm, opt.py: the cosine does not begin anew where the warm-up ends, and the linear decay
# also bends the warm-up.
OPENAI_SHAPES: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "warmup_cosine": lambda x, ramp: jnp.where(ramp <= 1, ramp, 0.5 * (1 + jnp.cos(jnp.pi * x))),
    "warmup_constant": lambda x, ramp: jnp.minimum(ramp, 1),
    "warmup_linear": lambda x, ramp: jnp.minimum(ramp, 1) * (1 - x),
}


def openai_schedule(
    name: str,
    *,
    peak: float,
    steps: float,
    warmup_steps: float,
    position: Callable[[jax.Array], jax.Array] = lambda count: count,
) -> optax.Schedule:
    """One of OpenAI's schedules for GPT-1: `warmup_cosine`, `warmup_constant`, `warmup_linear`.

    Update t, counted from 1, uses the value at t / `steps`. (Their graph reads and raises t in one step, in an order
    that TensorFlow leaves open; run, it read the raised one, 360 times of 360.) So the last update of a cosine or
    linear run has a rate of 0; beyond the end the rate stays as it is there.

    Args:
      warmup_steps: their `warmup` (0.002 by default) times `steps`.
      position: see `make_schedule`.
    """

    def schedule(count: jax.Array) -> jax.Array:
        t = jnp.minimum(position(jnp.asarray(count) + 1), steps).astype(float)  # float64 where JAX is set to it
        ramp = t / warmup_steps if warmup_steps else jnp.full_like(t, 2)
        return peak * OPENAI_SHAPES[name](t / steps, ramp)

    return schedule
