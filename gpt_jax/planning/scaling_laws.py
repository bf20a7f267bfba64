"""How loss falls with size, text and compute: laws fitted to finished runs, and what follows from them.

A law is an irreducible loss and a power of each variable, as in Hoffmann et al. 2022, "Training Compute-Optimal Large
Language Models" (equation 2; approach 3 is the fit here):

    L(x, ...) = E + A / x^a + ...          x: N parameters, D tokens or C FLOPs; L(N, D) has two such terms

N counts no embeddings, as in Kaplan et al. 2020 and in GPT-3's figure 3.1; C = 6·N·D.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from gpt_jax.errors import UserError
from gpt_jax.extras import require

PETAFLOP_DAY = 8.64e19  # FLOPs
HUBER_DELTA = 1e-3  # Hoffmann et al. 2022, approach 3: of the logarithm of the loss
_START_EXPONENTS = (0.05, 0.1, 0.2, 0.35, 0.5, 0.8, 1.2)
_LARGEST_EXPONENT = 3.0


@dataclasses.dataclass(frozen=True)
class Point:
    """One finished run; None: not known, where the numbers came from a table.

    Attributes:
      parameters: N, without embeddings.
      tokens: D, seen in training, each once where the law is to hold.
      compute: C = 6·N·D FLOPs, or what a table says.
      loss: nats per token of held-out text.
      flops: by formula, with the output matrix and attention (gpt_jax/models/flops.py).
    """

    name: str
    parameters: float | None
    tokens: float | None
    compute: float
    loss: float
    total_parameters: float | None = None
    flops: float | None = None
    bits_per_byte: float | None = None


@dataclasses.dataclass(frozen=True)
class PowerLaw:
    """E + the sum of A_i / x_i^a_i."""

    irreducible: float
    coefficients: tuple[float, ...]
    exponents: tuple[float, ...]

    def __call__(self, *x: float | np.ndarray) -> np.ndarray:
        """The loss at `x`: one array for each variable, which broadcast; float64."""
        terms = zip(self.coefficients, self.exponents, x, strict=True)
        return self.irreducible + sum(A / np.asarray(values, float) ** a for A, a, values in terms)


# Brown et al. 2020, figure 3.1: nats per token of GPT-3's validation text and vocabulary; C in petaflop/s-days.
GPT3_COMPUTE = PowerLaw(0.0, (2.57,), (0.048,))
# Hoffmann et al. 2022, equation 10: N with embeddings, MassiveText, a vocabulary of 32,000.
CHINCHILLA = PowerLaw(1.69, (406.4, 410.7), (0.34, 0.28))


@dataclasses.dataclass(frozen=True)
class Fit:
    """A law, the points that it went through, and the same law of as many resamples of them.

    Attributes:
      variables: of "parameters", "tokens", "compute": the fields of a point that are the law's x.
    """

    variables: tuple[str, ...]
    law: PowerLaw
    points: tuple[Point, ...]
    resampled: tuple[PowerLaw, ...]

    def interval(self, number: Callable[[PowerLaw], float]) -> tuple[float, float]:
        """From the 5th to the 95th percentile of `number` over the resampled laws."""
        low, high = np.percentile([number(law) for law in self.resampled], (5, 95))
        return float(low), float(high)

    def residuals(self) -> np.ndarray:
        """ln(measured / law) of each point, float64 [n]."""
        return np.log([point.loss for point in self.points]) - np.log(self.law(*columns(self.points, self.variables)))

    def predict(self, *x: float, seed: int = 0) -> tuple[float, tuple[float, float]]:
        """The loss of a run at `x`, and the 90% interval of it: of the law, and of how runs scatter about the law."""
        scatter = np.random.default_rng(seed).choice(np.exp(self.residuals()), len(self.resampled))
        losses = np.array([law(*x) for law in self.resampled]) * scatter
        return float(self.law(*x)), tuple(float(end) for end in np.percentile(losses, (5, 95)))


def columns(points: Sequence[Point], names: Sequence[str]) -> list[np.ndarray]:
    """The fields `names` of the points, each float64 [n]."""
    return [np.array([getattr(point, name) for point in points], float) for name in names]


def fit(
    loss: np.ndarray, *x: np.ndarray, irreducible: bool = True, delta: float = HUBER_DELTA, tries: int = 4
) -> PowerLaw:
    """The law that minimises the Huber loss of ln(measured / law).

    L-BFGS over (ln E, ln A_i, a_i) from several starts. Every combination of exponents from a grid gives one, whose
    E and A_i follow by non-negative least squares; the `tries` best of them are followed to their minimum.

    Args:
      loss: float [n]; x: the variables, float [n] each, all positive.
      irreducible: False holds E at 0, as GPT-3's law does.

    Raises:
      UserError: fewer points than the law has numbers and one more, or fewer than three values of a variable.
    """
    _check(loss, x, irreducible)
    optimize, one_thread = require("scipy.optimize", "finetune"), require("threadpoolctl", "finetune").threadpool_limits
    loss, x = np.asarray(loss, float), [np.asarray(values, float) for values in x]
    scales = [np.exp(np.log(values).mean()) for values in x]  # so that a coefficient does not follow its exponent
    log_x = np.array([np.log(values / scale) for values, scale in zip(x, scales, strict=True)])
    log_loss, terms = np.log(loss), len(x)

    def objective(numbers: np.ndarray) -> tuple[float, np.ndarray]:
        logs, exponents = numbers[: terms + 1], numbers[terms + 1 :]
        parts = np.vstack([np.full(len(loss), logs[0]), logs[1:, None] - exponents[:, None] * log_x])
        total = np.logaddexp.reduce(parts)
        residual, share = (total - log_loss) / delta, np.exp(parts - total)
        huber = np.where(np.abs(residual) <= 1, 0.5 * residual**2, np.abs(residual) - 0.5).sum()
        slope = np.clip(residual, -1, 1) / delta
        return huber, np.concatenate([share @ slope, -(share[1:] * log_x) @ slope])

    lowest = np.log(loss.min()) - 12  # as good as nothing, and still a logarithm
    bounds = [(lowest, np.log(loss.max()) + 12)] * (terms + 1) + [(1e-3, _LARGEST_EXPONENT)] * terms
    if not irreducible:
        bounds[0] = (lowest - 20, lowest - 20)
    starts = []
    for exponents in np.stack(np.meshgrid(*[_START_EXPONENTS] * terms), -1).reshape(-1, terms):
        design = np.vstack([np.full(len(loss), float(irreducible)), np.exp(-exponents[:, None] * log_x)]) / loss
        coefficients, _ = optimize.nnls(design.T, np.ones(len(loss)))
        start = np.concatenate([np.log(np.maximum(coefficients, np.exp(lowest))), exponents])
        starts.append(np.clip(start, *np.transpose(bounds)))
    starts = sorted(starts, key=lambda start: objective(start)[0])[:tries]
    options = dict(maxiter=500, ftol=1e-11, gtol=1e-6)
    with one_thread(1, "blas"):  # matrices of a few numbers: on a busy machine threads wait a hundred times their work
        found = [
            optimize.minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
            for start in starts
        ]
    best = min(found, key=lambda result: result.fun).x
    exponents = best[terms + 1 :]
    coefficients = np.exp(best[1 : terms + 1]) * np.array(scales) ** exponents
    return PowerLaw(
        float(np.exp(best[0])) if irreducible else 0.0, tuple(coefficients.tolist()), tuple(exponents.tolist())
    )


def _check(loss: np.ndarray, x: Sequence[np.ndarray], irreducible: bool) -> None:
    numbers = 2 * len(x) + irreducible
    if len(loss) <= numbers:
        raise UserError(
            f"a law of {numbers} numbers needs at least {numbers + 1} runs, and there are {len(loss)}: through as many "
            "as it has numbers it goes whatever they are. Add runs."
        )
    for values in x:
        if not (np.isfinite(values).all() and (np.asarray(values) > 0).all()):
            raise UserError("a law needs positive parameters, tokens and FLOPs.")
        if len(np.unique(values)) < 3:
            raise UserError(
                f"a power with an irreducible term needs at least three values of its variable, and there are "
                f"{len(np.unique(values))}. Add runs of other sizes or budgets."
            )
    if not (np.isfinite(loss).all() and (np.asarray(loss) > 0).all()):
        raise UserError("a loss is not a positive number: a run that diverged is no point of a law. Leave it out.")


def fit_points(
    points: Sequence[Point],
    variables: tuple[str, ...],
    *,
    delta: float = HUBER_DELTA,
    resamples: int = 200,
    seed: int = 0,
) -> Fit:
    """`fit` of the points' loss by their fields `variables`, and bootstrap: points drawn with replacement.

    A draw with fewer than three values of a variable, or fewer different points than the law has numbers, is drawn
    again. UserError: as `fit`.
    """
    loss, x = columns(points, ("loss",))[0], columns(points, variables)
    law = fit(loss, *x, delta=delta)
    draw, resampled = np.random.default_rng(seed), []
    while len(resampled) < resamples:
        rows = draw.integers(len(points), size=len(points))
        enough = len(np.unique(rows)) > 2 * len(x) and all(len(np.unique(values[rows])) >= 3 for values in x)
        if enough:
            resampled.append(fit(loss[rows], *(values[rows] for values in x), delta=delta, tries=2))
    return Fit(variables, law, tuple(points), tuple(resampled))


def fit_all(points: Sequence[Point], **settings) -> tuple[dict[str, Fit], dict[str, str]]:
    """Every law that the points allow, and of the others why not.

    Returns:
      ({"L(N,D)": all points; "L(N)": of the largest token budget that four sizes share; "L(D)": of the largest size
      with four budgets; "L(C)": of the runs that no cheaper one beats}, {name: reason})
    """
    whole = [point for point in points if point.parameters and point.tokens]
    chosen = {
        "L(N,D)": (whole, ("parameters", "tokens")),
        "L(N)": (_largest_group(whole, "tokens"), ("parameters",)),
        "L(D)": (_largest_group(whole, "parameters"), ("tokens",)),
        "L(C)": (frontier(points), ("compute",)),
    }
    fits, refused = {}, {}
    for name, (own, variables) in chosen.items():
        try:
            fits[name] = fit_points(own, variables, **settings)
        except UserError as error:
            refused[name] = str(error)
    return fits, refused


def _largest_group(points: Sequence[Point], field: str, least: int = 4) -> list[Point]:
    """The points that share the largest value of `field` which at least so many share."""
    groups: dict[float, list[Point]] = {}
    for point in points:
        groups.setdefault(getattr(point, field), []).append(point)
    shared = [value for value, group in groups.items() if len(group) >= least]
    return groups[max(shared)] if shared else []


def frontier(points: Sequence[Point]) -> list[Point]:
    """The points that no point of as little compute or less beats, by compute."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda point: (point.compute, point.loss)):
        if not kept or point.loss < kept[-1].loss:
            kept.append(point)
    return kept


def backtest(points: Sequence[Point], factor: float = 4.0, **settings) -> tuple[Point, float, int] | None:
    """The run of the most compute, foretold by L(N,D) of those with at most 1/factor of it.

    Returns:
      (that run, the loss foretold, the number of points); None where there are too few for a law.
    """
    whole = [point for point in points if point.parameters and point.tokens]
    if not whole:
        return None
    largest = max(whole, key=lambda point: point.compute)
    smaller = [point for point in whole if factor * point.compute <= largest.compute]
    try:
        one = fit_points(smaller, ("parameters", "tokens"), resamples=0, **settings)
    except UserError:
        return None
    return largest, float(one.law(largest.parameters, largest.tokens)), len(smaller)


def compute_optimal(law: PowerLaw, compute: float | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """N and D = compute / 6N with the least L(N, D) (Hoffmann et al. 2022, equation 4)."""
    (A, B), (a, b) = law.coefficients, law.exponents
    products = np.asarray(compute, float) / 6
    parameters = (a * A / (b * B)) ** (1 / (a + b)) * products ** (b / (a + b))
    return parameters, products / parameters
