"""The objectives of alignment against their definitions in plain NumPy, float64, under arbitrary masks."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gpt_jax.alignment.advantages import generalized_advantages, whiten
from gpt_jax.alignment.comparisons import calibration, centred_bias, comparison_losses
from gpt_jax.alignment.group_advantages import group_advantages, token_weights
from gpt_jax.alignment.kl import next_coefficient, penalised_rewards, token_kl
from gpt_jax.alignment.masked import masked_mean, masked_variance
from gpt_jax.alignment.policy_losses import (
    explained_variance,
    policy_losses,
    policy_metrics,
    token_entropy,
    value_losses,
)
from gpt_jax.alignment.preferences import (
    PairLogProbs,
    answer_log_probs,
    dpo_losses,
    implicit_margins,
    ipo_losses,
    preference_metrics,
)

close = functools.partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-10)
numbers = st.floats(-8, 8, allow_subnormal=False)
SHAPE = (3, 7)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def arrays(count: int, shape=SHAPE):
    """`count` arrays and a mask."""
    floats = hnp.arrays(np.float64, shape, elements=numbers)
    return st.tuples(*[floats] * count, hnp.arrays(bool, shape))


quick = settings(max_examples=40, deadline=None)


def log_sigmoid(x):
    return -np.logaddexp(0, -x)


# --- moments, advantages


@quick
@given(arrays(1))
def test_masked_moments_are_those_of_what_is_kept(drawn):
    x, mask = drawn
    kept = x[mask] if mask.any() else np.zeros(1)
    close(masked_mean(x, mask), kept.mean())
    close(masked_variance(x, mask), kept.var())


@quick
@given(arrays(2), st.floats(0, 1), st.floats(0, 1))
def test_advantages_are_the_sums_of_discounted_errors_over_the_kept_tokens(drawn, discount, decay):
    rewards, values, mask = drawn
    advantages, returns = generalized_advantages(rewards, values, mask, discount=discount, decay=decay)
    expected = np.zeros(SHAPE)
    for row in range(SHAPE[0]):
        places = np.flatnonzero(mask[row])  # only these exist
        r, v = rewards[row, places], np.append(values[row, places], 0)
        errors = r + discount * v[1:] - v[:-1]
        for first, place in enumerate(places):
            expected[row, place] = sum((discount * decay) ** k * e for k, e in enumerate(errors[first:]))
    close(advantages, expected)
    close(returns, np.where(mask, expected + values, 0))


@quick
@given(arrays(2))
def test_undiscounted_returns_with_decay_1_are_the_rewards_still_to_come(drawn):
    rewards, values, mask = drawn
    _, returns = generalized_advantages(rewards, values, mask, discount=1.0, decay=1.0)
    to_come = np.cumsum(np.where(mask, rewards, 0)[:, ::-1], axis=1)[:, ::-1]
    close(returns, np.where(mask, to_come, 0))


@quick
@given(arrays(1), st.booleans())
def test_whitening_divides_by_the_population_deviation_of_what_is_kept(drawn, shift_mean):
    x, mask = drawn
    expected = np.zeros(SHAPE)
    if mask.any():
        kept = x[mask]
        expected[mask] = (kept - kept.mean()) / np.sqrt(kept.var() + 1e-8) + (0 if shift_mean else kept.mean())
    close(whiten(x, mask, shift_mean=shift_mean), expected)


# --- KL


@quick
@given(arrays(2))
def test_estimates_of_the_kl_are_schulmans(drawn):
    own, reference, _ = drawn
    close(token_kl(own, reference), own - reference)
    ratio = np.exp(reference - own)
    np.testing.assert_allclose(token_kl(own, reference, "k3"), ratio - 1 - (reference - own), rtol=1e-10, atol=1e-8)
    assert (np.asarray(token_kl(own, reference, "k3")) >= 0).all()


def test_both_estimates_have_the_true_kl_as_their_expectation():
    policy, reference = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.2, 0.6])
    true = np.sum(policy * np.log(policy / reference))
    for estimator in ("k1", "k3"):
        close(np.sum(policy * np.asarray(token_kl(np.log(policy), np.log(reference), estimator))), true)


@quick
@given(arrays(2), hnp.arrays(np.float64, SHAPE[0], elements=numbers), st.floats(0, 1))
def test_the_last_kept_token_earns_the_score_and_each_pays_for_its_kl(drawn, scores, coefficient):
    own, reference, mask = drawn
    expected = np.where(mask, -coefficient * (own - reference), 0)
    for row in range(SHAPE[0]):
        if mask[row].any():
            expected[row, np.flatnonzero(mask[row])[-1]] += scores[row]
    close(penalised_rewards(scores, own, reference, mask, coefficient), expected)


@quick
@given(st.floats(0.01, 1), st.floats(0, 30), st.floats(0.5, 20))
def test_the_adaptive_controller_moves_by_at_most_a_fifth_of_a_horizon(coefficient, kl, target):
    error = min(max(kl / target - 1, -0.2), 0.2)
    found = next_coefficient(coefficient, kl, target=target, episodes=512, horizon=10_000)
    close(found, coefficient * (1 + error * 512 / 10_000))
    assert next_coefficient(coefficient, kl, target=None, episodes=512) == coefficient


def test_the_adaptive_controller_holds_its_target_where_more_penalty_means_less_kl():
    coefficient = jnp.asarray(1.0)
    for _ in range(3000):
        kl = 2.0 / coefficient
        coefficient = next_coefficient(coefficient, kl, target=6.0, episodes=64)
    np.testing.assert_allclose(kl, 6.0, rtol=0.01)


# --- PPO


@quick
@given(arrays(3), st.floats(0.05, 0.5))
def test_policy_losses_take_the_worse_of_the_ratio_and_the_clipped_one(drawn, clip):
    own, old, advantages, mask = drawn
    ratio = np.exp(own - old)
    clipped = np.minimum(np.maximum(ratio, 1 - clip), 1 + clip)
    close(policy_losses(own, old, advantages, clip=clip), -np.minimum(ratio * advantages, clipped * advantages))
    metrics = policy_metrics(own, old, mask, clip=clip)
    kept = ratio[mask] if mask.any() else np.zeros(0)
    close(metrics["ratio"], kept.mean() if kept.size else 0)
    close(metrics["clip_fraction"], (np.abs(kept - 1) > clip).mean() if kept.size else 0)
    kl = (np.expm1(own - old) - (own - old))[mask]
    close(metrics["approximate_kl"], kl.mean() if kept.size else 0)


@quick
@given(arrays(2))
def test_at_the_first_minibatch_the_policy_gradient_is_plain_and_no_ratio_differs_from_1(drawn):
    log_probs, advantages, mask = drawn
    gradient = jax.grad(lambda own: jnp.sum(jnp.where(mask, policy_losses(own, log_probs, advantages), 0)))(log_probs)
    # Where advantages are 0 both sides of the maximum are equal; their gradients are 0 too.
    close(gradient, np.where(mask, -advantages, 0))
    metrics = policy_metrics(log_probs, log_probs, mask)
    close(metrics["ratio"], float(mask.any()))
    assert metrics["clip_fraction"] == metrics["approximate_kl"] == 0


@quick
@given(arrays(3), st.floats(0.05, 0.5))
def test_value_losses_take_the_worse_of_the_value_and_the_clipped_one(drawn, clip):
    values, old, returns, _ = drawn
    clipped = old + np.minimum(np.maximum(values - old, -clip), clip)
    expected = 0.5 * np.maximum((values - returns) ** 2, (clipped - returns) ** 2)
    close(value_losses(values, old, returns, clip=clip), expected)


@quick
@given(hnp.arrays(np.float64, (2, 3, 5), elements=numbers))
def test_entropy_is_that_of_the_softmax(logits):
    probs = np.exp(logits - logits.max(-1, keepdims=True))
    probs /= probs.sum(-1, keepdims=True)
    close(token_entropy(logits), -(probs * np.log(probs)).sum(-1))


def test_entropy_of_logits_that_forbid_tokens_is_that_of_the_others():
    close(token_entropy(jnp.array([[[0.0, 0.0, -jnp.inf]]])), [[math.log(2)]])


@quick
@given(arrays(2))
def test_explained_variance_compares_what_is_left_with_what_there_was(drawn):
    values, returns, mask = drawn
    mask[0] = True
    returns[0, :2] = 1, 2  # else there is nothing to explain
    expected = 1 - np.var((returns - values)[mask]) / np.var(returns[mask])
    close(explained_variance(values, returns, mask), expected)


# --- DPO, IPO

pairs = st.tuples(*[hnp.arrays(np.float64, 6, elements=numbers)] * 4)


@quick
@given(pairs, st.floats(0.05, 1))
def test_dpo_and_ipo_are_their_papers_equations(drawn, beta):
    chosen, rejected, ref_chosen, ref_rejected = drawn
    policy, reference = PairLogProbs(chosen, rejected), PairLogProbs(ref_chosen, ref_rejected)
    margin = (chosen - ref_chosen) - (rejected - ref_rejected)
    close(implicit_margins(policy, reference), margin)
    close(dpo_losses(policy, reference, beta=beta), -log_sigmoid(beta * margin))
    close(ipo_losses(policy, reference, beta=beta), (margin - 1 / (2 * beta)) ** 2)
    metrics = preference_metrics(policy, reference, beta=beta)
    close(metrics["accuracy"], (margin > 0).mean())
    close(metrics["margin"], metrics["reward_chosen"] - metrics["reward_rejected"])


@quick
@given(pairs)
def test_dpos_first_step_is_ln_2_and_pulls_the_two_answers_apart(drawn):
    policy = PairLogProbs(*drawn[:2])
    close(dpo_losses(policy, policy), math.log(2))
    gradient = jax.grad(lambda own: jnp.sum(dpo_losses(own, policy, beta=0.1)))(policy)
    close(gradient.chosen_P, -0.05)
    close(gradient.rejected_P, 0.05)


@quick
@given(arrays(1))
def test_an_answers_log_probability_is_the_sum_over_its_tokens(drawn):
    log_probs, mask = drawn
    close(answer_log_probs(log_probs, mask), [row[kept].sum() for row, kept in zip(log_probs, mask, strict=True)])
    means = [row[kept].mean() if kept.any() else 0 for row, kept in zip(log_probs, mask, strict=True)]
    close(answer_log_probs(log_probs, mask, mean=True), means)


# --- reward model

GROUPS = (3, 5)
ranked = st.tuples(
    hnp.arrays(np.float64, GROUPS, elements=numbers),
    hnp.arrays(np.int32, GROUPS, elements=st.integers(1, 4)),
    hnp.arrays(bool, GROUPS),
)


@quick
@given(ranked)
def test_the_loss_of_k_answers_is_the_mean_over_their_pairs_without_ties(drawn):
    rewards, ranks, mask = drawn
    losses, counts = comparison_losses(rewards, ranks, mask)
    for g in range(GROUPS[0]):
        own = [
            -log_sigmoid(rewards[g, i] - rewards[g, j])
            for i in range(GROUPS[1])
            for j in range(GROUPS[1])
            if mask[g, i] and mask[g, j] and ranks[g, i] < ranks[g, j]
        ]
        assert counts[g] == len(own)
        close(losses[g], np.mean(own) if own else 0)


def test_k_answers_ranked_apart_make_k_choose_2_pairs_as_if_each_stood_alone():
    rewards = np.random.default_rng(0).normal(size=(1, 9))
    losses, counts = comparison_losses(rewards, np.arange(9)[None], np.ones((1, 9)))
    assert counts[0] == math.comb(9, 2)
    one_by_one = [
        comparison_losses(rewards[:, [i, j]], np.array([[0, 1]]), np.ones((1, 2)))[0][0]
        for i in range(9)
        for j in range(i + 1, 9)
    ]
    close(losses[0], np.mean(one_by_one))


@quick
@given(arrays(1), numbers)
def test_the_centred_bias_makes_the_mean_reward_of_references_0(drawn, bias):
    rewards, mask = drawn
    mask[0, 0] = True
    shift = np.asarray(centred_bias(bias, rewards, mask)) - bias
    np.testing.assert_allclose((rewards + shift)[mask].mean(), 0, atol=1e-10)


def test_calibration_compares_confidence_with_accuracy():
    draw = np.random.default_rng(0)
    difference = draw.normal(size=20_000) * 2
    hits = draw.random(20_000) < 1 / (1 + np.exp(-np.abs(difference)))  # as often right as they are sure
    better, worse = np.where(hits, np.abs(difference), 0), np.where(hits, 0, np.abs(difference))
    good = calibration(better, worse)
    assert good.pairs == 20_000 and good.error < 0.02 and abs(good.accuracy - hits.mean()) < 1e-12
    assert sum(count for count, _, _ in good.bins) == good.pairs
    overconfident = calibration(10 * better, 10 * worse)
    assert overconfident.accuracy == good.accuracy and overconfident.error > 0.1
    assert calibration([1.0, 0.0], [1.0, 0.0]).accuracy == 0.5


# --- GRPO


@quick
@given(arrays(1, GROUPS), st.booleans())
def test_group_advantages_are_standard_scores_within_each_prompts_answers(drawn, scale):
    rewards, mask = drawn
    found = group_advantages(rewards, mask, scale=scale)
    for g in range(GROUPS[0]):
        kept = rewards[g, mask[g]]
        expected = np.zeros(GROUPS[1])
        if kept.size:
            deviation = kept.std(ddof=1) if kept.size > 1 else 0
            expected[mask[g]] = (kept - kept.mean()) / (deviation + 1e-4 if scale else 1)
        np.testing.assert_allclose(found[g], expected, rtol=1e-10, atol=1e-9)


@quick
@given(hnp.arrays(bool, SHAPE))
def test_token_weights_normalise_as_their_papers_say(mask):
    per_answer = np.array([row / max(row.sum(), 1) for row in mask.astype(float)]) / SHAPE[0]
    close(token_weights(mask, "grpo"), per_answer)
    close(token_weights(mask, "tokens"), mask / max(mask.sum(), 1))
    close(token_weights(mask, "dr_grpo", longest=32), mask / (SHAPE[0] * 32))
