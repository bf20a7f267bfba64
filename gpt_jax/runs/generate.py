"""Generation: prompts in, continuations out, shown as they are made."""

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from tqdm import tqdm

from gpt_jax import configuration, terminal
from gpt_jax.disk import write_atomically
from gpt_jax.errors import UserError
from gpt_jax.inference.beam_search import beam_search, check_beams
from gpt_jax.inference.engine import Engine
from gpt_jax.inference.generation import STEPS, Continuation, Piece, continue_prompts
from gpt_jax.inference.sampling import Sampling
from gpt_jax.inference.streaming import TextStream
from gpt_jax.models.presets import adapt
from gpt_jax.parallel.mesh import make_mesh
from gpt_jax.parallel.runtime import announce, do_on_main_process, is_main_process
from gpt_jax.progress import say
from gpt_jax.runs.pretrained import open_pretrained, prompt_ids
from gpt_jax.runs.recipe import check_config, check_model_fits
from gpt_jax.runs.workdir import environment, open_workdir
from gpt_jax.text.tokenizer import Tokenizer
from gpt_jax.training.metrics_log import read_rows
from gpt_jax.training.startup import compilation

Row = dict[str, Any]


def run(config: ConfigDict, workdir: Path) -> list[Row]:
    """Continues the prompts of `config`, or those that an earlier start in `workdir` has left.

    Returns:
      The rows of generations.jsonl.

    Raises:
      UserError: for everything that the caller can mend.
    """
    sampling = sampling_of(config)
    prompts = read_prompts(config)
    mesh = make_mesh(config.mesh)
    pretrained = open_pretrained(config.source)
    model = adapt(pretrained.config, **config.model)
    check_model_fits(model, mesh)
    tokenizer = pretrained.tokenizer(config.tokenizer.path)
    ids = [prompt_ids(tokenizer, prompt) for prompt in prompts]
    check_prompts(ids, config.max_new_tokens, model.context_length)
    if config.beams:
        check_beams(config.beams, tokenizer.vocab_size, len(pretrained.end_ids(tokenizer)))
    resumed = config.prompt is None  # a single prompt is asked anew each time, and another may follow it
    with open_workdir(workdir):
        facts = {"prompts": prompts, "tokenizer": tokenizer.fingerprint}
        if resumed:
            do_on_main_process(lambda: check_config(config, workdir))
            do_on_main_process(
                lambda: configuration.check_same(workdir, "data.json", facts, what="prompts or tokenizer")
            )
        do_on_main_process(lambda: record(config, facts, workdir))
        engine = Engine(
            pretrained.parameters(mesh, model),
            model,
            mesh,
            vocab_size=tokenizer.vocab_size,
            end_ids=pretrained.end_ids(tokenizer),
            slots=config.slots,
        )
        with Generations(workdir / "generations.jsonl", prompts, resumed) as generations:
            wanted = [
                [n for n in range(config.beams or config.samples) if (i, n) not in generations.done]
                for i in range(len(prompts))
            ]
            if config.beams:
                search(config, engine, tokenizer, ids, wanted, generations)
            else:
                draw(config, engine, tokenizer, ids, wanted, sampling, generations)
        announce(f"written: {generations.path}")
        return generations.rows


# --- what is asked


def sampling_of(config: ConfigDict) -> Sampling:
    """The options of the draws. UserError: for what is out of range or contradictory."""
    options = {name: config[name] for name in ("top_k", "top_p", "min_p") if config[name] is not None}
    sampling = Sampling(
        config.max_new_tokens,
        config.temperature,
        repetition_penalty=config.repetition_penalty,
        seed=config.seed,
        logprobs=config.logprobs,
        **options,
    )
    for name, least in (("samples", 1), ("beams", 0), ("slots", 1)):
        if config[name] < least:
            raise UserError(f"{name}={config[name]}: expected at least {least}.")
    if not all(config.stop):
        raise UserError("stop: an empty stop string would end every text before it begins: leave it out.")
    if config.beams:
        drawing = {"samples": 1, "temperature": 0.0, "repetition_penalty": 1.0, "logprobs": None}
        if strange := [f"{name}={config[name]}" for name, off in drawing.items() if config[name] != off]:
            raise UserError(
                f"beams={config.beams} does not go with {', '.join(strange)}: a beam search draws nothing, and its "
                "beams are the samples. Set --config.temperature=0, and leave the others out."
            )
    return sampling


