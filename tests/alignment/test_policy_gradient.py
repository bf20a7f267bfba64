"""An iteration of PPO and GRPO: sampler and trainer agree, updates are what they claim, and bandits are solved."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_policies import Bandit, Letters, count_of_b, make_bandit

from gpt_jax.alignment.grpo import GRPO
from gpt_jax.alignment.policy_gradient import Judge, Penalty, permutation
from gpt_jax.alignment.ppo import PPO, pretraining_nats
from gpt_jax.alignment.prompts import Prompt
from gpt_jax.alignment.rollouts import Answer, Truncation, answer_arrays, draw_answers, spelled
from gpt_jax.errors import UserError
from gpt_jax.inference.engine import Engine
from gpt_jax.inference.sampling import Sampling
from gpt_jax.models import decoder
from gpt_jax.models.likelihood import next_token_nats
from gpt_jax.parallel.mesh import make_mesh

OPTIONS = dict(penalty=Penalty(0.7), batch=64, rate=8e-3, steps=60)


@pytest.fixture(scope="module")
def bandit() -> Bandit:
    return make_bandit(PPO(), **OPTIONS)


def again(bandit: Bandit, **fields) -> Bandit:
    """The bandit from its beginning, with other `fields` of its iteration, and the same compiled update."""
    return Bandit(dataclasses.replace(bandit.iteration, **fields), jax.tree.map(jnp.copy, bandit.state), bandit.prompts)


def first_minibatch(bandit: Bandit) -> tuple[dict, dict]:
    """What the first update is given, and what a rollout said of it."""
    iteration, state = bandit.iteration, bandit.state
    answers = iteration.answers(iteration.decoder(state), bandit.prompts, first=0)
    rollout, told = iteration.judged(state.params, bandit.prompts, answers)
    rollout |= iteration.objective.credit(rollout.pop("scores"))
    with jax.set_mesh(iteration.mesh):
        batch, _ = iteration._prepare({name: jnp.asarray(x) for name, x in rollout.items()}, np.float32(0.5))
    return batch, told


def test_at_the_first_minibatch_kl_is_0_and_every_ratio_is_1(bandit):
    batch, told = first_minibatch(bandit)
    policy, params = bandit.iteration.policy, bandit.state.params
    with jax.set_mesh(bandit.iteration.mesh):
        log_probs = jax.jit(policy.judged)(params, batch)["log_probs"]
    assert abs(told["kl"]) < 1e-6
    np.testing.assert_allclose(np.exp(log_probs - batch["log_probs"]), 1, atol=1e-6)


def test_what_the_sampler_drew_from_is_what_the_trainer_says(bandit):
    iteration, policy = bandit.iteration, bandit.iteration.policy
    engine = Engine(bandit.state.params["model"], policy.config, iteration.mesh, vocab_size=policy.vocab_size)
    prompts = [[0], [1, 2], [3, 4, 0, 2]]
    numbers = [engine.submit(prompt, Sampling(3, seed=5, logprobs=0)) for prompt in prompts]
    drawn = {number: ([], []) for number in numbers}
    while engine.busy:
        for event in engine.step(8):
            drawn[event.request][0].extend(event.tokens)
            drawn[event.request][1].extend(event.logprobs)
    answers = [Answer(drawn[number][0], False) for number in numbers]
    batch = answer_arrays(prompts, answers, positions=6, longest=3, pad=0)
    with jax.set_mesh(iteration.mesh):
        log_probs = jax.jit(policy.judged)(bandit.state.params, batch)["log_probs"]
    np.testing.assert_allclose(log_probs, [drawn[number][1] for number in numbers], atol=1e-6)


def test_the_temperature_is_the_policys(bandit):
    batch, _ = first_minibatch(bandit)
    cold = dataclasses.replace(bandit.iteration.policy, temperature=0.5)

    def both(params: dict) -> tuple[jax.Array, jax.Array]:
        hidden = decoder.hidden_states(params["model"], cold.config, batch["tokens"])
        logits = decoder.unembed(hidden, params["model"]["embedding"]["tokens"])
        return cold.judged(params, batch)["log_probs"], jax.nn.log_softmax(logits[:, 1:4] / 0.5)

    with jax.set_mesh(bandit.iteration.mesh):
        found, expected = jax.jit(both)(bandit.state.params)
    expected = np.take_along_axis(np.asarray(expected), np.asarray(batch["targets"])[..., None], 2)[..., 0]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_ptx_gradient_is_gamma_times_that_of_the_language_model(bandit):
    batch, _ = first_minibatch(bandit)
    policy, params, gamma = bandit.iteration.policy, bandit.state.params, 27.8
    tokens = np.random.RandomState(0).randint(0, 6, (4, 8)).astype(np.int32)
    mask = np.ones((4, 7), np.float32)
    text = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "loss_mask": mask / mask.sum()}

    def loss(params: dict, coefficient: float) -> jax.Array:
        objective = PPO(pretraining_coefficient=coefficient)
        return objective.loss(policy, params, batch | {"pretraining": text}, 1.0)[0]

    def language_model(params: dict) -> jax.Array:
        hidden = decoder.hidden_states(params["model"], policy.config, text["tokens"])
        return jnp.mean(next_token_nats(params["model"], policy.config, hidden, text["targets"]))

    def compared(params: dict):
        difference = jax.grad(lambda params: loss(params, gamma) - loss(params, 0.0))(params)
        nats, expected = jax.value_and_grad(language_model)(params)
        return difference, jax.tree.map(lambda x: gamma * x, expected), pretraining_nats(policy, params, text), nats

    with jax.set_mesh(bandit.iteration.mesh):
        difference, expected, nats, true_nats = jax.jit(compared)(params)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5), difference, expected)
    np.testing.assert_allclose(nats, true_nats, rtol=1e-5)


MESHES = (dict(fsdp=2, tensor=2, sequence=2), dict(data=8))


def learns_alike(one: Bandit, mesh: dict, **options) -> None:
    """Asserts that on `mesh` two steps say what they say on one device."""
    sizes = dict(data=1, fsdp=1, tensor=1, sequence=1, slices=1) | mesh
    many = make_bandit(one.iteration.objective, mesh=make_mesh(sizes), **options)
    for _ in range(2):
        expected, found = one.step(), many.step()
        for name in ("loss", "policy_loss", "ratio", "score", "kl", "entropy", "gradient_norm"):
            np.testing.assert_allclose(found[name], expected[name], atol=2e-5, err_msg=name)


@pytest.mark.parametrize("mesh", (MESHES[0], pytest.param(MESHES[1], marks=pytest.mark.slow)), ids=str)
def test_eight_devices_learn_as_one_does_and_parts_of_a_minibatch_as_the_whole(bandit, mesh):
    learns_alike(again(bandit), mesh, **OPTIONS, accumulation=2)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_eight_devices_learn_as_one_does_by_grpo(mesh):
    options = dict(epochs=1, rate=1e-3)
    learns_alike(make_bandit(GRPO(answers=8), **options), mesh, **options)


def test_ppo_reaches_the_best_reward_that_its_kl_can_buy(bandit):
    reaches_the_best(again(bandit))


@pytest.mark.slow
def test_grpo_reaches_the_best_reward_that_its_kl_can_buy():
    objective = GRPO(answers=16, beta=0.7, scale=False)
    reaches_the_best(make_bandit(objective, batch=64, rate=8e-3, steps=60, epochs=1, minibatches=1))


def reaches_the_best(bandit: Bandit) -> None:
    """Of all policies with that KL, π_ref exp(r / β) has the highest reward."""
    before, _, _ = bandit.exact()
    for _ in range(60):
        bandit.step()
    reward, kl, best = bandit.exact()
    assert 0.5 < kl < 3 and reward > before + 0.5
    assert reward >= 0.95 * best


@pytest.mark.slow
def test_the_adaptive_controller_holds_its_target():
    bandit = make_bandit(PPO(), batch=64, rate=5e-3, penalty=Penalty(0.2, target=1.5, horizon=1000))
    kls = []
    for step in range(300):
        bandit.step()
        if step >= 150 and step % 5 == 0:
            kls.append(bandit.exact()[1])
    np.testing.assert_allclose(np.mean(kls), 1.5, rtol=0.2)


def test_the_adaptive_controller_follows_the_kl(bandit):
    adaptive = again(bandit, penalty=Penalty(0.7, target=1.0, horizon=640))
    adaptive.step()
    np.testing.assert_allclose(float(adaptive.state.aux["coefficient"]), 0.7 * (1 - 0.2 * 64 / 640), rtol=1e-6)


def test_a_policy_that_leaves_the_reference_behind_is_stopped(bandit):
    strict = again(bandit, max_kl=1e-5, last_good=lambda step: f"checkpoints/{step - 1}")
    strict.step()
    with pytest.raises(UserError, match="train.max_kl=1e-05: .* Last good checkpoint: checkpoints/"):
        for _ in range(5):
            strict.step()


def test_every_epoch_of_every_iteration_has_a_permutation_of_its_own():
    seen = {tuple(permutation(16, seed, step, epoch)) for seed in (0, 1) for step in range(5) for epoch in range(3)}
    assert len(seen) == 30 and all(sorted(order) == list(range(16)) for order in seen)


def test_draws_follow_from_the_seed_and_their_number_alone(bandit):
    iteration, model = bandit.iteration, bandit.state.params["model"]

    def draw(prompts: list, first: int, slots: int) -> list[Answer]:
        engine = Engine(model, iteration.policy.config, iteration.mesh, slots=slots, end_ids=(0, 5))
        return draw_answers(engine, prompts, Sampling(4, seed=3), first=first)

    in_turns = draw([[0, 1]] * 8, 10, 4)
    assert len({tuple(answer.ids) for answer in in_turns}) > 4
    assert draw([[0, 1]] * 3, 15, 3) == in_turns[5:]


def test_the_end_of_an_answer_is_a_token_that_was_chosen(bandit):
    engine = Engine(
        bandit.state.params["model"], bandit.iteration.policy.config, bandit.iteration.mesh, slots=4, end_ids=(0, 5)
    )
    answers = draw_answers(engine, [[0, 1]] * 16, Sampling(4, seed=0))
    assert {answer.ended for answer in answers} == {True, False}
    for answer in answers:
        assert answer.ended == (answer.ids[-1] in (0, 5)) and not set(answer.ids[:-1]) & {0, 5}
        assert answer.ended or len(answer.ids) == 4


def test_a_truncated_answer_ends_with_the_first_full_stop_after_so_many_tokens():
    truncation = Truncation(spelled(Letters(), "c"), after=2)
    assert truncation.judged(Answer([2, 0, 1, 2, 1, 2], False)) == ([2, 0, 1, 2], True)
    assert truncation.judged(Answer([2, 0, 1], False)) == ([2, 0, 1], False)
    assert Truncation().judged(Answer([2, 0, 5], True)) == ([2, 0], True)
    with pytest.raises(UserError, match="no token of the vocabulary spells that"):
        spelled(Letters(), "xyz")


def test_what_is_scored_is_the_truncated_answer_and_a_missing_end_costs():
    prompts, truncation = [Prompt([0], "a", {})] * 2, Truncation(frozenset({2}), after=1)
    answers = [Answer([1, 2, 1, 1], False), Answer([1, 1, 1, 1], False)]
    for judge, expected in (
        (Judge(count_of_b, "b", truncation), [1, 4]),
        (Judge(count_of_b, "b", truncation, missing_end_score=-1.0), [1, -1]),
        (Judge(count_of_b, "b", truncation, missing_end_penalty=0.5), [1, 3.5]),
    ):
        scores, complete, texts = judge.scores(prompts, answers, Letters())
        assert scores.tolist() == expected and complete.tolist() == [True, False] and texts == ["bc", "bbbb"]


def test_grpo_learns_what_is_rewarded():
    bandit = make_bandit(GRPO(answers=8, beta=0.1), epochs=1, minibatches=1)
    scores = [bandit.step()["score"] for _ in range(15)]
    assert scores[-1] > scores[0] + 0.5


def test_grpo_credits_answers_against_their_own_prompts():
    scores = np.array([1, 0, 1, 0, 5, 5, 5, 5], np.float32)
    advantages = GRPO(answers=4).credit(scores)["advantages"]
    assert (advantages[:4] > 0).tolist() == [True, False, True, False] and not advantages[4:].any()
