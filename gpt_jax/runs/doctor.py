"""`--doctor`: everything that can be known to be wrong with a run before it is started, one line each.

A check is a function of what was asked, in `CHECKS`: it returns what is well in a line, or raises UserError with the
repair. It leaves nothing behind on any disk. On several processes all of them do all checks, in the same order.
"""

import configparser
import dataclasses
import fcntl
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from gpt_jax import configuration
from gpt_jax.errors import UserError
from gpt_jax.models import decoder
from gpt_jax.models.config import ModelConfig
from gpt_jax.models.presets import model_config
from gpt_jax.parallel import runtime
from gpt_jax.parallel.mesh import make_mesh
from gpt_jax.runs.recipe import check_batch, check_ramp
from gpt_jax.runs.workdir import cache_folder
from gpt_jax.text.tokenizer import Tokenizer

ROOT = Path(__file__).parents[2]
LOCK_FILE = Path("/tmp/libtpu_lockfile")  # libtpu's own, one for each machine
NOT_CHECKED = "not checked: see above"
BYTES_PER_PARAMETER = 12  # a float32 and Adam's two moments


@dataclasses.dataclass
class Asked:
    """What the run was asked to do, and what the checks so far have found.

    Attributes:
      config, workdir: as given; joined: whether the processes are; model, tokenizer: of the config, once it resolves.
    """

    config: ConfigDict
    workdir: Path
    joined: bool = False
    model: ModelConfig | None = None
    tokenizer: Tokenizer | None = None


def run(config: ConfigDict, workdir: Path) -> int:
    """Does all checks and prints what each found; returns the exit code: 0, or 2 where anything is wrong."""
    asked = Asked(config, workdir)
    with runtime.guarded():
        wrong = sum(not _passes(check, asked) for check in CHECKS)
        well = asked.joined and runtime.on_every_process(wrong == 0)
    return 0 if well else 2


def _passes(check: Callable[[Asked], str], asked: Asked) -> bool:
    """Prints what a check has found: what is well once, what is wrong from every process that found it."""
    name = check.__name__.strip("_")
    several = asked.joined and jax.process_count() > 1
    try:
        line = check(asked)
    except UserError as error:
        print(f"wrong  {name}{f' (process {jax.process_index()})' if several else ''}: {error}", flush=True)
        return False
    if not several or runtime.is_main_process():
        print(f"ok     {name}: {line}", flush=True)
    return True


def packages(asked: Asked) -> str:
    """Python and the packages against the ranges of setup.cfg; those that differ from the tests' own are named."""
    python, required = _ranges()
    wrong = [] if platform.python_version() in python else [f"Python {platform.python_version()} (expected {python})"]
    for requirement in required:
        found = _installed(requirement.name)
        if found is None:
            wrong.append(f"{requirement.name} is missing")
        elif not requirement.specifier.contains(found, prereleases=True):
            wrong.append(f"{requirement.name} {found} (expected {requirement.specifier})")
    if wrong:
        raise UserError(f"{'; '.join(wrong)}. Repair: pip install -r requirements.txt -e .")
    other = [f"{pin.name} {found}" for pin in _pins() if (found := _installed(pin.name)) not in pin.specifier]
    untested = f"; the tests ran with another {', '.join(other)}" if other else ", all as the tests ran with"
    return f"Python {platform.python_version()}, jax {jax.__version__}, {len(required)} packages{untested}"


def processes(asked: Asked) -> str:
    """The processes of the run come together and agree."""
    runtime.start(configuration.as_json(asked.config))
    asked.joined = True
    return f"{jax.process_count()}, joined" if jax.process_count() > 1 else "one"


def libtpu(asked: Asked) -> str:
    """One libtpu where JAX may use TPUs, held by nobody else."""
    if "tpu" not in (jax.config.jax_platforms or "tpu").split(","):
        return f"not used (JAX_PLATFORMS={jax.config.jax_platforms})"
    names = sorted({name for name in ("libtpu", "libtpu-nightly") if _installed(name)})
    if len(names) > 1:
        raise UserError(f"installed twice: {', '.join(names)}. Repair: pip uninstall -y libtpu-nightly")
    if names and os.environ.get("TPU_LIBRARY_PATH"):
        raise UserError(
            f"there twice: the package libtpu, and TPU_LIBRARY_PATH={os.environ['TPU_LIBRARY_PATH']}, which wins. "
            "Repair: unset TPU_LIBRARY_PATH, or pip uninstall -y libtpu."
        )
    if _held(LOCK_FILE):
        holder = _holder(LOCK_FILE)
        raise UserError(
            f"the TPU is held by {holder or 'another process'} ({LOCK_FILE}). Repair: wait for it or end it; "
            "JAX_PLATFORMS=cpu runs without the TPU."
        )
    return f"{names[0]} {_installed(names[0])}" if names else "none installed"


