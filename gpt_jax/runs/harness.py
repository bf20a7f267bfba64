"""The standard harness (EleutherAI's lm_eval) on our models: any of its tasks, without torch and without a network.

Its documentation says that a model is a subclass of `LM` with three methods; `TemplateLM` brings the rule by which a
context and its continuation become tokens (`gpt_jax.tasks.pairs` has the same one). To the harness this is rank 0 of 1:
the batches are divided over the mesh.
"""

import functools
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from gpt_jax import configuration
from gpt_jax.errors import UserError, did_you_mean
from gpt_jax.extras import require
from gpt_jax.inference.sampling import Sampling
from gpt_jax.parallel.mesh import make_mesh
from gpt_jax.parallel.runtime import announce, do_on_main_process, is_main_process
from gpt_jax.progress import clock
from gpt_jax.runs.questions import Asked
from gpt_jax.runs.subjects import open_subjects
from gpt_jax.runs.workdir import environment, open_workdir

NEW_TOKENS = 256  # of tasks that do not say how much may be written; the harness' own models have the same
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # the first that is there
GENERATION_OPTIONS = ("until", *_LENGTHS, "do_sample", "temperature", "top_k", "top_p")
FREE_TO_CHANGE = (*configuration.FREE_TO_CHANGE, "batch_size")


@functools.cache
def adapter() -> type:
    """The harness' model around an `Asked`: class JaxLM(TemplateLM). UserError: lm_eval is not installed."""
    template = require("lm_eval.api.model", "lm-eval").TemplateLM
    windows = require("lm_eval.utils", "lm-eval").get_rolling_token_windows

    class JaxLM(template):
        """See the module's docstring; `asked` has its parameters."""

        def __init__(self, asked: Asked):
            super().__init__()
            self._asked = asked
            self._specials = asked.tokenizer.specials

        @property
        def eot_token_id(self) -> int:
            return self._specials.end_of_text

        @property
        def prefix_token_id(self) -> int:
            before = self._specials.beginning_of_text
            return self.eot_token_id if before is None else before

        @property
        def max_length(self) -> int:
            return self._asked.config.context_length

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_) -> list[int]:
            ids = self._asked.tokenizer.encode(string).tolist()
            before = self._specials.beginning_of_text
            return ids if before is None or add_special_tokens is False else [before, *ids]

        def _loglikelihood_tokens(self, requests, **_) -> list[tuple[float, bool]]:
            return self._scored([(context, continuation) for _, context, continuation in requests])

        def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
            texts = [self.tok_encode(request.args[0], add_special_tokens=False) for request in requests]
            parts = [
                (number, read[: len(read) - len(predicted) + 1], predicted)
                for number, ids in enumerate(texts)
                for read, predicted in windows(ids, self.prefix_token_id, self.max_length, 1)
            ]
            totals = [0.0] * len(texts)
            found = self._scored([(read, predicted) for _, read, predicted in parts]) if parts else []
            for (number, *_), (value, _) in zip(parts, found, strict=True):
                totals[number] += value
            return totals

        def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
            groups: dict[tuple, list[int]] = {}
            ignored: dict[str, Any] = {}
            for number, request in enumerate(requests):
                options = request.args[1]
                ignored |= {name: value for name, value in options.items() if name not in GENERATION_OPTIONS}
                until = options.get("until") or ()
                until = (until,) if isinstance(until, str) else tuple(until)
                groups.setdefault((until, sampling_of(options, self.max_length)), []).append(number)
            if ignored:
                announce(f"lm-eval: options of the tasks' generations that we do not know have no effect: {ignored}")
            written = [""] * len(requests)
            for (until, sampling), numbers in groups.items():
                prompts = [requests[number].args[0] for number in numbers]
                self._tell_cut(
                    [len(self.tok_encode(one)) for one in prompts], self.max_length - sampling.max_new_tokens
                )
                texts = self._asked.continuations(prompts, sampling, stop=until)
                for number, text in zip(numbers, texts, strict=True):
                    written[number] = text
            return written

        def _scored(self, pairs) -> list[tuple[float, bool]]:
            """Of contexts and continuations as ids; the first tokens of what is too long are cut."""
            wholes = [[*context, *continuation] for context, continuation in pairs]
            self._tell_cut(map(len, wholes), self.max_length + 1)
            wholes = [whole[-(self.max_length + 1) :] for whole in wholes]
            starts = [max(len(whole) - len(own), 1) for whole, (_, own) in zip(wholes, pairs, strict=True)]
            sequences = [np.array(whole, np.int32) for whole in wholes]
            values, greedy = self._asked.log_probabilities(self._asked.texts(sequences, np.array(starts)))
            return [(float(value), bool(hit)) for value, hit in zip(values, greedy, strict=True)]

        def _tell_cut(self, lengths: Iterable[int], most: int) -> None:
            if cut := sum(length > most for length in lengths):
                announce(
                    f"lm-eval: of {cut:,} texts the first tokens are cut to fit the context of {self.max_length:,}"
                )

    return JaxLM