def read_prompts(config: ConfigDict) -> list[str]:
    """The prompts of the flag, of the file, or of standard input.

    Raises:
      UserError: when there are none, one is empty, or the file is not UTF-8.
    """
    if (config.prompt is None) == (config.prompts is None):
        raise UserError(
            'expected one of --config.prompt="a text to continue" and --config.prompts=FILE (- is standard input).'
        )
    if config.prompt is not None:
        prompts, where = [config.prompt], "prompt"
    else:
        where = "standard input" if config.prompts == "-" else config.prompts
        try:
            content = (
                sys.stdin.buffer.read() if config.prompts == "-" else Path(config.prompts).expanduser().read_bytes()
            )
            lines = content.decode("utf-8-sig").replace("\r\n", "\n").removesuffix("\n").split("\n")
        except UnicodeDecodeError as error:
            raise UserError(
                f"{where}: byte {error.start} is not UTF-8 ({error.reason}). Save it as UTF-8, or convert it: "
                "iconv -f WINDOWS-1252 -t UTF-8."
            ) from None
        except OSError as error:
            raise UserError(f"--config.prompts={config.prompts}: cannot be read ({error.strerror}).") from None
        jsonl = where.endswith(".jsonl")
        prompts = [_prompt_of(line, f"{where}, line {n}") if jsonl else line for n, line in enumerate(lines, 1)]
    if not prompts:
        raise UserError(f"{where}: no prompt in it; expected one on each line.")
    for number, prompt in enumerate(prompts, 1):
        if not prompt.strip():
            raise UserError(f"{where}: prompt {number} is empty; expected a text to continue.")
    return prompts


def _prompt_of(line: str, where: str) -> str:
    try:
        prompt = json.loads(line)["prompt"]
    except (ValueError, TypeError, KeyError):
        prompt = None
    if not isinstance(prompt, str):
        raise UserError(f'{where}: expected an object with a text "prompt", not {line[:60]!r}.')
    return prompt


def check_prompts(ids: list[list[int]], max_new_tokens: int, context_length: int) -> None:
    """Raises UserError for a prompt that leaves no room in the context for what is asked for."""
    for number, prompt in enumerate(ids, 1):
        if len(prompt) + max_new_tokens > context_length:
            raise UserError(
                f"prompt {number} has {len(prompt):,} tokens; with max_new_tokens={max_new_tokens:,} that is more than "
                f"the context's {context_length:,}. Shorten one of the two."
            )


def record(config: ConfigDict, facts: Row, workdir: Path) -> None:
    """Writes what the run is made of, now that nothing is left to refuse."""
    for name, value in (
        ("data.json", facts),
        ("environment.json", environment()),
        ("config.json", configuration.as_json(config)),
    ):
        configuration.write_json(workdir / name, value)


# --- what is made


class Generations:
    """generations.jsonl: rows are added as they are made, and stand in the prompts' order when all are there."""

    def __init__(self, path: Path, prompts: list[str], resumed: bool):
        """`resumed`: keeps the whole rows of an earlier start."""
        self.path, self.prompts = path, prompts
        self.rows: list[Row] = read_rows(path) if resumed else []

    @property
    def done(self) -> set[tuple[int, int]]:
        """(prompt, sample) of the rows that are there."""
        return {(row["index"], row["sample"]) for row in self.rows}

    def __enter__(self) -> "Generations":
        if is_main_process():
            self._write()
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is None:
            self.rows.sort(key=lambda row: (row["index"], row["sample"]))
        if is_main_process():
            self._write()

    def _write(self) -> None:
        write_atomically(self.path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self.rows).encode())

    def add(self, index: int, sample: int, text: str, finished: str, tokens: int, **more: Any) -> None:
        """One continuation more."""
        row = dict(
            index=index, sample=sample, prompt=self.prompts[index], text=text, finished=finished, tokens=tokens, **more
        )
        self.rows.append(row)
        if is_main_process():
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                file.flush()
                os.fsync(file.fileno())


