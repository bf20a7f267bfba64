"""Scaling laws: a ladder of small runs, the curve through their losses, and what it says of larger ones.

    python -m gpt_jax.main --config=configs/scaling.py[:PRESET[,source=ADDRESS][,read=PATHS][,budget=FLOPS]]

Presets: `books` (default), 8 runs on 18 public-domain books; `novels`, the ladder of the README, 14 runs on some 75 MB
of text (source=ADDRESS); `fit`, no run of its own, only what is read. What it does:

- makes every run of `ladder`, WIDTHxLAYERS@TOKENS/TOKENS/..., each a pretraining run in WORKDIR/ladder/NAME. Its
  learning rate peaks at schedule.peak · (width / 128)^-0.5, and falls to a tenth over its own length: a loss from the
  middle of a longer schedule is not that budget's loss. A run that is done is not made again, one that was stopped goes
  on;
- or takes finished ones: `read` names workdirs, folders of them, and .csv, .tsv or .jsonl files with the columns
  `loss` and `parameters`, `tokens`, `compute` (or L, N, D, C), from anywhere;
- fits L(N,D), L(N), L(D) and L(C), each with an irreducible term and bootstrap intervals;
- with `held_out`: writes prediction.json, then makes that run, and reports both numbers;
- with `budget`: says which size and how many tokens have the least loss for so many FLOPs.

Written are scaling.json, report.md, curves.png, residuals.png, optimal.png.

Each run is a config of configs/pretrain.py, whose fields can all be set here too (--config.data.source=...).

Measured (2 CPU cores, AMD EPYC, 2026-11-22, beside other work; docs/scaling/): the 14 runs of `novels` on 97 novels, 75
MB, two or three at a time within 52 minutes. From 13 of them the loss of the 160x7 decoder on 11.7M tokens, four times
the compute of the largest, was foretold as 2.3477 nats per token; made afterwards, in 33 minutes: 2.3681.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

from gpt_jax.configuration import parse_argument

LADDERS = {  # what is run, and what is foretold
    "books": ("48x2@1.6M/3.2M/4.8M,64x3@1.6M/3.2M/4.8M,80x3@1.6M/3.2M", "128x5@3.2M"),
    "novels": (
        "48x2@1.6M/3.2M/6.4M/12.8M,64x3@1.6M/3.2M/6.4M,80x3@1.6M,96x4@3.2M/6.4M,128x5@3.2M/6.4M,160x6@1.6M/3.2M",
        "160x7@11.7M",
    ),
    "fit": ("", ""),
}
FIELDS = {"source": str, "read": str, "budget": float}


def get_config(argument: str | None = None) -> ConfigDict:
    """The experiment that `argument` names; see the module's docstring."""
    preset, values = parse_argument(argument, presets=LADDERS, fields=FIELDS)
    pretrain = runpy.run_path(str(Path(__file__).with_name("pretrain.py")))
    config = pretrain["get_config"]("books").unlock()
    # A small vocabulary and a short context: little of the compute goes where N does not count it.
    config.model.update(context_length=128, attention_block=0, logits_chunk=0)
    config.tokenizer.vocab_size = 512
    config.data.update(source=values.get("source", "books"), sequence_length=128, validation_fraction=0.02)
    config.optimizer.update(beta2=0.98, weight_decay=0.1)
    config.schedule.update(peak=3e-3, warmup_steps=20, final_fraction=0.1)
    config.train.update(batch_size=16, steps=0, epochs=0.0, eval_every=0, log_every=20)
    config.checkpoint.update(every=1000, keep=1)
    config.report.update(sample_every=0, tensorboard=False)
    config.run = "scaling"
    config.ladder, config.held_out = LADDERS[preset]
    config.read = values.get("read", "")  # paths and patterns of finished runs and tables, separated by commas
    config.budget = values.get("budget", 0.0)  # FLOPs (6·N·D) to find the best size for; 0: none
    config.scaling = dict(
        head_dim=16,
        base_width=128,  # schedule.peak is the rate at this width;
        peak_exponent=-0.5,  # at others it is multiplied by (width / base_width)^this
        warmup_fraction=0.05,  # of a run's steps, but no fewer than schedule.warmup_steps
        least_tokens=0,  # shorter runs are no points of a law: their loss is still falling from its first plateau
        huber_delta=1e-3,  # Hoffmann et al. 2022
        resamples=200,  # of the points, for the intervals
    )
    return config.lock()
