"""PPO: a model learns to be answered for by a reward, and stays near what it was (InstructGPT's third step).

    python -m gpt_jax.main --config=configs/ppo.py[:PRESET],init_from=PATH,reward=ADDRESS[,label=LABEL][,source=ADDRESS]
                           [,batch=INT][,steps=INT][,tokens=INT]

init_from: a workdir (pretraining, SFT), a Hugging Face folder, a GGUF file or OpenAI's release.
reward: FILE.py:FUNCTION, a function (prompts, answers, **columns) -> a list of numbers; the workdir of a fine-tuned
classifier, with label=LABEL, whose probability is the reward; or the workdir of a reward model.
source: where prompts come from. `books` (default), file:PATH.txt or tfds:NAME: the beginnings of passages, to be
continued. file:PATH.jsonl (.json, .csv, .tsv; tfds:NAME#SPLIT): rows with a `prompt`, or `messages`; what else
stands in them is handed to a reward function by name.

Presets: `laptop` (default) for small models on a CPU; `adapters` the same through low-rank adapters, the reference
then being the shared base; `instructgpt`: the published hyper-parameters (Ouyang et al. 2022, appendix C.4);
`lm-human-preferences`: those of Ziegler et al. 2019, whose answers are of 24 tokens and judged up to a full stop.

Afterwards: WORKDIR/report.md, with the reward against the KL and samples before and after; and the policy, as any
workdir: --config=configs/generate.py:model=WORKDIR, configs/chat.py, configs/convert.py.

Measured (2 CPU cores, AMD EPYC, busy with other work, 2026-11-22): the README's laptop model, rewarded by the
probability of `positive` that an SST-2 classifier of its size (77% right) gives, steps=40: from 0.40 to 0.77, 0.78 and
0.80 (three seeds, 512 fresh answers each, ±0.03) at a KL of 6.2 to 6.9 nats an answer, in 1:29 to 3:47 minutes; after
all 200 steps 0.89 at 12.3.
"""

from ml_collections import ConfigDict, config_dict

from gpt_jax.configuration import optional_fields, parse_argument
from gpt_jax.models.config import ModelConfig

placeholder = config_dict.placeholder

PRESETS = ("laptop", "adapters", "instructgpt", "lm-human-preferences")
FIELDS = {
    "init_from": str, "reward": str, "label": str, "source": str, "template": str, "batch": int, "steps": int,
    "tokens": int,
}  # fmt: skip


def get_config(argument: str | None = None) -> ConfigDict:
    """The experiment that `argument` names; see the module's docstring."""
    preset, values = parse_argument(argument, presets=PRESETS, fields=FIELDS)
    config = defaults()
    presets = {"adapters": adapters, "instructgpt": instructgpt, "lm-human-preferences": lm_human_preferences}
    presets.get(preset, lambda config: None)(config)
    config.init_from, config.template = values.get("init_from"), values.get("template")
    config.reward.source, config.reward.label = values.get("reward"), values.get("label")
    config.data.source = values.get("source", config.data.source)
    config.train.batch_size = values.get("batch", config.train.batch_size)
    config.train.steps = values.get("steps", config.train.steps)
    config.rollout.max_new_tokens = values.get("tokens", config.rollout.max_new_tokens)
    return config.lock()