def devices(asked: Asked) -> str:
    """JAX finds devices, and the accelerators where the machine has some."""
    if not asked.joined:
        return NOT_CHECKED
    try:
        found = jax.devices()
    except RuntimeError as error:
        raise UserError(
            f"JAX finds none: {str(error).splitlines()[0]}. Repair: JAX_PLATFORMS "
            f"({jax.config.jax_platforms or 'not set'}) must name what is there and installed: cpu, cuda or tpu."
        ) from error
    if found[0].platform == "cpu" and (unused := accelerators()):
        extra = {"GPU": "gpu", "TPU": "tpu"}[unused]
        forced = os.environ.get("JAX_PLATFORMS")
        repair = "unset JAX_PLATFORMS" if forced else f'pip install -e ".[{extra}]"'
        because = f"JAX_PLATFORMS={forced}" if forced else f"JAX has no support for it (jax {jax.__version__})"
        raise UserError(f"this machine has a {unused} and JAX uses the CPU: {because}. Repair: {repair}")
    return f"{len(found)} x {found[0].device_kind}, {jax.local_device_count()} of them of this process"


def collective(asked: Asked) -> str:
    """A sum over all devices of all processes is right."""
    if not asked.joined:
        return NOT_CHECKED
    mesh = jax.make_mesh((jax.device_count(),), ("all",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.NamedSharding(mesh, jax.P("all"))
    numbers = np.arange(1, jax.device_count() + 1, dtype=np.float32)
    spread = jax.make_array_from_callback(numbers.shape, rows, lambda index: numbers[index])
    total = float(jax.jit(jnp.sum, out_shardings=jax.NamedSharding(mesh, jax.P()))(spread))
    if total != numbers.sum():
        raise UserError(
            f"the sum of 1 to {len(numbers)} over the devices is {total:g}, expected {numbers.sum():g}: a device or "
            "the network between them computes wrongly. Repair: try the hosts one by one and replace what fails."
        )
    return f"the sum over {len(numbers)} devices is right"


def config(asked: Asked) -> str:
    """The fields resolve: nothing contradicts anything, the weights and the tokenizer that are named are there."""
    from gpt_jax.runs import RUNS, finetune, pretrain, sft, subjects
    from gpt_jax.runs.aligning import policy_start, ranked_training

    if asked.config.run not in RUNS:
        raise UserError(f"run={asked.config.run!r}: expected one of {', '.join(RUNS)}.")
    if asked.config.run == "pretrain":
        asked.config, _ = pretrain.resolve(asked.config, asked.workdir)
        asked.model = model_config(**asked.config.model)
        if asked.config.tokenizer.path:
            asked.tokenizer = pretrain.found_tokenizer(asked.config, asked.workdir)
    elif asked.config.run == "finetune":
        asked.config, _, asked.tokenizer = finetune.resolve(asked.config, asked.workdir)
        asked.model = model_config(None, **asked.config.model)
    elif asked.config.run in ("sft", "reward", "dpo", "ppo", "grpo"):
        room = {"sft": sft, "reward": ranked_training, "dpo": ranked_training}.get(asked.config.run, policy_start)
        asked.config, start = room.resolve(asked.config, asked.workdir)
        asked.model, asked.tokenizer = model_config(None, **asked.config.model), start.tokenizer
    elif asked.config.run == "evaluate":
        subject, *_ = subjects.open_subjects(asked.config)
        asked.model, asked.tokenizer = subject.config, subject.tokenizer
    else:
        return f"read; what `{asked.config.run}` reads is looked at when it starts"
    return f"resolves: {asked.config.run}, {decoder.parameter_count(asked.model):,} parameters"


def mesh(asked: Asked) -> str:
    """The mesh takes all devices, and the batch divides over it."""
    if not asked.joined:
        return NOT_CHECKED
    if "mesh" not in asked.config:
        return "none asked for"
    devices = make_mesh(asked.config.mesh)
    shape = ", ".join(f"{axis}={size}" for axis, size in devices.shape.items())
    if asked.config.run in ("ppo", "grpo"):
        from gpt_jax.runs.aligning import policy_start

        policy_start.check_batches(asked.config, devices)
        return f"{shape}; minibatches divide over it"
    if asked.config.run not in ("pretrain", "finetune", "sft", "reward", "dpo"):
        return shape
    train = asked.config.train
    check_batch(train.batch_size, devices, accumulation=train.accumulation)
    if asked.config.run == "pretrain" and asked.model is not None:
        from gpt_jax.runs import pretrain

        check_ramp(asked.config, pretrain.batch_sizes(asked.config), devices)
    return f"{shape}; batches of {train.batch_size} divide over it"


def tokenizer(asked: Asked) -> str:
    """The tokenizer opens, spells a text as it was, and the model has a row for each of its pieces."""
    if asked.model is None:
        return NOT_CHECKED
    if asked.tokenizer is None:
        return "is trained on the text when the run starts, or found in the cache"
    ids = asked.tokenizer.encode("One two.")
    if not len(ids) or asked.tokenizer.vocab_size > asked.model.vocab_size or max(ids) >= asked.model.vocab_size:
        raise UserError(
            f"the tokenizer has {asked.tokenizer.vocab_size} pieces, the model {asked.model.vocab_size} rows for them. "
            "Repair: the tokenizer that belongs to the weights (tokenizer.path)."
        )
    return f"{asked.tokenizer.kind}, {asked.tokenizer.vocab_size:,} pieces of {asked.model.vocab_size:,} rows"


def workdir(asked: Asked) -> str:
    """The workdir can be written."""
    return _writable(asked.workdir, "--workdir")


def cache(asked: Asked) -> str:
    """The cache folder can be written."""
    return _writable(cache_folder(asked.config.get("data", {}).get("cache_dir")), "data.cache_dir")


def disk(asked: Asked) -> str:
    """The workdir's disk has room for the checkpoints: those that are kept, the best, and the one that is written."""
    if "checkpoint" not in asked.config:
        return "no checkpoints"
    if asked.model is None:
        return NOT_CHECKED
    folder = _existing(asked.workdir)
    count = asked.config.checkpoint.keep + 2
    needed = count * BYTES_PER_PARAMETER * decoder.parameter_count(asked.model)
    there = sum(path.stat().st_size for path in (asked.workdir / "checkpoints").rglob("*") if path.is_file())
    free = shutil.disk_usage(folder).free
    if free + there < needed:
        raise UserError(
            f"{free / 1e9:.2f} GB free at {folder}, and {count} checkpoints of this model ({count - 2} by "
            f"checkpoint.keep, the best, the one being written) take about {needed / 1e9:.2f} GB. Repair: free some "
            "space, a smaller checkpoint.keep, or another --workdir."
        )
    return f"{free / 1e9:.1f} GB free, {count} checkpoints take about {needed / 1e9:.2f} GB"


CHECKS: tuple[Callable[[Asked], str], ...] = (
    packages,
    processes,
    libtpu,
    devices,
    collective,
    config,
    mesh,
    tokenizer,
    workdir,
    cache,
    disk,
)


def accelerators(root: Path = Path("/")) -> str | None:
    """`TPU` or `GPU`, where the machine has one, whatever JAX thinks; None where it has none."""
    if (root / "proc/driver/nvidia/gpus").is_dir() or (root / "dev/nvidia0").exists():
        return "GPU"
    return "TPU" if (root / "dev/accel0").exists() or (root / "dev/vfio/0").exists() else None


def _ranges() -> tuple[SpecifierSet, list[Requirement]]:
    """The Python versions and the packages that setup.cfg asks for; of the installed package where there is no such."""
    if (ROOT / "setup.cfg").is_file():
        options = configparser.ConfigParser()
        options.read(ROOT / "setup.cfg")
        lines = options["options"]["install_requires"].split("\n")
        return SpecifierSet(options["options"]["python_requires"]), _requirements(lines)
    metadata = importlib.metadata.metadata("gpt_jax")
    return SpecifierSet(metadata["Requires-Python"] or ""), _requirements(metadata.get_all("Requires-Dist") or [])


def _pins() -> list[Requirement]:
    path = ROOT / "requirements.txt"
    return _requirements(path.read_text().splitlines()) if path.is_file() else []


def _requirements(lines: list[str]) -> list[Requirement]:
    """Those of the lines that hold here and are no extra's."""
    parsed = [Requirement(line) for line in map(str.strip, lines) if line and not line.startswith("#")]
    return [requirement for requirement in parsed if not requirement.marker or requirement.marker.evaluate()]


def _installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _held(path: Path) -> bool:
    """Whether another process has locked the file."""
    try:
        with open(path) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # there is none, or it is another user's: JAX will say
        return False
    return False


def _holder(path: Path) -> str | None:
    """The process that has the file open, as far as this user may know."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if process.name != str(os.getpid()) and any(link.resolve() == path for link in (process / "fd").iterdir()):
                command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                return f"process {process.name} ({command[:80]})"
        except OSError:
            continue
    return None


def _writable(folder: Path, name: str) -> str:
    """Says that a file can be written in `folder`, or where it will be made; leaves none."""
    if folder.parts[:1] in (("gs:",), ("s3:",)):
        raise UserError(
            f"{name}={folder.parts[0]}//{'/'.join(folder.parts[1:])}: buckets are not written to. Repair: mount it "
            "(gcsfuse BUCKET FOLDER) and give the folder."
        )
    place = _existing(folder)
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"\0")
    except OSError as error:
        raise UserError(
            f"{name}={folder}: {place} cannot be written ({error.strerror}). Repair: a folder that can, {name}=DIR."
        ) from None
    return f"{folder} can be {'written' if place == folder else 'made'}"


def _existing(folder: Path) -> Path:
    """The folder, or the nearest above it that there is."""
    return next(place for place in (folder, *folder.absolute().parents) if place.exists())
