"""Direct preference optimization: a model learns to prefer the better answers, without a reward model.

    python -m gpt_jax.main --config=configs/dpo.py[:PRESET],init_from=PATH,source=ADDRESS[,batch=INT][,epochs=FLOAT]

init_from: a model that answers, of SFT best; it is the reference too, whose log-probabilities are computed once and
kept in the workdir. source: ranked answers, as configs/reward.py reads them. A prompt's pairs count as one: two
answers make the papers' loss, of more all pairs are averaged (--config.data.pairs=best_worst: the best against the
worst alone).

Presets: `full` (default) trains all weights, `adapters` low-rank adapters beside them (LoRA); `ipo` the loss of Azar
et al. 2023; `paper` the hyper-parameters of Rafailov et al. 2023, appendix B, but with Adam for RMSprop.

The first loss is ln 2. Afterwards: --config=configs/chat.py:model=WORKDIR.

Needs the extra [serve] for the templates.

Measured (2 CPU cores, AMD EPYC, busy with other work, 2026-11-22): the README's first model (1.3 million parameters) on
530 pairs of hh-rlhf's harmless-base, rows of 128 tokens, `epochs=2`, --config.schedule.peak=1e-4, in 1:05 minutes: of
112 held-out pairs the model prefers the better answer in 62.5% (50% before), the margin rises from 0 to 0.211, the loss
falls from 0.6931 to 0.6561. (report.samples=0 keeps offensive prompts off the screen.)
"""

from ml_collections import ConfigDict, config_dict

from gpt_jax.configuration import optional_fields, parse_argument
from gpt_jax.models.config import ModelConfig

placeholder = config_dict.placeholder

PRESETS = ("full", "adapters", "ipo", "paper")
FIELDS = {"init_from": str, "source": str, "template": str, "batch": int, "epochs": float, "steps": int}
COLUMNS = ("prompt", "answers", "ranks", "reference", "chosen", "rejected")


def get_config(argument: str | None = None) -> ConfigDict:
    """The experiment that `argument` names; see the module's docstring."""
    preset, values = parse_argument(argument, presets=PRESETS, fields=FIELDS)
    config = defaults()
    if preset == "adapters":
        adapters(config)
    elif preset == "ipo":
        config.objective.loss = "ipo"
    elif preset == "paper":
        paper(config)
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
            run="dpo",
            seed=0,
            init_from=placeholder(str),
            # Fields of ModelConfig that do not change what the weights mean: dropout, context_length, dtypes, ...
            model=optional_fields(ModelConfig),
            tokenizer=dict(path=placeholder(str)),  # by default the one beside the weights
            template=placeholder(str),  # a file with a chat template in Jinja's language; none: prompts are texts
            data=dict(
                source=placeholder(str),
                validation_address=placeholder(str),  # by default a part of source is held out, by its prompts
                validation_fraction=0.05,  # more, where there are few rows
                columns=dict((name, name) for name in COLUMNS),
                pairs="all",  # best_worst: of a prompt's answers the best and the worst alone
                last_messages=0,  # how many messages before an answer are read (and the system's); 0: all
                sequence_length=placeholder(int),  # of prompt and answer; by default the context, 2,048 at most
                encoding="utf-8",
                skip_bad_rows=False,  # True: leave out and count what is no comparison, or too long
                prefetch=2,
            ),
            objective=dict(
                loss="sigmoid",  # or ipo
                beta=0.1,  # how dear it is to leave the reference
                label_smoothing=0.0,  # the share of pairs that are taken to be labelled the wrong way round
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
                peak=5e-6,
                warmup_steps=0,
                decay_steps=placeholder(int),
                final_fraction=0.1,
            ),
            mesh=dict(data=-1, fsdp=1, tensor=1, sequence=1, slices=1),
            train=dict(batch_size=16, accumulation=1, steps=0, epochs=1.0, log_every=10, eval_every=50),
            checkpoint=dict(every=100, keep=2),
            report=dict(
                sample_every=100,
                samples=4,  # held-out prompts that are answered, before the first step too
                sample_tokens=128,
                temperature=0.0,
                tensorboard=True,
                profile_steps=placeholder(str),  # FIRST:LAST, as 10:13: a trace of these steps, under WORKDIR/profile
            ),
        )
    )


def adapters(config: ConfigDict) -> None:
    """Adapters of rank 16 on every kernel, at a higher rate, and texts that a laptop can work on."""
    config.data.sequence_length = 512
    config.transfer.adapters.rank = 16
    config.schedule.peak = 5e-5


def paper(config: ConfigDict) -> None:
    """Rafailov et al. 2023, appendix B: beta 0.1, batches of 64, 1e-6 after 150 steps of linear warm-up."""
    config.train.batch_size = 64
    config.schedule.update(name="constant", peak=1e-6, warmup_steps=150)