def defaults() -> ConfigDict:
    """Every field of a run."""
    return ConfigDict(
        dict(
            run="ppo",
            seed=0,
            init_from=placeholder(str),
            # Fields of ModelConfig that do not change what the weights mean: context_length, dtypes, ...
            model=optional_fields(ModelConfig),
            tokenizer=dict(path=placeholder(str)),  # by default the one beside the weights
            template=placeholder(str),  # a file with a chat template in Jinja's language; none: prompts are texts
            data=dict(
                source="books",
                prompt_tokens=16,  # of a text, the tokens of each passage that are given
                max_prompt_tokens=placeholder(int),  # of rows, longer prompts are dropped, and counted
                columns=dict(messages="messages", prompt="prompt", response="response"),
                validation_address=placeholder(str),  # by default a part of source is held out
                validation_fraction=0.05,
                text_field="text",
                encoding="utf-8",
                skip_bad_rows=False,  # True: leave out and count what is no prompt
                cache_dir=placeholder(str),
            ),
            transfer=dict(
                # Low-rank adapters; rank 0: none, all weights learn. alpha / rank scales them.
                adapters=dict(rank=0, alpha=32.0, targets=("query", "key", "value", "output", "up", "down")),
            ),
            reward=dict(
                source=placeholder(str),
                label=placeholder(str),  # of a classifier, whose probability is the reward
                text="answer",  # what a classifier reads: answer | both (the prompt before it)
                missing_end_score=placeholder(float),  # in the place of the score of an answer that does not end
                missing_end_penalty=0.0,  # taken off the score of one
            ),
            rollout=dict(
                max_new_tokens=24,
                temperature=1.0,
                stop=True,  # False: answers are as long as they may be
                ends=(),  # ids that end an answer; by default those that weights and template name
                truncate_token=placeholder(str),  # judged is the answer up to the first one, '.' say,
                truncate_after=0,  # after so many tokens
                slots=placeholder(int),  # answers drawn at once; by default all of a step
            ),
            kl=dict(
                coefficient=0.02,  # of score a nat
                target=placeholder(float),  # nats an answer; the coefficient then follows it
                horizon=10_000,  # answers in which it may follow by a fifth
            ),
            value=dict(
                init_from=placeholder(str),  # none: a head on the policy; policy, or PATH: a model of its own
                model=optional_fields(ModelConfig),
                peak=placeholder(float),  # its learning rate, by default the policy's
            ),
            objective=dict(
                epochs=4,  # passes over a step's answers
                minibatches=4,  # updates in a pass
                clip=0.2,
                value_clip=0.2,
                value_coefficient=0.1,
                discount=1.0,
                decay=0.95,  # λ of GAE
                whiten_rewards=False,
                whiten_advantages=True,
            ),
            # PPO-ptx: text that the policy goes on learning from; coefficient 0: none. examples: windows an answer.
            pretraining=dict(
                coefficient=0.0, source="books", examples=1.0, sequence_length=placeholder(int), text_field="text"
            ),
            optimizer=dict(
                name="adamw",
                beta1=0.9,
                beta2=0.95,
                epsilon=1e-5,
                weight_decay=0.0,
                clip_norm=1.0,
                mu_dtype=placeholder(str),
            ),
            schedule=dict(
                name="constant",
                peak=1e-4,
                warmup_steps=5,
                decay_steps=placeholder(int),
                final_fraction=0.0,
            ),
            mesh=dict(data=-1, fsdp=1, tensor=1, sequence=1, slices=1),
            train=dict(
                batch_size=64,  # answers a step
                accumulation=1,  # parts in which a minibatch is worked off
                steps=200,
                average_decay=0.0,  # of an average of the weights, a step, which is then the result; 0: none
                max_kl=100.0,  # nats an answer at which the run stops; 0: never
                log_every=1,
                eval_every=20,
                eval_prompts=128,  # held-out prompts that are answered at an evaluation
            ),
            checkpoint=dict(every=20, keep=2),
            report=dict(
                sample_every=50,
                samples=8,  # of the held-out prompts, answers that are kept, before the first step too
                tensorboard=True,
                profile_steps=placeholder(str),  # FIRST:LAST, as 10:13: a trace of these steps, under WORKDIR/profile
            ),
        )
    )


def adapters(config: ConfigDict) -> None:
    """Adapters of rank 16 on every kernel, at twice the rate."""
    config.transfer.adapters.rank = 16
    config.schedule.peak = 2e-4


def instructgpt(config: ConfigDict) -> None:
    """Ouyang et al. 2022, appendix C.4: 256k answers, 512 a step, in one pass of minibatches of 64; KL 0.02; PPO-ptx.

    A value function of its own at a rate of 9e-6 (5e-6 for 175B), to be begun with the reward model; warm-up over 10
    steps from a tenth; an average of the weights of 0.992; 8 windows of text an answer, γ 27.8; prompts and answers of
    1,000 tokens each. They say no rate of the policy's, nor λ: the value function's, and lm-human-preferences', stand
    in. Set value.init_from and pretraining.source.
    """
    config.data.max_prompt_tokens = 1000
    config.rollout.max_new_tokens = 1000
    config.kl.coefficient = 0.02
    config.value.update(init_from="policy", peak=9e-6)
    config.objective.update(epochs=1, minibatches=8)
    config.pretraining.update(coefficient=27.8, examples=8.0)
    config.schedule.update(name="constant", peak=9e-6, warmup_steps=10)
    config.train.update(batch_size=512, steps=500, average_decay=0.992)


def lm_human_preferences(config: ConfigDict) -> None:
    """Ziegler et al. 2019, openai/lm-human-preferences, launch.py and train_policy.py, for sentiment on books.

    Prompts of 64 tokens, 24 more at temperature 0.7, never ended, judged up to the first full stop after 16 and else
    scored -1; KL held at 6 nats from a coefficient of 0.15; rewards and advantages whitened; 4 passes of one
    minibatch of 512; the rate falls to 0 over a million answers. (Their prompts begin behind a full stop, too.)
    """
    config.data.prompt_tokens = 64
    config.rollout.update(temperature=0.7, stop=False, truncate_token=".", truncate_after=16)
    config.reward.missing_end_score = -1.0
    config.kl.update(coefficient=0.15, target=6.0)
    config.objective.update(epochs=4, minibatches=1, whiten_rewards=True)
    config.optimizer.update(beta2=0.999, clip_norm=0.0)
    config.schedule.update(name="linear", peak=1e-5, warmup_steps=0)
    config.train.update(batch_size=512, steps=1953)