def draw(
    config: ConfigDict,
    engine: Engine,
    tokenizer: Tokenizer,
    ids: list[list[int]],
    wanted: list[list[int]],
    sampling: Sampling,
    generations: Generations,
) -> None:
    """Draws the wanted samples of each prompt; a continuation's draws depend on the prompt's and its own number."""
    samples = [[index * config.samples + n for n in own] for index, own in enumerate(wanted)]
    count = sum(map(len, wanted))
    live = count == len(ids) == config.samples == 1
    if live and is_main_process():
        terminal.write(generations.prompts[0], sys.stdout)
    steps = 1 if live else STEPS
    pieces = continue_prompts(
        engine, tokenizer, ids, sampling, stop=config.stop, samples=samples, steps=steps
    )  # fmt: skip
    stopwatch = Stopwatch()
    with tqdm(total=count, unit="text", disable=live or not (is_main_process() and sys.stderr.isatty())) as bar:
        for piece in stopwatch.watch(pieces):
            if live and is_main_process():
                terminal.write(piece.text, sys.stdout)
            found = piece.so_far
            if found.finished:
                told = {} if config.logprobs is None else {"logprobs": told_logprobs(found, tokenizer)}
                number = piece.sample - piece.prompt * config.samples
                generations.add(piece.prompt, number, found.text, found.finished, len(found.ids), **told)
                bar.update()
    if is_main_process() and count:
        print(flush=True) if live else show(generations.rows)
        say(stopwatch.said)


class Stopwatch:
    """How fast tokens came, without the time that JAX took to compile its programs.

    Attributes:
      said: the result in words.
    """

    def __init__(self):
        self.said = ""

    def watch(self, pieces: Iterator[Piece]) -> Iterator[Piece]:
        """The same pieces."""
        began, made = time.monotonic(), {}
        with compilation() as before:
            piece = next(pieces, None)
        first = time.monotonic() - began - sum(before[part] for part in ("tracing", "compiling"))
        with compilation() as later:
            while piece is not None:
                made[piece.prompt, piece.sample] = len(piece.so_far.ids)
                yield piece
                piece = next(pieces, None)
        compiling = sum(spent[part] for spent in (before, later) for part in ("tracing", "compiling"))
        seconds, tokens = time.monotonic() - began - compiling, sum(made.values())
        self.said = (
            f"{tokens:,} tokens in {seconds:.1f} s, {tokens / seconds:.1f} a second; the first after {first:.2f} s; "
            f"besides, {compiling:.1f} s for compiling"
        )


def search(
    config: ConfigDict,
    engine: Engine,
    tokenizer: Tokenizer,
    ids: list[list[int]],
    wanted: list[list[int]],
    generations: Generations,
) -> None:
    """Searches the best beams of each prompt that has none yet."""
    left = [index for index, own in enumerate(wanted) if own]
    for index in tqdm(left, unit="prompt", disable=not (is_main_process() and sys.stderr.isatty())):
        generations.rows = [row for row in generations.rows if row["index"] != index]
        found = beam_search(
            engine, ids[index], beams=config.beams, max_new_tokens=config.max_new_tokens,
            length_penalty=config.length_penalty,
        )  # fmt: skip
        for rank, beam in enumerate(found):
            stream = TextStream(tokenizer, config.stop, ids[index])
            stream.push(beam.ids)
            stream.finish()
            finished = "stop" if beam.ended or stream.stopped is not None else "length"
            generations.add(index, rank, stream.text, finished, len(beam.ids), score=beam.score)
    if is_main_process():
        show(generations.rows)


def told_logprobs(found: Continuation, tokenizer: Tokenizer) -> list[Row]:
    """The log-probabilities of each token, for reading."""
    rows = []
    for place, (id, logprob) in enumerate(zip(found.ids, found.logprobs, strict=True)):
        row = {"token": tokenizer.decode([id]), "logprob": round(logprob, 6)}
        if found.alternatives:
            row["likeliest"] = [[tokenizer.decode([other]), round(p, 6)] for other, p in found.alternatives[place]]
        rows.append(row)
    return rows


def show(rows: list[Row], most: int = 10) -> None:
    """Prints the first continuations behind their prompts."""
    for row in sorted(rows, key=lambda row: (row["index"], row["sample"]))[:most]:
        print(f"--- prompt {row['index']}, sample {row['sample']} ({row['finished']})")
        terminal.write(f"{row['prompt']}{row['text']}\n", sys.stdout)
    if len(rows) > most:
        print(f"--- and {len(rows) - most:,} more")
