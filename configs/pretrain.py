"""Pretraining: next-token prediction on a text of any size.

    python -m gpt_jax.main --config=configs/pretrain.py[:PRESET[,batch=INT][,steps=INT|,epochs=FLOAT][,source=ADDRESS]]

Presets: `books` (default), and every model that gpt_jax/models/presets.py names (`gpt1`, `gpt2-small`, `gpt3-1.3B`,
`llama3.2-1B`, `qwen2.5-0.5B`, ...; `lstm` is what GPT-1's table 5 compares with, `laptop-lstm` the same for `laptop`);
`gpt3,size=1.3B` says the same as `gpt3-1.3B`. `weights,init_from=PATH` goes on from published weights: a Hugging Face
folder, a GGUF file, OpenAI's GPT-1 release, or a workdir of ours.

Behind gpt3 alone: `attention=dense` leaves out the bands in every other layer, and `mixture=gpt3` draws from five
sources by the weights of its table 2.2. Say where yours are with --config.data.addresses.NAME=ADDRESS for each NAME of
common_crawl, webtext2, books1, books2, wikipedia (`python -m gpt_jax.data.mixture` prints the table). Every preset
takes other mixtures: --config.data.mixture='{"books": 3, "file:web/*.txt": 1}'.

Measured: `--config=configs/pretrain.py` (`books`, seed 0) on 2 CPU cores (AMD EPYC, 2026-11-22, jax 0.10.2): 4,500
steps in 5:05 minutes, 1.7872 bits per byte on the held-out 5% of each book. `laptop` on 97 novels of 75 MB: 37:31
minutes beside other work, 1.599 bits per byte; `laptop-lstm` on the same: an hour beside other work, 1.657. The other
presets are the papers' sizes; nobody has trained them with this code yet.

What fits on which TPU slice with so many sequences a chip (batch= that times the chips): GiB of a chip's memory, and
the MFU without collectives that the TPU compiler's estimates give; nothing was run (--plan=SLICE; libtpu 0.0.42.1,
2026-11-22). "-": not compiled. Scanned layers compile in half a minute and are slower than unrolled ones.

    preset        sequences  v5e-8     v5e-16    v5p-8     v6e-8     --config.
    gpt1          8          2.4 53%   -         2.4 35%   2.4 27%   optimizer.name=adamw optimizer.clip_norm=1.0
    gpt1          8          -         2.4 53%   -         -         optimizer.name=adamw optimizer.clip_norm=1.0 mesh.data=2 mesh.fsdp=8
    gpt2-small    8          4.7 51%   -         4.7 43%   5.3 22%   -
    gpt2-small    8          -         4.7 51%   -         -         mesh.data=2 mesh.fsdp=8
    gpt2-medium   8          6.8 35%   6.3 34%   8.3 31%   7.9 16%   model.scan_layers=True model.remat=dots
    gpt2-large    4          6.8 38%   5.6 40%   8.7 33%   7.0 21%   model.scan_layers=True model.remat=dots
    gpt2-xl       4          11.1 41%  9.4 40%   15.1 37%  11.5 23%  model.scan_layers=True
    gpt2-xl       4          -         10.8 51%  -         -         mesh.data=2 mesh.fsdp=8
    gpt3-1.3B     2          8.8 50%   7.2 51%   12.0 44%  9.0 28%   model.scan_layers=True model.remat=dots
    gpt3-2.7B     1          7.8 43%   4.4 46%   13.9 36%  6.8 27%   model.scan_layers=True model.remat=block
    gpt3-6.7B     1          15.6 50%  9.3 56%   33.3 42%  17.1 31%  model.scan_layers=True model.remat=block
    llama3.2-1B   1          5.5 38%   4.1 39%   7.9 36%   5.3 26%   model.scan_layers=True model.remat=block model.logits_chunk=256
    qwen2.5-0.5B  1          3.1 32%   2.4 33%   3.6 30%   2.7 23%   model.scan_layers=True model.remat=block model.logits_chunk=256
"""  # noqa: E501 -- flags to copy

import json

from ml_collections import ConfigDict, config_dict