def sampling_of(options: Mapping[str, Any], max_length: int) -> Sampling:
    """What the harness' options of a generation mean: greedy, unless they say that it samples."""
    said = (int(options[name]) for name in _LENGTHS if name in options)
    most = min(next(said, NEW_TOKENS), max_length - 1)
    temperature = float(options.get("temperature") or options.get("do_sample", False))
    if not options.get("do_sample", temperature > 0):
        return Sampling(most, temperature=0.0)
    return Sampling(most, temperature, top_k=options.get("top_k", 0), top_p=options.get("top_p", 1.0))


def run(config: ConfigDict, workdir: Path) -> dict[str, dict[str, float]]:
    """Evaluates the model that `config` names on the harness' tasks `data.tasks`.

    Writes the harness' own result file (and its samples) into `workdir`, beside scores.json.

    Raises:
      UserError: for everything that the caller can mend.
    """
    began = time.monotonic()
    stay_offline()
    model_class = adapter()
    subjects = open_subjects(config)
    if len(subjects) > 1 or len(subjects[0].moments) > 1:
        raise UserError("lm-eval takes one model at one checkpoint: model=PATH.")
    [subject] = subjects
    mesh = make_mesh(config.mesh)
    with open_workdir(workdir):
        current = configuration.as_json(config)
        do_on_main_process(
            lambda: configuration.check_same(workdir, "config.json", current, what="config", free=FREE_TO_CHANGE)
        )
        manager, tasks = _tasks(config.data)
        asked = Asked(subject, mesh, config.batch_size)
        asked.params = subject.moments[0].load(subject.config, mesh)
        announce(f"{subject.name}: {', '.join(tasks)} by lm_eval; writing to {workdir}")
        results = _evaluate(model_class(asked), subject.name, tasks, manager, config, workdir)
        if not is_main_process():
            return {}
        configuration.write_json(workdir / "environment.json", environment())
        configuration.write_json(workdir / "config.json", current)
        scores = {task: _numbers(found) for task, found in results["results"].items()}
        configuration.write_json(workdir / "scores.json", scores)
    for name, metrics in scores.items():
        print(f"{name}: " + ", ".join(f"{metric} {value:.4f}" for metric, value in metrics.items()))
    print(f"time of this start: {clock(time.monotonic() - began)}")
    return scores


def _tasks(data: ConfigDict) -> tuple[Any, list[str]]:
    """The harness' manager of tasks, and the names. UserError: an unknown task, a folder that is not there."""
    if data.include_path is not None and not Path(data.include_path).expanduser().is_dir():
        raise UserError(f"data.include_path={data.include_path}: no such folder. It holds the tasks' YAML files.")
    folder = str(Path(data.include_path).expanduser()) if data.include_path else None
    manager = require("lm_eval.tasks", "lm-eval").TaskManager(include_path=folder, include_defaults=folder is None)
    if not data.tasks:
        raise UserError("data.tasks is empty: lm-eval,tasks=NAME[+NAME...] of the harness' tasks.")
    for name in data.tasks:
        if name not in manager.all_tasks:
            known = manager.all_tasks
            some = f" There are: {', '.join(sorted(known))}." if len(known) < 30 else ""
            raise UserError(f"lm-eval has no task {name!r}.{did_you_mean(name, known)}{some}")
    return manager, list(data.tasks)


def _evaluate(model, name: str, tasks: list[str], manager, config: ConfigDict, workdir: Path) -> dict[str, Any]:
    evaluator, loggers = require("lm_eval.evaluator", "lm-eval"), require("lm_eval.loggers", "lm-eval")
    tracker = loggers.EvaluationTracker(output_path=str(workdir)) if is_main_process() else None
    try:
        results = evaluator.simple_evaluate(
            model=model,
            model_args={"pretrained": name},  # what the result file calls it
            tasks=tasks,
            num_fewshot=config.data.shots,
            batch_size=config.batch_size,
            limit=config.data.max_test or None,
            task_manager=manager,
            random_seed=config.seed,
            numpy_random_seed=config.seed,
            fewshot_random_seed=config.seed,
            torch_random_seed=None,
            bootstrap_iters=config.data.bootstrap,
            log_samples=True,
            evaluation_tracker=tracker,
        )
    except (OSError, ConnectionError) as error:
        if type(error).__module__.partition(".")[0] in ("builtins", "datasets", "huggingface_hub", "requests", "httpx"):
            raise UserError(
                f"lm-eval could not read the data of {', '.join(tasks)}: {error}. Tasks that come with it fetch theirs "
                "from the Hugging Face Hub; offline, name tasks of your own by include_path=FOLDER, whose YAML files "
                "say dataset_path: json and dataset_kwargs: {data_files: ...}."
            ) from None
        raise
    if tracker is not None:
        samples = results.pop("samples")
        tracker.save_results_aggregated(results=results, samples=samples)
        for task, rows in samples.items():
            tracker.save_results_samples(task_name=task, samples=rows)
    return results


def _numbers(found: dict[str, Any]) -> dict[str, float]:
    """{"acc": ..., "acc_stderr": ...} of "acc,none" and the like; of other filters "acc,FILTER"."""
    plain = {key.removesuffix(",none"): value for key, value in found.items()}
    return {key: float(value) for key, value in plain.items() if isinstance(value, int | float) and key != "sample_len"}


def stay_offline() -> None:
    """No look at the Hub, unless the user says otherwise: HF_HUB_OFFLINE=0. Read when its packages are imported."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_DATASETS_OFFLINE", os.environ["HF_HUB_OFFLINE"])
