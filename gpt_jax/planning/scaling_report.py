"""Scaling laws for people: the table of runs, the laws with their intervals, and the pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpt_jax.planning.scaling_laws import GPT3_COMPUTE, PETAFLOP_DAY, Fit, Point, columns, compute_optimal

FORMS = {
    "L(N,D)": "L = {E:.4g} + {coefficient_parameters:.4g}/N^{exponent_parameters:.4g} + "
    "{coefficient_tokens:.4g}/D^{exponent_tokens:.4g}",
    "L(N)": "L = {E:.4g} + {coefficient_parameters:.4g}/N^{exponent_parameters:.4g}",
    "L(D)": "L = {E:.4g} + {coefficient_tokens:.4g}/D^{exponent_tokens:.4g}",
    "L(C)": "L = {E:.4g} + {coefficient_compute:.4g}/C^{exponent_compute:.4g}",
}
LEGEND = (
    "N: parameters without embeddings. D: tokens. C = 6·N·D FLOPs; FLOPs: by formula, with the output matrix and "
    "attention. Loss: nats per token of held-out text. In square brackets: 90% bootstrap intervals over the runs."
)
COMPARISON = (
    "GPT-3's line speaks of another text and a vocabulary of 50,257, so only its slope compares, not its level; and it "
    "was fitted to runs of many orders of magnitude more compute."
)


def render(result: dict[str, Any], fits: dict[str, Fit]) -> str:
    """The report in Markdown, without its pictures; `result` as runs/scaling.py returns it."""
    lines = ["# Scaling laws", "", *_prediction(result), *_backtest(result), *_optimal(result), "## Laws", ""]
    lines += ["| law | runs | fitted | E | exponents | largest residual |", "|---|---|---|---|---|---|"]
    for name, law in result["laws"].items():
        spans = law["intervals"]
        exponents = ", ".join(_span(spans[key]) for key in spans if key.startswith("exponent"))
        lines.append(
            f"| {name} | {len(law['points'])} | {FORMS[name].format(**law['values'])} | {_span(spans['E'])} | "
            f"{exponents} | {law['largest_residual']:.2%} |"
        )
    lines += [f"| {name} | | not fitted: {why} | | | |" for name, why in result["not_fitted"].items()]
    if result["pure_exponent"] is not None:
        lines += [
            "",
            f"Without an irreducible term, as GPT-3's L = 2.57·C^-0.048 (C in petaflop/s-days) is written, L(C) falls "
            f"as C^-{result['pure_exponent']:.3f}. {COMPARISON}",
        ]
    return "\n".join([*lines, "", "## Runs", "", *_runs(result, fits), "", LEGEND, ""])


def _prediction(result: dict[str, Any]) -> list[str]:
    foretold, measured = result["prediction"], result["measured"]
    if foretold is None:
        return []
    low, high = foretold["interval"]
    lines = [
        f"**{foretold['run']}**, {foretold['times_the_largest']:.1f} times the compute of the largest run read: "
        f"**foretold {foretold['loss']:.4f}** (90%: {low:.4f} to {high:.4f}) on {foretold['time']}, before it was "
        f"made, by L(N,D) of {len(foretold['points'])} runs"
    ]
    if foretold["by_compute"]:
        lines[0] += f"; by L(C) {foretold['by_compute'][0]:.4f}"
    lines[0] += "."
    if (now := len(result["laws"]["L(N,D)"]["points"])) != len(foretold["points"]):
        lines[0] += f" The laws below are of {now} runs, some of which ended later."
    if measured:
        lines.append(f"**Measured {measured['loss']:.4f}**: the prediction was {result['error']:+.2%} off.")
    else:
        lines.append("It is not made yet.")
    return [*lines, ""]


def _backtest(result: dict[str, Any]) -> list[str]:
    tested = result["backtest"]
    if tested is None:
        return []
    return [
        f"Backtest: {tested['run']}, the run of the most compute, is foretold {tested['foretold']:.4f} by the "
        f"{tested['points']} runs with at most a quarter of it; measured {tested['measured']:.4f} "
        f"({tested['foretold'] / tested['measured'] - 1:+.2%}).",
        "",
    ]


def _optimal(result: dict[str, Any]) -> list[str]:
    best = result["optimal"]
    if best is None:
        return []
    return [
        f"Least loss for {best['budget']:.3g} FLOPs ({best['times_the_largest']:.3g} times the largest run): "
        f"{_count(best['parameters'])} parameters [{_span(best['parameters_interval'], _count)}] on "
        f"{_count(best['tokens'])} tokens [{_span(best['tokens_interval'], _count)}], loss {best['loss']:.4f}.",
        "",
    ]


def _runs(result: dict[str, Any], fits: dict[str, Fit]) -> list[str]:
    law = fits["L(N,D)"].law if "L(N,D)" in fits else None
    lines = ["| run | N | D | D/N | C | FLOPs | loss | law | measured/law | bits per byte |", "|" + "---|" * 10]
    for point in [*result["points"], *([result["measured"]] if result["measured"] else [])]:
        N, D = point["parameters"], point["tokens"]
        by_law = float(law(N, D)) if law and N and D else None
        name = point["name"] + ("" if point.get("used", True) else " (left out)")
        cells = [
            name, _count(N), _count(D), f"{D / N:.1f}" if N and D else "", f"{point['compute']:.3g}",
            f"{point['flops']:.3g}" if point["flops"] else "", f"{point['loss']:.4f}",
            f"{by_law:.4f}" if by_law else "", f"{point['loss'] / by_law - 1:+.2%}" if by_law else "",
            f"{point['bits_per_byte']:.4f}" if point["bits_per_byte"] else "",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _count(number: float | None) -> str:
    """12_300_000 as 12.3M."""
    if number is None:
        return ""
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:.3g}{name}"
    return f"{number:.3g}"


def _span(interval: tuple[float, float], form=lambda number: f"{number:.3g}") -> str:
    return f"{form(interval[0])} to {form(interval[1])}"


def write_pictures(
    folder: Path,
    points: Sequence[Point],
    used: Sequence[Point],
    fits: dict[str, Fit],
    prediction: dict[str, Any] | None,
    measured: Point | None,
) -> list[tuple[str, str]]:
    """Draws curves.png, and residuals.png and optimal.png where L(N,D) was fitted; returns (name, what it shows).

    Points that are not `used`, of which no law knows, are crosses.
    """
    drawn = [("curves.png", "Loss by compute")]
    _draw(folder / "curves.png", lambda axes: _curves(axes, points, used, fits, prediction, measured))
    if "L(N,D)" in fits:
        drawn += [("residuals.png", "What the law misses"), ("optimal.png", "The best size by compute")]
        _draw(folder / "residuals.png", lambda axes: _residuals(axes, fits["L(N,D)"], measured))
        _draw(folder / "optimal.png", lambda axes: _optimal_sizes(axes, fits["L(N,D)"], prediction))
    return drawn


def _draw(path: Path, draw) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 5), layout="constrained")
    FigureCanvasAgg(figure)  # drawn in memory: no display, no global state
    axes = figure.subplots()
    draw(axes)
    axes.grid(alpha=0.3, which="both")
    figure.legend(fontsize=8, loc="outside right upper")  # beside: it would cover points
    figure.savefig(path, dpi=120)


def _groups(points: Sequence[Point]) -> dict[float | None, list[Point]]:
    """The points by their size, in order."""
    sizes = sorted({point.parameters for point in points if point.parameters})
    groups = {size: sorted((p for p in points if p.parameters == size), key=lambda p: p.compute) for size in sizes}
    rest = [point for point in points if not point.parameters]
    return groups | ({None: rest} if rest else {})


def _curves(axes, points, used, fits, prediction, measured) -> None:
    largest = max([p.compute for p in points] + ([prediction["compute"]] if prediction else []))
    span = np.geomspace(min(point.compute for point in points) / 1.5, 2 * largest, 200)
    for number, (size, group) in enumerate(_groups(points).items()):
        color = f"C{number % 10}"
        if short := [point for point in group if point not in used]:
            axes.plot(*columns(short, ("compute", "loss")), "x", color=color)
            group = [point for point in group if point in used]
        axes.plot(
            *columns(group, ("compute", "loss")), "o", color=color, label=f"N = {_count(size)}" if size else "runs"
        )
        if size and group and "L(N,D)" in fits:
            own = np.geomspace(group[0].compute / 1.2, group[-1].compute * 2, 50)
            axes.plot(own, fits["L(N,D)"].law(size, own / 6 / size), color=color, linewidth=0.8)
    if "L(N,D)" in fits:
        law = fits["L(N,D)"].law
        axes.plot(span, law(*compute_optimal(law, span)), "k--", linewidth=1, label="L(N,D) at the best N and D")
    if "L(C)" in fits:
        axes.plot(span, fits["L(C)"].law(span), color="0.5", linewidth=1, label="L(C) of the best runs")
    axes.plot(
        span, GPT3_COMPUTE(span / PETAFLOP_DAY), "k:", label="GPT-3: 2.57·C^-0.048\n(slopes compare, levels do not)"
    )
    if prediction:
        low, high = prediction["interval"]
        spread = [[prediction["loss"] - low], [high - prediction["loss"]]]
        axes.errorbar(
            prediction["compute"], prediction["loss"], np.maximum(spread, 0), fmt="*", mfc="none", color="C3",
            markersize=14, capsize=3, label=f"{prediction['run']} foretold: {prediction['loss']:.3f}",
        )  # fmt: skip
    if measured:
        axes.plot(
            measured.compute, measured.loss, "*", color="C3", label=f"{measured.name} measured: {measured.loss:.3f}"
        )
    axes.set(xscale="log", yscale="log", xlabel="C = 6·N·D, FLOPs", ylabel="held-out loss (nats per token)")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(lambda value, _: f"{value:g}")


def _residuals(axes, fit: Fit, measured: Point | None) -> None:
    misses = 100 * np.expm1(fit.residuals())
    for number, (size, group) in enumerate(_groups(fit.points).items()):
        rows = [fit.points.index(point) for point in group]
        axes.plot([p.tokens for p in group], misses[rows], "o-", color=f"C{number % 10}", label=f"N = {_count(size)}")
    if measured:
        miss = 100 * (measured.loss / float(fit.law(measured.parameters, measured.tokens)) - 1)
        axes.plot(measured.tokens, miss, "*", color="C3", markersize=14, label=f"{measured.name}, held out")
    axes.axhline(0, color="k", linewidth=0.8)
    axes.set(xscale="log", xlabel="D, tokens", ylabel="measured above L(N,D), %")


def _optimal_sizes(axes, fit: Fit, prediction: dict[str, Any] | None) -> None:
    compute = np.array([point.compute for point in fit.points])
    span = np.geomspace(compute.min(), 10 * compute.max(), 100)
    every = [compute_optimal(law, span)[0] for law in fit.resampled]
    axes.fill_between(span, *np.percentile(every, (5, 95), axis=0), alpha=0.2, label="90% of the resampled laws")
    axes.plot(span, compute_optimal(fit.law, span)[0], label="least L(N,D)")
    axes.plot(compute, [point.parameters for point in fit.points], "k.", label="runs")
    if prediction:
        axes.plot(prediction["compute"], prediction["parameters"], "*", color="C3", markersize=14, label="held out")
    axes.set(xscale="log", yscale="log", xlabel="C = 6·N·D, FLOPs", ylabel="N, parameters without embeddings")
