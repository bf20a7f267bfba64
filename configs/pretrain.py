"""Pretraining: next-token prediction on a text of any size.

    python -m gpt_jax.main --config=configs/pretrain.py[:PRESET[,batch=INT][,steps=INT|,epochs=FLOAT][,source=ADDRESS]]

Presets: `books` (default), `gpt1`, `gpt2-small`, `gpt2-medium`, `gpt2-large`, `gpt2-xl`.

Measured: `--config=configs/pretrain.py` (`books`, seed 0) on 2 CPU cores (AMD EPYC, 2026-11-22, jax 0.10.2): 4,500
steps in 5:48 minutes, 1.7888 bits per byte on the held-out 5% of each book. The other presets are the papers' sizes;
the tests build and trace them, nobody has trained them with this code yet.
"""

from ml_collections import ConfigDict, config_dict

from gpt_jax.configuration import parse_argument

placeholder = config_dict.placeholder

PRESETS = ("books", "gpt1", "gpt2-small", "gpt2-medium", "gpt2-large", "gpt2-xl")
FIELDS = {"batch": int, "steps": int, "epochs": float, "source": str}


def get_config(argument: str | None = None) -> ConfigDict:
    """The experiment that `argument` names; see the module's docstring."""
    preset, values = parse_argument(argument, presets=PRESETS, fields=FIELDS)
    config = defaults()
    config.model.preset = preset
    {"books": books, "gpt1": gpt1}.get(preset, gpt2)(config)
    if "batch" in values:
        config.train.batch_size = values["batch"]
    if "steps" in values:
        config.train.steps, config.train.epochs = values["steps"], 0.0
    if "epochs" in values:
        config.train.steps, config.train.epochs = 0, values["epochs"]
    if "source" in values:
        config.data.source = values["source"]
    return config.lock()


def defaults() -> ConfigDict:
    """Every field of a pretraining run. Left empty (None), a field of `model` takes the preset's value."""
    return ConfigDict(
        dict(
            run="pretrain",
            seed=0,
            model=dict(
                preset="books",
                vocab_size=placeholder(int),  # the tokenizer's
                context_length=placeholder(int),
                num_layers=placeholder(int),
                num_heads=placeholder(int),
                key_value_heads=placeholder(int),
                head_dim=placeholder(int),
                embed_dim=placeholder(int),
                mlp_dim=placeholder(int),
                norm=placeholder(str),  # layernorm | rmsnorm
                norm_position=placeholder(str),  # pre | post
                final_norm=placeholder(bool),
                norm_epsilon=placeholder(float),
                activation=placeholder(str),  # gelu_tanh | gelu | relu | relu_squared | silu
                gated_mlp=placeholder(bool),
                positions=placeholder(str),  # learned | rotary
                rope_theta=placeholder(float),
                biases=placeholder(str),  # all | none | qkv
                tied_output=placeholder(bool),
                init_std=placeholder(float),
                position_init_std=placeholder(float),
                scaled_residual_init=placeholder(bool),
                dropout=placeholder(float),  # every place that is not set by itself:
                embedding_dropout=placeholder(float),
                attention_dropout=placeholder(float),
                residual_dropout=placeholder(float),
                compute_dtype=placeholder(str),  # float32 | bfloat16
                param_dtype=placeholder(str),
                scan_layers=placeholder(bool),
                remat=placeholder(str),  # none | block
                attention_block=placeholder(int),  # positions; 0: all
                logits_chunk=placeholder(int),  # positions; 0: all
            ),
            tokenizer=dict(
                kind="sentencepiece",
                vocab_size=4096,
                model_type="bpe",  # bpe | unigram
                character_coverage=0.9995,  # share of the characters that get pieces; the rest is spelled in bytes
                training_bytes=10_000_000,  # of text that the tokenizer is trained on; a seeded sample of more
            ),
            data=dict(
                source="books",  # books | file:PATH-or-glob | tfds:NAME[/CONFIG]
                text_field="text",  # of jsonl files and TFDS data sets
                encoding="utf-8",
                validation_address=placeholder(str),  # as source; by default a part of `source` is held out:
                validation_fraction=0.05,
                sequence_length=placeholder(int),  # the model's context_length
                cache_dir=placeholder(str),  # $XDG_CACHE_HOME/gpt_jax, ~/.cache/gpt_jax
                prefetch=4,  # batches that are read ahead
            ),
            optimizer=dict(
                name="adamw",
                beta1=0.9,
                beta2=0.999,
                epsilon=1e-8,
                weight_decay=0.01,
                clip_norm=1.0,
                mu_dtype=placeholder(str),
            ),
            schedule=dict(
                name="cosine",  # cosine | linear | constant
                peak=2.5e-4,
                warmup_steps=0,
                warmup_tokens=placeholder(int),  # instead of warmup_steps
                decay_steps=placeholder(int),  # to the end of the run
                decay_tokens=placeholder(int),  # instead of decay_steps
                final_fraction=0.0,
            ),
            mesh=dict(data=-1, fsdp=1, tensor=1, sequence=1),
            train=dict(
                batch_size=64,  # sequences a step, over all devices
                accumulation=1,
                steps=0,
                epochs=0.0,  # instead of steps
                log_every=10,
                eval_every=1000,
            ),
            checkpoint=dict(every=1000, keep=2),
            report=dict(
                sample_every=1000,
                prompts=(),  # texts to continue; by default beginnings of held-out passages
                sample_tokens=64,
                temperature=0.8,
                top_k=40,
                tensorboard=True,
            ),
        )
    )


def books(config: ConfigDict) -> None:
    """A small decoder on 18 public-domain books, for two CPU cores and ten minutes (LOG.md: how it was found)."""
    config.train.update(batch_size=8, steps=4500, eval_every=750)
    config.schedule.update(peak=3e-3, warmup_steps=100)
    config.optimizer.update(beta2=0.99, weight_decay=0.1)
    config.checkpoint.every = 375
    config.report.sample_every = 1500


def gpt1(config: ConfigDict) -> None:
    """The paper's pretraining (§4.1): 64 sequences of 512 tokens, 100 epochs, Adam at 2.5e-4.

    2,000 steps of linear warm-up, cosine to 0, decay 0.01. The paper clips nothing and publishes neither beta2 nor the
    number of updates.
    """
    config.tokenizer.vocab_size = 40_478
    config.train.update(batch_size=64, epochs=100.0)
    config.schedule.update(peak=2.5e-4, warmup_steps=2000)
    config.optimizer.update(weight_decay=0.01, clip_norm=0.0)


def gpt2(config: ConfigDict) -> None:
    """GPT-2's sizes with the recipe of GPT-3's Table 2.1 and appendix B, since GPT-2's own was not published."""
    peak = {"gpt2-small": 6e-4, "gpt2-medium": 3e-4, "gpt2-large": 2.5e-4, "gpt2-xl": 2e-4}[config.model.preset]
    config.tokenizer.vocab_size = 50_257
    config.train.update(batch_size=512, steps=600_000)
    config.schedule.update(peak=peak, warmup_steps=700, final_fraction=0.1)
    config.optimizer.update(beta2=0.95, weight_decay=0.1)
