"""What a reward is: scores of answers, whoever gives them; and the check that they are scores."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from gpt_jax.errors import UserError


class Episodes(NamedTuple):
    """N prompts and what a policy answered.

    Attributes:
      prompts: as the policy read them; of a conversation the rendered text.
      answers: as they are judged, cut where the rollout cuts them, without the end of text.
      columns: what else stood in the prompts' rows, by name, N values each; `messages` of a conversation.
    """

    prompts: list[str]
    answers: list[str]
    columns: dict[str, list[Any]]


Reward = Callable[[Episodes], np.ndarray]  # float64 [N], the higher, the better


def score(reward: Reward, episodes: Episodes, source: str) -> np.ndarray:
    """The scores of all episodes, float64 [N].

    Args:
      source: what messages call the reward.

    Raises:
      UserError: they are not as many numbers as there are answers, or one is not finite, with its prompt.
    """
    given = reward(episodes)
    try:
        scores_N = np.asarray(given, np.float64)
    except (TypeError, ValueError, OverflowError):
        raise UserError(
            f"reward {source}: gave {str(given)[:80]!r}. Expected a list of numbers, one an answer."
        ) from None
    if scores_N.shape != (len(episodes.answers),):
        raise UserError(
            f"reward {source}: gave an array of shape {list(scores_N.shape)} for {len(episodes.answers)} answers. "
            "Expected one number an answer."
        )
    if not np.isfinite(scores_N).all():
        wrong = np.flatnonzero(~np.isfinite(scores_N))
        prompt, answer = episodes.prompts[wrong[0]], episodes.answers[wrong[0]]
        raise UserError(
            f"reward {source}: gave {scores_N[wrong[0]]} for the prompt {prompt[-200:]!r} with the answer "
            f"{answer[:200]!r}; so it is with {len(wrong)} of {len(scores_N)}. Give every answer a finite score."
        )
    return scores_N
