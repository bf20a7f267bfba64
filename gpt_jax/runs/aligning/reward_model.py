"""A trained reward model: as scores of texts, and as the weights that a value function begins with."""

import json
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from gpt_jax.alignment.ranked_answers import AnswerEncoder
from gpt_jax.alignment.rewards import Episodes
from gpt_jax.errors import UserError
from gpt_jax.models.config import ModelConfig
from gpt_jax.parallel.mesh import single_device_mesh
from gpt_jax.runs.aligning.answer_scores import make_rewards
from gpt_jax.runs.aligning.start import NO_TEMPLATE, first_day
from gpt_jax.runs.chat_model import open_template
from gpt_jax.runs.pretrained import Pretrained, open_pretrained
from gpt_jax.text.tokenizer import Tokenizer

REWARD = "reward.json"  # in the workdir of a run that is done
BATCH = 32


class RewardModel:
    """The reward model of a workdir, a callable that scores `alignment.rewards.Episodes`.

    It reads texts with the tokenizer and the template of its own, whatever wrote them. Of what is longer than its
    context it reads the end.
    """

    def __init__(self, workdir: str | Path, mesh: jax.sharding.Mesh | None = None):
        """Reads what stands in `workdir`, onto one device unless a mesh is given.

        Raises:
          UserError: it is not the workdir of a reward model that is done.
        """
        mesh = single_device_mesh() if mesh is None else mesh
        source = open_pretrained(workdir)
        self.tokenizer = source.tokenizer()
        template = None
        if source.recorded.get("template") != NO_TEMPLATE:
            day = first_day(Path(workdir))
            template = open_template(None, self.tokenizer, str(workdir), source.chat_template, day)
        self._params = reward_parameters(source, mesh)
        self._encode = AnswerEncoder(self.tokenizer, template, source.recorded["data"].get("last_messages", 0))
        self._length = source.config.context_length
        batch = -(-BATCH // mesh.size) * mesh.size
        self._rewards = make_rewards(source.config, mesh, self.tokenizer.specials.pad, batch, self._length)

    @property
    def as_text(self) -> bool:
        """Whether it was taught prompts that are texts, which answers go on from, and no conversations."""
        return self._encode.as_text

    def __call__(self, episodes: Episodes) -> np.ndarray:
        """The reward of each answer, float64 [N]; a conversation is taken from the column `messages`."""
        prompts = episodes.prompts
        if not self.as_text:
            said = episodes.columns.get("messages", [None] * len(prompts))
            prompts = [
                tuple(messages) if messages else ({"role": "user", "content": prompt},)
                for messages, prompt in zip(said, prompts, strict=True)
            ]
        return self.score(prompts, episodes.answers)

    def score(self, prompts: Sequence, answers: Sequence[str]) -> np.ndarray:
        """The reward of each answer to its prompt (a text or messages, as the model was taught), float64 [N]."""
        texts = [self._encode(prompt, answer).ids for prompt, answer in zip(prompts, answers, strict=True)]
        return self._rewards(self._params, [ids[-self._length :] for ids in texts]).astype(np.float64)


def open_reward_model(workdir: str | Path, mesh: jax.sharding.Mesh | None = None) -> RewardModel:
    """The reward model in `workdir`; see `RewardModel`."""
    return RewardModel(workdir, mesh)


def reward_parameters(source: Pretrained, mesh: jax.sharding.Mesh, config: ModelConfig | None = None) -> dict:
    """`model`, a decoder with its adapters merged, and `head` [D, 1] with the bias that was set at the end.

    Raises:
      UserError: `source` is not the workdir of a reward model that is done, or is damaged.
    """
    if source.recorded.get("run") != "reward":
        what = f"the workdir of a {source.recorded['run']} run" if source.recorded else "other people's weights"
        raise UserError(f"{source.path}: {what}, and no reward model. Make one: --config=configs/reward.py.")
    path = source.source.parent / REWARD
    try:
        bias = float(json.loads(path.read_text())["bias"])
    except FileNotFoundError:
        raise UserError(f"{source.path}: this reward model is not done yet. Start its run again to go on.") from None
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(f"{path}: does not say the bias of the reward ({error!r}). Restore it.") from None
    params = source.parameters_with_head(mesh, config, outputs=1)
    return params | {"head": params["head"] | {"bias": params["head"]["bias"] * 0 + bias}}


def check_value_function(source: Pretrained, tokenizer: Tokenizer, length: int) -> None:
    """Raises UserError unless the weights at `source` can read a policy's tokens as a value function.

    Args:
      tokenizer: the policy's; length: the most tokens of a prompt with its answer.
    """
    if source.tokenizer().fingerprint != tokenizer.fingerprint:
        raise UserError(
            f"value.init_from={source.path}: has another tokenizer than the policy, whose tokens it is to read. A "
            "reward model can still score texts: begin the value function with the policy's weights, or train a reward "
            "model that begins with them."
        )
    if length > source.config.context_length:
        raise UserError(
            f"value.init_from={source.path}: reads {source.config.context_length:,} tokens at most, and prompts with "
            f"their answers have up to {length:,}. Shorten them, or begin the value function with other weights."
        )
