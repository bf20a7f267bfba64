"""Scaling laws: a ladder of pretraining runs, the laws that their losses follow, and the loss of a larger one foretold.

Kaplan et al. 2020, "Scaling Laws for Neural Language Models"; GPT-3's figure 3.1; Hoffmann et al. 2022, approach 3.
"""

import dataclasses
import datetime
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from gpt_jax import configuration
from gpt_jax.errors import UserError
from gpt_jax.extras import require
from gpt_jax.models.presets import model_config
from gpt_jax.parallel.runtime import announce, do_on_main_process
from gpt_jax.planning.scaling_laws import Fit, Point, backtest, columns, compute_optimal, fit, fit_all
from gpt_jax.planning.scaling_report import render, write_pictures
from gpt_jax.runs import pretrain
from gpt_jax.runs.scaling_points import check_same_text, is_done, parameters_without_embeddings, read, read_workdir
from gpt_jax.runs.workdir import open_workdir

# Fields of this run; all others are those of each of its runs.
OWN = ("ladder", "held_out", "read", "budget", "scaling")
# What may change from start to start: more runs may join, and laws be fitted in another way.
FREE_TO_CHANGE = (
    *configuration.FREE_TO_CHANGE,
    *("ladder", "held_out", "read", "budget"),
    *("scaling.huber_delta", "scaling.least_tokens", "scaling.resamples"),
)
_UNITS = {"": 1, "k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}


class Rung(NamedTuple):
    """One run of the ladder: the width and the layers of its decoder, and how many tokens it sees."""

    width: int
    layers: int
    tokens: float
    name: str


class Findings(NamedTuple):
    """The points, those among them that laws are fitted to, the laws, and why others were not fitted."""

    points: list[Point]
    used: list[Point]
    fits: dict[str, Fit]
    refused: dict[str, str]


def run(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Makes the runs of the ladder that are not done, each in WORKDIR/ladder/NAME, fits the laws, and foretells.

    The prediction of `held_out` is written before that run begins, and never again.

    Returns, and writes as scaling.json: what `publish` puts together.

    Raises:
      UserError: for everything that the caller can mend; Interrupted: stopped by a signal, the state saved.
    """
    rungs, held_out = check(config)
    ladder = workdir / "ladder"
    with open_workdir(workdir):
        recorded = configuration.as_json(config)
        configuration.check_same(workdir, "config.json", recorded, what="config", free=FREE_TO_CHANGE)
        points, workdirs = read(config.read)
        check_same_text(workdirs)
        for number, rung in enumerate(rungs, start=1):
            announce(f"--- run {number} of {len(rungs)}: {rung.name}")
            train(config, rung, ladder)
        own = [ladder / rung.name for rung in rungs]
        check_same_text([*workdirs, *own])
        points += [read_workdir(folder) for folder in own]
        found = find_laws(config, points)
        do_on_main_process(lambda: configuration.write_json(workdir / "config.json", recorded))
        if not held_out:
            return publish(config, found, None, None, workdir)
        prediction, folder = foretell(config, held_out, found, workdir), ladder / held_out.name
        if not is_done(folder):
            publish(config, found, prediction, None, workdir)
            train(config, held_out, ladder)
        check_same_text([*workdirs, *own, folder])
        return publish(config, found, prediction, read_workdir(folder), workdir)


def check(config: ConfigDict) -> tuple[list[Rung], Rung | None]:
    """The runs of the ladder and the one that is foretold. UserError: for what would stop a run, before the first."""
    require("scipy.optimize", "finetune")
    train = config.train
    others = {"data.mixture": config.data.mixture, "train.ramp_tokens": train.ramp_tokens, "train.tokens": train.tokens}
    if given := [f"{field}={value}" for field, value in others.items() if value]:
        raise UserError(
            f"{', '.join(given)}: the runs of a ladder are of one text, their lengths stand in `ladder`, and their "
            "batches are full from the start. Leave it out."
        )
    rungs = parse_ladder(config.ladder, "ladder")
    held_out = parse_ladder(config.held_out, "held_out")
    if len(held_out) > 1:
        raise UserError(f"held_out={config.held_out}: expected one run, as in 160x7@12M.")
    names = [rung.name for rung in (*rungs, *held_out)]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(
            f"{', '.join(twice)} stands twice in ladder and held_out: a run is made once, and one that is foretold is "
            "no point of the law that foretells it."
        )
    if not rungs and not config.read:
        raise UserError("nothing to fit a law to: give ladder=48x2@0.8M,..., or read=PATHS of finished runs.")
    least = 6 if held_out or config.budget else 4
    if not config.read and len(rungs) < least:
        raise UserError(
            f"ladder={config.ladder}: {len(rungs)} runs, and {least} are the least that a law goes through."
        )
    if config.scaling.resamples < 20:
        raise UserError(f"scaling.resamples={config.scaling.resamples}: expected at least 20, 200 for quiet intervals.")
    if not config.scaling.huber_delta > 0:
        raise UserError(f"scaling.huber_delta={config.scaling.huber_delta}: expected a positive number, such as 1e-3.")
    if not config.budget >= 0:
        raise UserError(f"budget={config.budget}: expected FLOPs, such as 1e15, or 0.")
    for rung in (*rungs, *held_out):
        pretrain.resolve(single_run(config, rung))
    return rungs, held_out[0] if held_out else None


def parse_ladder(words: str, field: str) -> list[Rung]:
    """The runs of "48x2@0.8M/1.6M,64x3@1.6M": width x layers @ budgets of tokens. UserError: it is not of this form."""
    rungs = []
    for word in filter(None, (word.strip() for word in words.split(","))):
        match = re.fullmatch(r"(\d+)x(\d+)@(.+)", word)
        for budget in match[3].split("/") if match else [""]:
            tokens = re.fullmatch(r"(\d+(?:\.\d+)?(?:e\d+)?)([kMBT]?)", budget)
            if not tokens or float(tokens[1]) > 1e18:
                raise UserError(
                    f"{field}: {word!r}: expected WIDTHxLAYERS@TOKENS, as in 48x2@0.8M, or 48x2@0.8M/1.6M for two runs."
                )
            rungs.append(
                Rung(
                    int(match[1]),
                    int(match[2]),
                    float(tokens[1]) * _UNITS[tokens[2]],
                    f"{match[1]}x{match[2]}@{budget}",
                )
            )
    return rungs


def single_run(config: ConfigDict, rung: Rung) -> ConfigDict:
    """The config of one pretraining run: its size, its length, and a learning rate that falls with the width."""
    own = config.copy_and_resolve_references().unlock()
    s = own.scaling
    for name in OWN:
        del own[name]
    own.run = "pretrain"
    if rung.width < 1 or rung.width % s.head_dim:
        raise UserError(f"{rung.name}: the width must be a multiple of scaling.head_dim={s.head_dim}.")
    own.model.update(embed_dim=rung.width, num_layers=rung.layers, num_heads=rung.width // s.head_dim)
    steps = round(rung.tokens / (own.train.batch_size * own.data.sequence_length))
    if steps < 2:
        raise UserError(
            f"{rung.name}: {rung.tokens:,.0f} tokens are no two steps of {own.train.batch_size} x "
            f"{own.data.sequence_length}. Give it more."
        )
    own.train.update(steps=steps, epochs=0.0)
    own.schedule.peak *= (rung.width / s.base_width) ** s.peak_exponent
    own.schedule.warmup_steps = min(max(own.schedule.warmup_steps, round(s.warmup_fraction * steps)), steps - 1)
    return own.lock()


def train(config: ConfigDict, rung: Rung, ladder: Path) -> None:
    """Makes one run, or goes on with it, unless it is done."""
    if not is_done(ladder / rung.name):
        pretrain.run(single_run(config, rung), ladder / rung.name)


def find_laws(config: ConfigDict, points: list[Point]) -> Findings:
    """Every law that the points allow. UserError: the same run twice, or there is no law."""
    seen: dict[tuple, Point] = {}
    for point in points:
        other = seen.setdefault((point.parameters, point.tokens, point.compute, point.loss), point)
        if other is not point:
            raise UserError(f"{other.name} and {point.name} are the same run: read it once.")
    s = config.scaling
    used = [point for point in points if point.tokens is None or point.tokens >= s.least_tokens]
    fits, refused = fit_all(used, delta=s.huber_delta, resamples=s.resamples, seed=config.seed)
    if not fits:
        raise UserError("no law can be fitted:\n" + "\n".join(f"  {law}: {why}" for law, why in refused.items()))
    return Findings(points, used, fits, refused)


def foretell(config: ConfigDict, rung: Rung, found: Findings, workdir: Path) -> dict[str, Any]:
    """The loss of a run that is not yet made: prediction.json, as it stands or as it is now written.

    UserError: the run was begun before there was a prediction, or the prediction there is of another.
    """
    path = workdir / "prediction.json"
    if path.exists():
        try:
            earlier = json.loads(path.read_text())
            name = earlier["run"]
        except (ValueError, LookupError, TypeError) as error:
            raise UserError(f"{path} is damaged ({error!r}): restore it; a prediction is not made twice.") from None
        if name != rung.name:
            raise UserError(
                f"{path} foretells {name}, not {rung.name}; it is never rewritten. Set held_out={name}, or use another "
                "--workdir (read=PATHS takes the runs there)."
            )
        return earlier
    if (workdir / "ladder" / rung.name).exists():
        raise UserError(
            f"{workdir / 'ladder' / rung.name} was begun before its loss was foretold: no prediction any more. Choose "
            "another held_out."
        )
    if "L(N,D)" not in found.fits:
        raise UserError(f"{rung.name} cannot be foretold without L(N,D): {found.refused['L(N,D)']}")
    resolved, _ = pretrain.resolve(single_run(config, rung))
    size = parameters_without_embeddings(model_config(**resolved.model))
    tokens = resolved.train.steps * resolved.train.batch_size * resolved.data.sequence_length
    compute = 6 * size * tokens
    if known := [point.name for point in found.points if (point.parameters, point.tokens) == (size, tokens)]:
        raise UserError(
            f"{known[0]} among the runs read is {rung.name} itself: a loss that is known is not foretold. Leave it out "
            "of read, or choose another held_out."
        )
    laws = {"L(N,D)": (size, tokens), "L(C)": (compute,)}
    foretold = {name: found.fits[name].predict(*x, seed=config.seed) for name, x in laws.items() if name in found.fits}
    prediction = dict(
        run=rung.name, time=datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        parameters=size, tokens=tokens, compute=compute,
        times_the_largest=compute / max(point.compute for point in found.used),
        loss=foretold["L(N,D)"][0], interval=foretold["L(N,D)"][1], by_compute=foretold.get("L(C)"),
        law=dataclasses.asdict(found.fits["L(N,D)"].law), points={point.name: point.loss for point in found.used},
    )  # fmt: skip
    do_on_main_process(lambda: configuration.write_json(path, prediction))
    announce(f"{rung.name}: foretold {prediction['loss']:.4f} nats per token; {path}")
    return json.loads(json.dumps(prediction))


def publish(
    config: ConfigDict, found: Findings, prediction: dict[str, Any] | None, measured: Point | None, workdir: Path
) -> dict[str, Any]:
    """Writes scaling.json, report.md and its pictures; prints the table. Returns what scaling.json holds."""
    tested = backtest(found.used, delta=config.scaling.huber_delta)
    result = dict(
        points=[dataclasses.asdict(point) | {"used": point in found.used} for point in found.points],
        laws={name: describe(one) for name, one in found.fits.items()},
        not_fitted=found.refused,
        pure_exponent=pure_exponent(found.fits, config.scaling.huber_delta),
        backtest=tested and dict(run=tested[0].name, measured=tested[0].loss, foretold=tested[1], points=tested[2]),
        optimal=optimal(config.budget, found) if config.budget else None,
        prediction=prediction,
        measured=measured and dataclasses.asdict(measured),
        error=measured and prediction["loss"] / measured.loss - 1,
    )
    text = render(result, found.fits)

    def write() -> None:
        configuration.write_json(workdir / "scaling.json", result)
        pictures = write_pictures(workdir, found.points, found.used, found.fits, prediction, measured)
        (workdir / "report.md").write_text("\n".join([text, *(f"\n![{alt}]({name})" for name, alt in pictures)]) + "\n")

    do_on_main_process(write)
    announce(text)
    announce(f"report: {workdir / 'report.md'}")
    return result


def describe(one: Fit) -> dict[str, Any]:
    """A fit as plain numbers, each with its interval."""
    names = ("E", *(f"{kind}_{variable}" for variable in one.variables for kind in ("coefficient", "exponent")))

    def numbers(law) -> list[float]:
        pairs = zip(law.coefficients, law.exponents, strict=True)
        return [law.irreducible, *(number for pair in pairs for number in pair)]

    return dict(
        values=dict(zip(names, numbers(one.law), strict=True)),
        intervals={
            name: one.interval(lambda law, place=place: numbers(law)[place]) for place, name in enumerate(names)
        },
        points=[point.name for point in one.points],
        largest_residual=float(abs(one.residuals()).max()),
    )


def pure_exponent(fits: dict[str, Fit], delta: float) -> float | None:
    """The exponent of a law of compute without an irreducible term, as GPT-3's is; None without L(C)."""
    if "L(C)" not in fits:
        return None
    loss, compute = columns(fits["L(C)"].points, ("loss", "compute"))
    return fit(loss, compute, irreducible=False, delta=delta).exponents[0]


def optimal(budget: float, found: Findings) -> dict[str, Any]:
    """The size and the tokens with the least loss for `budget` FLOPs, with intervals. UserError: no L(N,D)."""
    if "L(N,D)" not in found.fits:
        raise UserError(f"budget={budget:g}: no size can be chosen without L(N,D): {found.refused['L(N,D)']}")
    one = found.fits["L(N,D)"]
    parameters, tokens = compute_optimal(one.law, budget)
    largest = max(point.compute for point in one.points)
    if budget > 10 * largest:
        announce(
            f"budget={budget:g} is {budget / largest:,.0f} times the largest run: far outside of what was measured"
        )
    return dict(
        budget=budget,
        parameters=float(parameters),
        parameters_interval=one.interval(lambda law: compute_optimal(law, budget)[0]),
        tokens=float(tokens),
        tokens_interval=one.interval(lambda law: compute_optimal(law, budget)[1]),
        loss=float(one.law(parameters, tokens)),
        times_the_largest=budget / largest,
    )
