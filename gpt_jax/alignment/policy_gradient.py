"""One iteration of PPO or GRPO: answers are drawn, judged, and learnt from in several passes.

All that an iteration draws follows from the run's seed and the number of iterations made: a run that is killed anywhere
in one begins it again, and the numbers are the same.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from gpt_jax.alignment.grpo import GRPO
from gpt_jax.alignment.kl import next_coefficient
from gpt_jax.alignment.policy import Policy
from gpt_jax.alignment.ppo import PPO
from gpt_jax.alignment.prompts import Prompt, columns_of
from gpt_jax.alignment.rewards import Episodes, Reward, score
from gpt_jax.alignment.rollouts import Answer, Truncation, answer_arrays, draw_answers
from gpt_jax.errors import UserError
from gpt_jax.inference.engine import Engine
from gpt_jax.inference.sampling import Sampling
from gpt_jax.parallel.rules import sharding
from gpt_jax.text.tokenizer import Tokenizer
from gpt_jax.training.state import TrainState
from gpt_jax.training.step import StepFunction

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Judge:
    """How an answer becomes a score.

    Attributes:
      source: what messages call the reward.
      missing_end_score: of an answer that is not complete, in the place of the reward's; None: the reward's counts.
      missing_end_penalty: taken off the score of such an answer.
    """

    reward: Reward
    source: str
    truncation: Truncation = Truncation()
    missing_end_score: float | None = None
    missing_end_penalty: float = 0.0

    def scores(
        self, prompts: Sequence[Prompt], answers: Sequence[Answer], tokenizer: Tokenizer
    ) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """Scores float64 [B], which answers are complete, bool [B], and their texts as they were judged.

        Raises:
          UserError: see `rewards.score`.
        """
        judged = [self.truncation.judged(answer) for answer in answers]
        texts = [tokenizer.decode(ids) for ids, _ in judged]
        complete = np.array([done for _, done in judged])
        episodes = Episodes([prompt.text for prompt in prompts], texts, columns_of(prompts))
        scores = score(self.reward, episodes, self.source)
        instead = scores if self.missing_end_score is None else self.missing_end_score
        return np.where(complete, scores, instead - self.missing_end_penalty), complete, texts


@dataclasses.dataclass(frozen=True)
class Penalty:
    """The KL penalty inside PPO's rewards; see kl.py. GRPO's stands in its loss."""

    coefficient: float
    target: float | None = None
    horizon: int = 10_000


@dataclasses.dataclass(frozen=True)
class PolicyGradient:
    """An iteration, as a function (state, prompts) -> (state, metrics); see the module's docstring.

    Attributes:
      update: one step of the optimizer on a minibatch, (state, batch, seed) -> (state, metrics).
      reference: its decoder's parameters; None: they are `params["model"]`, which stays as it was beside adapters.
      sampling: of the answers, `seed` and all.
      ends: ids that end an answer; positions, longest: T and R.
      epochs, minibatches: how often a rollout is gone through, and in how many parts.
      rows: of a rollout that are examined at once; slots: answers that are drawn at once.
      average_decay: of the average of the weights (`state.aux["average"]`), an iteration; 0: there is none.
      max_kl: nats an answer at which the run is stopped; 0: never.
      pretraining: of an update's number, the batch of text it learns from too (PPO-ptx); None: there is none.
      last_good: of the number of iterations made, in words, the checkpoints before it.
    """

    policy: Policy
    objective: PPO | GRPO
    update: StepFunction
    judge: Judge
    reference: Any
    tokenizer: Tokenizer
    mesh: jax.sharding.Mesh
    sampling: Sampling
    ends: tuple[int, ...]
    positions: int
    longest: int
    epochs: int
    minibatches: int
    rows: int
    slots: int
    penalty: Penalty = Penalty(0.0)
    average_decay: float = 0.0
    max_kl: float = 0.0
    pretraining: Callable[[int], Arrays] | None = None
    last_good: Callable[[int], str] = lambda step: "none"

    def __call__(self, state: TrainState, prompts: Sequence[Prompt]) -> tuple[TrainState, dict[str, Any]]:
        """One iteration on one answer to each of `prompts` (of GRPO, those of a group stand together).

        Raises:
          UserError: a reward that is none, or a KL beyond `max_kl`.
        """
        times = [time.perf_counter()]
        step = int(state.step)
        answers = self.answers(self.decoder(state), prompts, first=step * len(prompts))
        times.append(time.perf_counter())
        rollout, metrics = self.judged(state.params, prompts, answers)
        self.check_kl(metrics["kl"], step)
        coefficient = float(state.aux.get("coefficient", self.penalty.coefficient))
        metrics |= {"reward": metrics["score"] - coefficient * metrics["kl"], "coefficient": coefficient}
        rollout |= self.objective.credit(rollout.pop("scores"))
        times.append(time.perf_counter())
        state, learnt = self.learnt(state, rollout, coefficient, metrics["kl"])
        times.append(time.perf_counter())
        parts = zip(("rollout", "scoring", "learning"), np.diff(times), strict=True)
        return state, learnt | metrics | {f"seconds_{name}": round(float(seconds), 4) for name, seconds in parts}

    def decoder(self, state: TrainState) -> dict:
        """The parameters that answers are drawn with."""
        with jax.set_mesh(self.mesh):
            return self._decoder(state.params)

    @functools.cached_property
    def _decoder(self):
        return jax.jit(self.policy.decoder)

    def answers(self, model: dict, prompts: Sequence[Prompt], *, first: int) -> list[Answer]:
        """An answer to each prompt, of the draws number `first` and on."""
        engine = Engine(
            model, self.policy.config, self.mesh, vocab_size=self.policy.vocab_size, end_ids=self.ends, slots=self.slots
        )
        return draw_answers(engine, [prompt.ids for prompt in prompts], self.sampling, first=first)

    def judged(
        self, params: dict, prompts: Sequence[Prompt], answers: Sequence[Answer]
    ) -> tuple[Arrays, dict[str, float]]:
        """What a rollout leaves to learn from, arrays of B rows, and what is to be told of it."""
        rollout = answer_arrays(
            [prompt.ids for prompt in prompts], answers,
            positions=self.positions, longest=self.longest, pad=self.tokenizer.specials.pad,
        )  # fmt: skip
        rollout |= self.examined(params, rollout)
        scores, complete, _ = self.judge.scores(prompts, answers, self.tokenizer)
        mask, lengths = rollout["mask"], rollout["mask"].sum(1)
        kl = (rollout["log_probs"] - rollout["reference_log_probs"]).sum(1, dtype=np.float64)
        metrics = {
            "score": float(scores.mean()), "score_deviation": float(scores.std()), "kl": float(kl.mean()),
            "entropy": float(rollout.pop("entropy")[mask].mean(dtype=np.float64)), "length": float(lengths.mean()),
            "ended": float(complete.mean()),
        }  # fmt: skip
        return rollout | {"scores": scores.astype(np.float32)}, metrics

    def examined(self, params: dict, rollout: Arrays) -> Arrays:
        """What policy, reference and value function say of a rollout's answers, worked off as the learning is."""
        found = []
        with jax.set_mesh(self.mesh):
            for start in range(0, len(rollout["starts"]), self.rows):
                part = self._on_devices({name: x[start : start + self.rows] for name, x in rollout.items()})
                found.append(jax.device_get(self._examine(params, self.reference, part)))
        return {name: np.concatenate([one[name] for one in found]) for name in found[0]}

    @functools.cached_property
    def _examine(self):
        def examine(params: dict, reference: Any, part: dict) -> dict:
            model = params["model"] if reference is None else reference
            told = {"reference_log_probs": self.policy.reference_log_probs(model, part)}
            return self.policy.judged(params, part) | told

        return jax.jit(examine, out_shardings=NamedSharding(self.mesh, PartitionSpec()))

    def learnt(
        self, state: TrainState, rollout: Arrays, coefficient: float, kl: float
    ) -> tuple[TrainState, dict[str, float]]:
        """The state after all passes over a rollout, and the means of what their updates tell."""
        step, rows = int(state.step), len(rollout["starts"])
        size, number, told = rows // self.minibatches, step * self.epochs * self.minibatches, []
        before = state.step
        state = state.replace(step=jax.device_put(np.int32(number), before.sharding))
        for epoch in range(self.epochs):
            order = permutation(rows, self.sampling.seed, step, epoch)
            for start in range(0, rows, size):
                with jax.set_mesh(self.mesh):
                    minibatch = self._on_devices({name: x[order[start : start + size]] for name, x in rollout.items()})
                    batch, prepared = self._prepare(minibatch, np.float32(coefficient))
                if self.pretraining is not None:
                    batch["pretraining"] = self._on_devices(self.pretraining(number))
                state, metrics = self.update(state, batch, self.sampling.seed)
                told.append(metrics | prepared)
                number += 1
        aux = dict(state.aux)
        if "coefficient" in aux:
            p = self.penalty
            new = next_coefficient(jnp.float32(coefficient), kl, target=p.target, episodes=rows, horizon=p.horizon)
            aux["coefficient"] = jax.device_put(np.float32(new), aux["coefficient"].sharding)
        if "average" in aux:
            aux["average"] = self._average(aux["average"], {name: state.params[name] for name in aux["average"]})
        state = state.replace(step=jax.device_put(np.int32(step + 1), before.sharding), aux=aux)
        told = jax.device_get(told)
        return state, {name: float(np.mean([one[name] for one in told])) for name in told[0]}

    @functools.cached_property
    def _prepare(self):
        return jax.jit(self.objective.prepare)

    @functools.cached_property
    def _average(self):
        decay = self.average_decay
        mean = functools.partial(jax.tree.map, lambda old, new: decay * old + (1 - decay) * new)
        return jax.jit(mean, donate_argnums=0)

    def check_kl(self, kl: float, step: int) -> None:
        """Raises UserError where the policy has left the reference behind."""
        if np.isfinite(kl) and not (self.max_kl and kl > self.max_kl):
            return
        raise UserError(
            f"after {step} iterations the policy is {kl:.4g} nats an answer away from the reference, more than "
            f"train.max_kl={self.max_kl:g}: such answers fool the reward instead of pleasing it. Last good checkpoint: "
            f"{self.last_good(step)}. In a new --workdir, a higher kl.coefficient (of GRPO, objective.beta), a "
            "kl.target or a lower schedule.peak keeps it near."
        )

    def _on_devices(self, arrays: Arrays) -> dict[str, jax.Array]:
        def put(x: np.ndarray) -> jax.Array:
            rows = sharding(x.shape, ("batch", None)[: x.ndim], self.mesh)
            return jax.make_array_from_callback(x.shape, rows, lambda index: x[index])

        return jax.tree.map(put, arrays)


def permutation(count: int, seed: int, step: int, epoch: int) -> np.ndarray:
    """A permutation of `count`, another one in every epoch of every iteration."""
    # The raw bits of a generator are the same in every version of NumPy; its permutations need not be.
    bits = np.random.PCG64(np.random.SeedSequence([seed, step, epoch]))
    return np.argsort(bits.random_raw(count), kind="stable")
