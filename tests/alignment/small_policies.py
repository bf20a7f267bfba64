"""Policies of a few thousand parameters on a vocabulary of letters, small enough to enumerate all their answers."""

import dataclasses
import itertools
from collections.abc import Sequence
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gpt_jax.alignment.grpo import GRPO
from gpt_jax.alignment.policy import Policy
from gpt_jax.alignment.policy_gradient import Judge, Penalty, PolicyGradient
from gpt_jax.alignment.ppo import PPO
from gpt_jax.alignment.prompts import Prompt
from gpt_jax.alignment.rewards import Episodes
from gpt_jax.alignment.rollouts import Answer, Truncation, answer_arrays
from gpt_jax.inference.sampling import Sampling
from gpt_jax.models import decoder
from gpt_jax.models.presets import model_config
from gpt_jax.parallel.mesh import single_device_mesh
from gpt_jax.parallel.rules import tree_shardings
from gpt_jax.training.optimizers import make_optimizer
from gpt_jax.training.state import TrainState, abstract_state, create_state, initial_state
from gpt_jax.training.step import compile_train_step

LETTERS = 6
SIZES = dict(num_layers=1, num_heads=2, embed_dim=16, context_length=8, vocab_size=LETTERS)


class Letters:
    """A tokenizer whose ids are a, b, c, ...; the last of them is the end of a text."""

    vocab_size = LETTERS
    specials = SimpleNamespace(pad=0, end_of_text=LETTERS - 1, beginning_of_text=None)

    def decode(self, ids: Sequence[int]) -> str:
        return "".join("abcdefgh"[id] for id in ids if id != self.specials.end_of_text)


def count_of_b(episodes: Episodes) -> np.ndarray:
    return np.array([answer.count("b") for answer in episodes.answers], float)


@dataclasses.dataclass
class Bandit:
    """A policy that learns to say `b`, and everything that is to be known of it."""

    iteration: PolicyGradient
    state: TrainState
    prompts: list[Prompt]

    def step(self) -> dict:
        self.state, metrics = self.iteration(self.state, self.prompts)
        return metrics

    def exact(self) -> tuple[float, float, float]:
        """Mean reward, KL from the reference, and the mean reward of π_ref exp(r / β) with that KL: enumerated."""
        iteration, longest = self.iteration, self.iteration.longest
        answers = [Answer(list(ids), False) for ids in itertools.product(range(LETTERS), repeat=longest)]
        batch = answer_arrays(
            [self.prompts[0].ids] * len(answers), answers, positions=iteration.positions, longest=longest, pad=0
        )
        with jax.set_mesh(iteration.mesh):
            found = iteration._examine(self.state.params, iteration.reference, jax.tree.map(jnp.asarray, batch))
        log_p, log_ref = (np.asarray(found[name], float).sum(1) for name in ("log_probs", "reference_log_probs"))
        rewards = np.array([answer.ids.count(1) for answer in answers], float)
        reward, kl = np.exp(log_p) @ rewards, np.exp(log_p) @ (log_p - log_ref)

        def optimum(inverse: float) -> tuple[float, float]:
            log_best = log_ref + inverse * rewards
            log_best -= np.log(np.exp(log_best).sum())
            return np.exp(log_best) @ rewards, np.exp(log_best) @ (log_best - log_ref)

        low, high = 0.0, 50.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if optimum(middle)[1] < kl else (low, middle)
        return reward, kl, optimum(low)[0]


def make_bandit(
    objective: PPO | GRPO,
    *,
    mesh: jax.sharding.Mesh | None = None,
    batch: int = 32,
    epochs: int = 2,
    minibatches: int = 2,
    rate: float = 1e-2,
    steps: int = 0,
    penalty: Penalty | None = None,
    temperature: float = 1.0,
    accumulation: int = 1,
    seed: int = 0,
    **fields,
) -> Bandit:
    """A bandit whose prompts are all the same one; `fields` are the iteration's.

    steps: in which the rate falls to 0; 0: it stays.
    """
    mesh = mesh or single_device_mesh()
    config = model_config("gpt2-small", **SIZES)
    policy = Policy(config, LETTERS, temperature)
    updates = steps * epochs * minibatches
    schedule = optax.linear_schedule(rate, 0, updates) if steps else optax.constant_schedule(rate)
    optimizer = make_optimizer("adamw", schedule, epsilon=1e-5, clip_norm=1.0)

    def build() -> TrainState:
        params = {"model": jax.tree.map(lambda x: 2 * x, decoder.init(config, jax.random.key(seed)))}
        if isinstance(objective, PPO):
            params["head"] = {"kernel": jnp.zeros((config.embed_dim, 1)), "bias": jnp.zeros(1)}
        aux = {} if penalty is None else {"coefficient": jnp.float32(penalty.coefficient)}
        return initial_state(params, optimizer).replace(aux=aux)

    abstract = abstract_state(build, mesh)
    state = create_state(build, abstract, mesh)
    reference = jax.tree.map(jnp.copy, state.params["model"])
    reference = jax.device_put(reference, tree_shardings(reference, mesh))
    minibatch = batch // minibatches
    settings = dict(
        update=compile_train_step(
            abstract, mesh, optimizer=optimizer, schedule=schedule, accumulation=accumulation,
            loss_fn=lambda params, part, key: objective.loss(policy, params, part, len(part["starts"]) / minibatch),
        ),
        judge=Judge(count_of_b, "count_of_b", Truncation()),
        reference=reference,
        tokenizer=Letters(),
        mesh=mesh,
        sampling=Sampling(3, temperature, seed=seed),
        ends=(),
        positions=4,
        longest=3,
        epochs=epochs,
        minibatches=minibatches,
        rows=minibatch // accumulation,
        slots=batch,
        penalty=penalty or Penalty(0.0),
    )  # fmt: skip
    iteration = PolicyGradient(policy, objective, **settings | fields)
    return Bandit(iteration, state, [Prompt([0, 2], "ac", {})] * batch)
