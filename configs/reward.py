"""Reward model: a model learns from ranked answers which of them people prefer (InstructGPT's second step).

    python -m gpt_jax.main --config=configs/reward.py[:PRESET],init_from=PATH,source=ADDRESS[,batch=INT][,epochs=FLOAT]

init_from: a Hugging Face folder, a GGUF file, OpenAI's release or a workdir, of SFT best. source: file:PATH of .jsonl,
a prompt a row:
    {"prompt": text or messages, "answers": [...], "ranks": [...]}    the lower the better; without ranks best first
    {"prompt": ..., "chosen": text, "rejected": text}
    {"chosen": messages, "rejected": messages}, or transcripts, "\\n\\nHuman: ...\\n\\nAssistant: ..."
"reference" may say which answer (counted from 0) is a demonstration. --config.data.columns.answers=NAME and so on say
what yours are called.

A batch is made of prompts: all pairs of a prompt's answers count as one, and each answer is read once. Prompts are
written by the model's chat template, or the one in --config.template=FILE, or in plain words; with
--config.template=none they are texts that answers go on from.

Presets: `full` (default) trains all weights, `adapters` low-rank adapters beside them (LoRA); `laptop` is for a model
of a few million parameters; `instructgpt`: the published hyper-parameters (Ouyang et al. 2022, appendix C.2).

At the end the bias is set so that the mean reward of the references in training (else of the best answers) is 0, and
the report says how often the reward is right on held-out prompts, beside the length of the answers as a rule, and how
far its probabilities can be trusted. As a reward: --config=configs/ppo.py:...,reward=WORKDIR.

Needs the extra [serve] for the templates.

Measured (2 CPU cores, AMD EPYC, busy with other work, 2026-11-22): `laptop` from the README's first model (1.3 million
parameters, books), --config.data.skip_bad_rows=True, on hh-rlhf's harmless-base test set, 2,312 pairs in five folds by
the opening question, the rate chosen on the first. On the other four, 1,761 pairs that no model had seen, the reward is
right in 61.6% (95%: 59.2 to 63.7) and the rule that shorter is better in 54.6%: 6.9 points more (4.6 to 9.3). A fold
takes 2 minutes. With the whole conversations and a rate of 3e-4: 2.0 points more than length on each of two folds.
"""

from ml_collections import ConfigDict, config_dict

from gpt_jax.configuration import optional_fields, parse_argument
from gpt_jax.models.config import ModelConfig

placeholder = config_dict.placeholder

PRESETS = ("full", "laptop", "adapters", "instructgpt")
FIELDS = {"init_from": str, "source": str, "template": str, "batch": int, "epochs": float, "steps": int}
COLUMNS = ("prompt", "answers", "ranks", "reference", "chosen", "rejected")


def get_config(argument: str | None = None) -> ConfigDict:
    """The experiment that `argument` names; see the module's docstring."""
    preset, values = parse_argument(argument, presets=PRESETS, fields=FIELDS)
    config = defaults()
    if preset == "laptop":
        laptop(config)
    elif preset == "adapters":
        adapters(config)
    elif preset == "instructgpt":
        instructgpt(config)
    config.init_from = values.get("init_from")
    config.template = values.get("template")
    config.data.source = values.get("source")
    config.train.batch_size = values.get("batch", config.train.batch_size)
    if "steps" in values or "epochs" in values:
        config.train.update(steps=values.get("steps", 0), epochs=values.get("epochs", 0.0))
    return config.lock()


def defaults() -> ConfigDict:
    """Every field of a run."""
    return ConfigDict(
        dict(
            run="reward",
            seed=0,
            init_from=placeholder(str),
            # Fields of ModelConfig that do not change what the weights mean: dropout, context_length, dtypes, ...
            model=optional_fields(ModelConfig),
            tokenizer=dict(path=placeholder(str)),  # by default the one beside the weights
            template=placeholder(str),  # a file with a chat template in Jinja's language; none: prompts are texts
            data=dict(
                source=placeholder(str),
                validation_address=placeholder(str),  # by default a part of source is held out, by its prompts
                validation_fraction=0.1,
                columns=dict((name, name) for name in COLUMNS),
                pairs="all",  # best_worst: of a prompt's answers the best and the worst alone
                last_messages=0,  # how many messages before an answer are read (and the system's); 0: all
                sequence_length=placeholder(int),  # of prompt and answer; by default the context, 2,048 at most
                encoding="utf-8",
                skip_bad_rows=False,  # True: leave out and count what is no comparison, or too long
                prefetch=2,
            ),
            transfer=dict(
                freeze=0,  # embeddings and the first so many layers stay as they are
                # Low-rank adapters; rank 0: none. alpha / rank scales them; targets: query, key, value, output, up,
                # gate, down.
                adapters=dict(rank=0, alpha=32.0, targets=("query", "key", "value", "output", "up", "down")),
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
                name="cosine",
                peak=5e-5,
                warmup_steps=0,
                decay_steps=placeholder(int),
                final_fraction=0.1,
            ),
            mesh=dict(data=-1, fsdp=1, tensor=1, sequence=1, slices=1),
            train=dict(batch_size=16, accumulation=1, steps=0, epochs=1.0, log_every=10, eval_every=50),
            checkpoint=dict(every=100, keep=2),
            report=dict(
                tensorboard=True,
                profile_steps=placeholder(str),  # FIRST:LAST, as 10:13: a trace of these steps, under WORKDIR/profile
            ),
        )
    )


def laptop(config: ConfigDict) -> None:
    """For a model of a few million parameters: a high rate, dropout, and of a conversation the last question alone."""
    config.model.update(context_length=256, dropout=0.1)
    config.data.last_messages = 1
    config.schedule.peak = 1e-3


def adapters(config: ConfigDict) -> None:
    """Adapters of rank 16 on every kernel, at a higher rate, and texts that a laptop can work on."""
    config.data.sequence_length = 512
    config.transfer.adapters.rank = 16
    config.schedule.peak = 2e-4


def instructgpt(config: ConfigDict) -> None:
    """Ouyang et al. 2022, appendix C.2: an epoch of batches of 64 prompts, cosine from 9e-6 to a tenth, Adam 0.9, 0.95.

    For the 6B model that served all policies. More than one epoch overfits quickly, they say. Clipping is GPT-3's,
    since nothing is said of it.
    """
    config.train.batch_size = 64
    config.schedule.peak = 9e-6