from gpt_jax.configuration import optional_fields, parse_argument
from gpt_jax.data import mixture
from gpt_jax.errors import UserError
from gpt_jax.models import presets
from gpt_jax.models.config import ModelConfig
from gpt_jax.models.decoder import parameter_count

placeholder = config_dict.placeholder

PRESETS = ("books", *(name for name in presets.PRESETS if name != "books"), "gpt3", "weights")
FIELDS = {"batch": int, "steps": int, "epochs": float, "source": str, "size": str, "init_from": str}
FIELDS |= {"attention": str, "mixture": str}


def get_config(argument: str | None = None) -> ConfigDict:
    """The experiment that `argument` names; see the module's docstring."""
    preset, values = parse_argument(argument, presets=PRESETS, fields=FIELDS)
    if "init_from" in values and not (argument or "").startswith(preset):
        preset = "weights"
    config = defaults()
    if preset == "gpt3":
        preset = f"gpt3-{values.get('size', '125M')}"
    elif "size" in values:
        raise UserError(
            f"--config: size={values['size']} stands behind gpt3 only, as in configs/pretrain.py:gpt3,size=1.3B."
        )
    check_choice(values, "attention", ("alternating", "dense"), preset)
    check_choice(values, "mixture", ("gpt3",), preset)
    if preset == "weights":
        config.model.preset = None
    else:
        config.model.preset = preset
        config.tokenizer.vocab_size = presets.preset_fields(preset)["vocab_size"]
    recipes = {
        "books": books,
        "laptop-lstm": laptop_lstm,
        "laptop": laptop,
        "weights": weights,
        "lstm": lstm,
        "gpt1": gpt1,
        "gpt2": gpt2,
        "gpt3": gpt3,
        "llama": llama,
        "qwen": llama,
    }
    next(recipe for family, recipe in recipes.items() if preset.startswith(family))(config)
    if "batch" in values:
        config.train.batch_size = values["batch"]
    if "steps" in values:
        config.train.update(steps=values["steps"], epochs=0.0, tokens=0)
    if "epochs" in values:
        config.train.update(steps=0, epochs=values["epochs"], tokens=0)
    if "source" in values:
        config.data.source = values["source"]
    if "attention" in values:
        config.model.attention_pattern = values["attention"]
    if "mixture" in values:
        config.data.mixture = json.dumps({name: weight for name, (weight, _) in mixture.GPT3.items()})
        config.data.addresses = ConfigDict({name: placeholder(str) for name in mixture.GPT3})
    if "init_from" in values:
        config.init_from = values["init_from"]
    return config.lock()


def check_choice(values: dict, field: str, choices: tuple[str, ...], preset: str) -> None:
    """Raises UserError where a field of GPT-3's recipe has another value, or stands behind another preset."""
    if field in values and not (preset.startswith("gpt3") and values[field] in choices):
        raise UserError(
            f"--config: {field}={values[field]}: expected {' or '.join(choices)}, behind gpt3 only, as in "
            f"configs/pretrain.py:gpt3,{field}={choices[-1]}."
        )


