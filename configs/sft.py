"""Supervised fine-tuning: a model learns to answer from conversations (InstructGPT's first step).

    python -m gpt_jax.main --config=configs/sft.py[:PRESET],init_from=PATH,source=ADDRESS[,batch=INT][,epochs=FLOAT]

init_from: a Hugging Face folder, a GGUF file, OpenAI's release or a workdir. source: file:PATH of conversations, .jsonl
(or .json, .csv, .tsv; also tfds:NAME#SPLIT) with a column of messages, a list of {"role": ..., "content": ...}, or
with columns of prompts and responses; --config.data.columns.prompt=NAME says what yours are called.

Presets: `full` (default) trains all weights; `adapters` low-rank adapters beside them (LoRA), for large models and
small machines; `instructgpt`, `instructgpt-175B`: the published hyper-parameters (Ouyang et al. 2022, appendix C.1) of
the models up to 6B and of the largest.

Conversations are written by the model's chat template, or the one in --config.template=FILE, or, for a model that has
none, in plain words. The loss falls on the assistant's tokens and the symbol that ends an answer. Rows hold as many
whole conversations as fit, which do not see each other. Afterwards: --config=configs/chat.py:model=WORKDIR.

Needs the extra [serve] for the templates.

Measured (2 CPU cores, AMD EPYC, busy with other work, 2026-11-22): `adapters,batch=2,steps=30` with
SmolLM2-135M-Instruct and rows of 256 tokens, on 508 short answers of dolly_hhrlhf: a third of an epoch in 17 minutes;
over the 798 tokens of 24 other answers the loss fell from 1.925 to 1.726 nats a token.
"""

from ml_collections import ConfigDict, config_dict

from gpt_jax.configuration import optional_fields, parse_argument
from gpt_jax.models.config import ModelConfig

placeholder = config_dict.placeholder

PRESETS = ("full", "adapters", "instructgpt", "instructgpt-175B")
FIELDS = {"init_from": str, "source": str, "template": str, "batch": int, "epochs": float, "steps": int}


def get_config(argument: str | None = None) -> ConfigDict:
    """The experiment that `argument` names; see the module's docstring."""
    preset, values = parse_argument(argument, presets=PRESETS, fields=FIELDS)
    config = defaults()
    if preset == "adapters":
        adapters(config)
    elif preset.startswith("instructgpt"):
        instructgpt(config, largest=preset.endswith("175B"))
    config.init_from = values.get("init_from")
    config.template = values.get("template")
    config.data.source = values.get("source")
    config.train.batch_size = values.get("batch", config.train.batch_size)
    if "steps" in values or "epochs" in values:
        config.train.update(steps=values.get("steps", 0), epochs=values.get("epochs", 0.0))
    return config.lock()


def defaults() -> ConfigDict:
    """Every field of a run; cautious rates for a few thousand conversations."""
    return ConfigDict(
        dict(
            run="sft",
            seed=0,
            init_from=placeholder(str),
            # Fields of ModelConfig that do not change what the weights mean: dropout, context_length, dtypes, ...
            model=optional_fields(ModelConfig),
            tokenizer=dict(path=placeholder(str)),  # by default the one beside the weights
            template=placeholder(str),  # a file with a chat template in Jinja's language
            data=dict(
                source=placeholder(str),
                validation_address=placeholder(str),  # by default a part of source is held out
                validation_fraction=0.05,  # more, where there are few rows
                columns=dict(messages="messages", prompt="prompt", response="response"),
                sequence_length=placeholder(int),  # by default the context, 2,048 at most
                packing=True,  # False: a row a conversation
                encoding="utf-8",
                skip_bad_rows=False,  # True: leave out and count what is no conversation, or too long
                prefetch=2,
            ),
            transfer=dict(
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
                peak=2e-5,
                warmup_steps=0,
                decay_steps=placeholder(int),
                final_fraction=0.1,
            ),
            mesh=dict(data=-1, fsdp=1, tensor=1, sequence=1, slices=1),
            train=dict(batch_size=8, accumulation=1, steps=0, epochs=2.0, log_every=10, eval_every=100),
            checkpoint=dict(every=100, keep=2),
            report=dict(
                sample_every=100,
                samples=4,  # held-out questions that are answered, before the first step too
                sample_tokens=128,
                temperature=0.0,
                tensorboard=True,
                profile_steps=placeholder(str),  # FIRST:LAST, as 10:13: a trace of these steps, under WORKDIR/profile
            ),
        )
    )


def adapters(config: ConfigDict) -> None:
    """Adapters of rank 16 on every kernel, at ten times the rate, and rows that a laptop can work on."""
    config.data.sequence_length = 512
    config.transfer.adapters.rank = 16
    config.schedule.peak = 2e-4


def instructgpt(config: ConfigDict, *, largest: bool) -> None:
    """Ouyang et al. 2022, appendix C.1: 16 epochs, residual dropout 0.2, cosine to a tenth, no warm-up, Adam 0.9, 0.95.

    9.65e-6 in batches of 32 up to 6B, 5.03e-6 in batches of 8 for 175B. They chose the epoch by the
    reward model's score; validation loss rises after the first. Clipping is GPT-3's, since nothing is said of it.
    """
    config.model.residual_dropout = 0.2
    config.train.update(batch_size=8 if largest else 32, epochs=16.0)
    config.schedule.peak = 5.03e-6 if largest else 9.65e-6
