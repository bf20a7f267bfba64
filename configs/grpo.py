"""GRPO: a model learns from several answers to each prompt, judged against each other (Shao et al. 2024).

    python -m gpt_jax.main --config=configs/grpo.py[:PRESET],init_from=PATH,reward=ADDRESS,source=ADDRESS[,batch=INT]
                           [,steps=INT][,tokens=INT][,answers=INT]

The fields are those of configs/ppo.py, which explains them. There is no value function, and the KL from the reference
is paid in the loss instead of in the rewards. It shows its worth where a program can check an answer. Sums, say, in
sums.jsonl, a line each, {"prompt": "17+25=", "answer": "42"}, and a reward in sums.py:

    def right(prompts, answers, answer, **columns):
        return [float(said.strip() == true) for said, true in zip(answers, answer)]

    --config=configs/grpo.py:init_from=PATH,reward=sums.py:right,source=file:sums.jsonl

Presets: `laptop` (default) trains all weights; `adapters` low-rank adapters, the reference then being the shared base.

Measured (2 CPU cores, AMD EPYC, busy with other work, 2026-11-22): the README's laptop model goes on from the books,
24 tokens, and each letter e costs 1: from 7.6 of them an answer to 0.6 at a KL of 25 nats, steps=100, in 1:48 minutes.
"""

from ml_collections import ConfigDict, config_dict

from gpt_jax.configuration import optional_fields, parse_argument
from gpt_jax.models.config import ModelConfig

placeholder = config_dict.placeholder

PRESETS = ("laptop", "adapters")
FIELDS = {
    "init_from": str, "reward": str, "label": str, "source": str, "template": str, "batch": int, "steps": int,
    "tokens": int, "answers": int,
}  # fmt: skip


def get_config(argument: str | None = None) -> ConfigDict:
    """The experiment that `argument` names; see the module's docstring."""
    preset, values = parse_argument(argument, presets=PRESETS, fields=FIELDS)
    config = defaults()
    if preset == "adapters":
        config.transfer.adapters.rank = 16
        config.schedule.peak = 5e-4
    config.init_from, config.template = values.get("init_from"), values.get("template")
    config.reward.source, config.reward.label = values.get("reward"), values.get("label")
    config.data.source = values.get("source", config.data.source)
    config.train.batch_size = values.get("batch", config.train.batch_size)
    config.train.steps = values.get("steps", config.train.steps)
    config.rollout.max_new_tokens = values.get("tokens", config.rollout.max_new_tokens)
    config.objective.answers = values.get("answers", config.objective.answers)
    return config.lock()


def defaults() -> ConfigDict:
    """Every field of a run; what is not explained here is in configs/ppo.py."""
    return ConfigDict(
        dict(
            run="grpo",
            seed=0,
            init_from=placeholder(str),
            model=optional_fields(ModelConfig),
            tokenizer=dict(path=placeholder(str)),
            template=placeholder(str),
            data=dict(
                source="books",
                prompt_tokens=16,
                max_prompt_tokens=placeholder(int),
                columns=dict(messages="messages", prompt="prompt", response="response"),
                validation_address=placeholder(str),
                validation_fraction=0.05,
                text_field="text",
                encoding="utf-8",
                skip_bad_rows=False,
                cache_dir=placeholder(str),
            ),
            transfer=dict(
                adapters=dict(rank=0, alpha=32.0, targets=("query", "key", "value", "output", "up", "down")),
            ),
            reward=dict(
                source=placeholder(str),
                label=placeholder(str),
                text="answer",
                missing_end_score=placeholder(float),
                missing_end_penalty=0.0,
            ),
            rollout=dict(
                max_new_tokens=24,
                temperature=1.0,
                stop=True,
                ends=(),
                truncate_token=placeholder(str),
                truncate_after=0,
                slots=placeholder(int),
            ),
            objective=dict(
                answers=8,  # to each prompt
                epochs=1,
                minibatches=1,
                clip=0.2,
                beta=0.04,  # of the KL from the reference, k3, in the loss
                # What summed losses are divided by: grpo (an answer's length, then their number) | tokens (all of them:
                # DAPO) | dr_grpo (a constant length); scale: whether advantages are divided by their group's deviation.
                normalisation="grpo",
                scale=True,
            ),
            optimizer=dict(
                name="adamw",
                beta1=0.9,
                beta2=0.95,
                epsilon=1e-8,
                weight_decay=0.0,
                clip_norm=1.0,
                mu_dtype=placeholder(str),
            ),
            schedule=dict(
                name="constant",
                peak=3e-4,
                warmup_steps=5,
                decay_steps=placeholder(int),
                final_fraction=0.0,
            ),
            mesh=dict(data=-1, fsdp=1, tensor=1, sequence=1, slices=1),
            train=dict(
                batch_size=64,  # answers a step: batch_size / objective.answers prompts
                accumulation=1,
                steps=200,
                average_decay=0.0,
                max_kl=100.0,
                log_every=1,
                eval_every=20,
                eval_prompts=128,
            ),
            checkpoint=dict(every=20, keep=2),
            report=dict(sample_every=50, samples=8, tensorboard=True, profile_steps=placeholder(str)),
        )
    )