def defaults() -> ConfigDict:
    """Every field of a pretraining run. Left empty (None), a field of `model` takes the preset's value."""
    return ConfigDict(
        dict(
            run="pretrain",
            seed=0,
            init_from=placeholder(str),  # weights to begin with: a folder of Hugging Face, OpenAI or ours, a GGUF file
            # The fields of ModelConfig (gpt_jax/models/config.py says what they mean); vocab_size is the tokenizer's.
            model=dict(preset="books", **optional_fields(ModelConfig)),
            tokenizer=dict(
                path=placeholder(str),  # one to use instead of training one: a folder, a tokenizer.json, a GGUF file
                kind="sentencepiece",  # of the tokenizer that is trained on the text; with a path: what is found there
                vocab_size=4096,
                model_type="bpe",  # bpe | unigram
                character_coverage=0.9995,  # share of the characters that get pieces; the rest is spelled in bytes
                training_bytes=10_000_000,  # of text that the tokenizer is trained on; a seeded sample of more
            ),
            data=dict(
                source=placeholder(str),  # books (so by default) | file:PATH-or-glob | tfds:NAME[/CONFIG]
                # Instead of source: addresses and weights, '{"books": 3, "file:web/*.txt": 1}'; or the same for each of
                # some steps, from which on they hold: '{"0": {"books": 1}, "2000": {"books": 3, "file:web/*.txt": 1}}'.
                mixture=placeholder(str),
                addresses=dict(),  # of the names that a mixture has instead of addresses (mixture=gpt3)
                text_field="text",  # of jsonl files and TFDS data sets
                encoding="utf-8",
                validation_address=placeholder(str),  # as source; by default a part of each source is held out:
                validation_fraction=0.05,
                sequence_length=placeholder(int),  # the model's context_length; with init_from at most 512
                cache_dir=placeholder(str),  # $XDG_CACHE_HOME/gpt_jax, ~/.cache/gpt_jax
                prefetch=4,  # batches that are read ahead
            ),
            optimizer=dict(
                name="adamw",  # adamw | openai_adam
                beta1=0.9,
                beta2=0.999,
                epsilon=1e-8,
                weight_decay=0.01,
                clip_norm=1.0,
                mu_dtype=placeholder(str),
            ),
            schedule=dict(
                name="cosine",  # cosine | linear | constant; OpenAI's: warmup_cosine | warmup_linear | warmup_constant
                peak=2.5e-4,
                warmup_steps=0,
                warmup_tokens=placeholder(int),  # instead of warmup_steps
                decay_steps=placeholder(int),  # to the end of the run
                decay_tokens=placeholder(int),  # instead of decay_steps
                final_fraction=0.0,
            ),
            mesh=dict(data=-1, fsdp=1, tensor=1, sequence=1, slices=1),
            train=dict(
                batch_size=64,  # sequences a step, over all devices
                accumulation=1,
                steps=0,
                epochs=0.0,  # instead of steps
                tokens=0,  # instead of steps
                ramp_tokens=0,  # the batch grows to batch_size over so many tokens; 0: it is full from the start
                ramp_from=32_768,  # tokens of the ramp's first batch; its others are multiples of it
                ramp_stages=8,  # batches of the ramp, each of which is compiled
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
                profile_steps=placeholder(str),  # FIRST:LAST, as 10:13: a trace of these steps, under WORKDIR/profile
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


def laptop(config: ConfigDict) -> None:
    """A decoder for fine-tuning on a laptop: about once over 75 MB of novels, within the hour on two CPU cores."""
    config.train.update(batch_size=16, steps=5000, eval_every=1000)
    config.schedule.update(peak=3e-3, warmup_steps=200)
    config.optimizer.update(beta2=0.98, weight_decay=0.1)
    config.checkpoint.update(every=250, keep=20)  # all, for curves over pretraining: configs/evaluate.py
    config.report.sample_every = 2500


def laptop_lstm(config: ConfigDict) -> None:
    """An LSTM of `laptop`'s size on as many tokens, in larger batches: only its time has to run step by step."""
    config.train.update(batch_size=32, steps=2500, eval_every=500)
    config.schedule.update(peak=5e-3, warmup_steps=100)
    config.optimizer.update(beta2=0.98, weight_decay=0.1)
    config.checkpoint.every = 250
    config.report.sample_every = 1250


def lstm(config: ConfigDict) -> None:
    """GPT-1's recipe for the LSTM of its table 5, of which the paper says no more; clipped, as LSTMs usually are."""
    gpt1(config)
    config.optimizer.clip_norm = 1.0
    config.model.update(compute_dtype=None, attention_block=None)  # its recurrence runs in float32


def weights(config: ConfigDict) -> None:
    """Goes on from the weights of `init_from`, with their tokenizer, on a text of one's own; cautious rates.

    No warm-up, so that a small text will do.
    """
    config.train.update(batch_size=8, epochs=1.0, eval_every=100)
    config.schedule.update(peak=5e-5, final_fraction=0.1)
    config.optimizer.update(beta2=0.95, weight_decay=0.1)
    config.checkpoint.every = config.report.sample_every = 100


def gpt1(config: ConfigDict) -> None:
    """The paper's pretraining (§4.1): 64 sequences of 512 tokens, 100 epochs, OpenAI's Adam at 2.5e-4.

    2,000 steps of linear warm-up, cosine to 0, decay 0.01. The paper clips nothing and publishes neither beta2 nor the
    number of updates. OpenAI's cosine does not begin where the warm-up ends, so shorten `warmup_steps` with the run.
    """
    config.train.update(batch_size=64, epochs=100.0)
    config.schedule.update(name="warmup_cosine", peak=2.5e-4, warmup_steps=2000)
    config.optimizer.update(name="openai_adam", weight_decay=0.01, clip_norm=0.0)
    on_accelerators(config)


def on_accelerators(config: ConfigDict) -> None:
    """How the papers' sizes run, on as many chips as there are; it changes no model, and each field may be set back.

    bfloat16 products, weights and optimizer divided over all chips, queries in blocks that skip the keys behind them.
    """
    config.model.update(compute_dtype="bfloat16", attention_block=256)
    config.mesh.update(data=1, fsdp=-1)


def gpt2(config: ConfigDict) -> None:
    """GPT-2's sizes with the rates of GPT-3's Table 2.1 and appendix B, since GPT-2's own were not published.

    600,000 steps are nanoGPT's, at 524,288 tokens each.
    """
    peak = {"gpt2-small": 6e-4, "gpt2-medium": 3e-4, "gpt2-large": 2.5e-4, "gpt2-xl": 2e-4}[config.model.preset]
    config.train.update(batch_size=512, steps=600_000)
    config.schedule.update(peak=peak, warmup_steps=700, final_fraction=0.1)
    config.optimizer.update(beta2=0.95, weight_decay=0.1)
    on_accelerators(config)
    if config.model.preset == "gpt2-xl":
        config.model.remat = "dots"  # four sequences a chip then fit into 16 GiB


def gpt3(config: ConfigDict) -> None:
    """Table 2.1 and appendix B: 300B tokens, warm-up over 375M, cosine to a tenth over 260B, clipping at 1, decay 0.1.

    Batches of the table's tokens in whole sequences of 2,048, to which they grow from 32k tokens on in a straight line
    over the first 4 to 12B tokens "depending on the model size": between the ends, which are taken for the smallest and
    the largest model, the numbers are ours, a straight line over the logarithm of the parameters.
    """
    sequences, peak, ramp = {
        "125M": (256, 6e-4, 4.0e9),
        "350M": (256, 3e-4, 5.1e9),
        "760M": (256, 2.5e-4, 6.0e9),
        "1.3B": (512, 2e-4, 6.6e9),
        "2.7B": (512, 1.6e-4, 7.4e9),
        "6.7B": (1024, 1.2e-4, 8.4e9),
        "13B": (1024, 1e-4, 9.1e9),
        "175B": (1536, 0.6e-4, 12.0e9),
    }[config.model.preset.removeprefix("gpt3-")]
    config.train.update(batch_size=sequences, tokens=300_000_000_000, ramp_tokens=int(ramp))
    config.schedule.update(
        peak=peak, warmup_tokens=375_000_000, decay_tokens=260_000_000_000, final_fraction=0.1
    )  # fmt: skip
    config.optimizer.update(beta2=0.95, weight_decay=0.1)
    on_accelerators(config)


def llama(config: ConfigDict) -> None:
    """Llama's and Qwen's sizes with Llama 2's recipe (Touvron et al. 2023, §2.2): 2T tokens, 4M a step.

    2,000 steps of warm-up, cosine to a tenth, peak 3e-4 (1.5e-4 from 30B parameters on), clipping at 1, decay 0.1.
    """
    model = presets.model_config(config.model.preset)
    config.data.sequence_length = min(model.context_length, 8192)
    config.train.update(batch_size=2**22 // config.data.sequence_length, steps=500_000)
    peak = 1.5e-4 if parameter_count(model) > 30e9 else 3e-4
    config.schedule.update(peak=peak, warmup_steps=2000, final_fraction=0.1)
    config.optimizer.update(beta2=0.95, epsilon=1e-5, weight_decay=0.1)
    on_accelerators(config)
