"""What a mixture is made of: sources with weights, which may change at given steps; and GPT-3's.

As text, which is JSON: {"books": 3, "file:web/*.jsonl.zst": 1}, or from which step on which weights hold:
{"0": {"books": 3, "file:web/*.jsonl.zst": 1}, "20000": {"books": 1, "file:web/*.jsonl.zst": 1}}.

    python -m gpt_jax.data.mixture [TOKENS]     prints GPT-3's table 2.2 and its epochs for so many tokens
"""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpt_jax.errors import UserError

# Brown et al. 2020, table 2.2: (weight in per cent, tokens). The printed weights add up to 101. Of the epochs printed
# beside them for 300B tokens, WebText2's 2.9 and Wikipedia's 3.4 do not follow from the other columns (3.47 and 3).
GPT3 = {
    "common_crawl": (60, 410e9),
    "webtext2": (22, 19e9),
    "books1": (8, 12e9),
    "books2": (8, 55e9),
    "wikipedia": (3, 3e9),
}
EXAMPLE = '{"books": 3, "file:web/*.jsonl.zst": 1}'


@dataclass(frozen=True)
class Phase:
    """From `step` on (counted from 0), the weight of each source that is drawn; they add up to 1."""

    step: int
    weights: Mapping[str, float]


@dataclass(frozen=True)
class Mixture:
    """Phases in order, the first from step 0 on."""

    phases: tuple[Phase, ...]

    @property
    def names(self) -> list[str]:
        """All sources, as they come up."""
        return list(dict.fromkeys(name for phase in self.phases for name in phase.weights))

    @property
    def shares(self) -> dict[str, float]:
        """The weight of each source, on average over the phases, however long these are."""
        return {
            name: math.fsum(phase.weights.get(name, 0.0) for phase in self.phases) / len(self.phases)
            for name in self.names
        }


def parse_mixture(text: str, field: str = "data.mixture") -> Mixture:
    """The mixture that `text` says; sources of weight 0 are left out of their phase.

    Raises:
      UserError: for what is no JSON of the expected form, and weights that are negative, not finite, or all 0.
    """
    try:
        said = json.loads(text, object_pairs_hook=_without_doubles)
    except ValueError as error:
        raise UserError(f"{field}={text!r} is no JSON: {error}. Expected '{EXAMPLE}'.") from None
    if not isinstance(said, dict) or not said:
        raise UserError(f"{field}={text!r}: expected an address and a weight for each source, as in '{EXAMPLE}'.")
    if not any(isinstance(value, dict) for value in said.values()):
        said = {"0": said}
    steps = {_step(key, value, field): value for key, value in said.items()}
    if len(steps) < len(said) or 0 not in steps:
        raise UserError(
            f"{field}={text!r}: expected each step once, and what holds from the beginning as step 0, as in "
            f'\'{{"0": {EXAMPLE}, "20000": ...}}\'.'
        )
    return Mixture(tuple(Phase(step, _normalised(steps[step], field)) for step in sorted(steps)))


def implied_epochs(weights: Mapping[str, float], sizes: Mapping[str, float], tokens: float) -> dict[str, float]:
    """How often each source is seen when `tokens` are drawn by `weights`, normalised: weight * tokens / size."""
    total = math.fsum(weights.values())
    return {name: weight / total * tokens / sizes[name] for name, weight in weights.items()}


def gpt3_table(tokens: float) -> str:
    """Table 2.2 with the epochs that its weights, normalised, imply for a budget of `tokens`."""
    weights = {name: weight for name, (weight, _) in GPT3.items()}
    epochs = implied_epochs(weights, {name: size for name, (_, size) in GPT3.items()}, tokens)
    lines = [f"{'source':<14}{'tokens':>8}{'weight':>8}{'normalised':>12}{'epochs':>8}"]
    for name, (weight, size) in GPT3.items():
        share = weight / sum(weights.values())
        lines.append(f"{name:<14}{f'{size / 1e9:.0f}B':>8}{f'{weight}%':>8}{share:>12.2%}{epochs[name]:>8.2f}")
    return "\n".join([*lines, f"for {tokens / 1e9:,.6g}B tokens (Brown et al. 2020, table 2.2)"])


def _step(key: str, weights: Any, field: str) -> int:
    if isinstance(weights, dict) and key.isdecimal() and len(key) < 19:
        return int(key)
    raise UserError(
        f"{field}: {key!r}: {json.dumps(weights)}. Expected weights alone, or for each of some steps the weights from "
        f"there on: '{EXAMPLE}' or '{{\"0\": {EXAMPLE}, \"20000\": ...}}'."
    )


def _normalised(weights: dict[str, Any], field: str) -> dict[str, float]:
    for name, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight <= 1e300:
            raise UserError(
                f"{field}: the weight of {name!r} is {json.dumps(weight)[:40]}; expected a number from 0 to 1e300."
            )
    total = math.fsum(weights.values())
    if not total:
        raise UserError(f"{field}: all weights are 0 in {json.dumps(weights)}; give at least one source more.")
    return {name: weight / total for name, weight in weights.items() if weight}


def _without_doubles(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if doubles := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{', '.join(map(repr, doubles))} stands there twice")
    return dict(pairs)


if __name__ == "__main__":
    print(gpt3_table(float(sys.argv[1]) if len(sys.argv) > 1 else 300e9))
