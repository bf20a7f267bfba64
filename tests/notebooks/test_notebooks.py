"""The notebooks as a reader runs them, on tiny settings; and what they do where gpt_jax is not installed."""

import ast
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
from small_models import write_model

from gpt_jax.data.books import find_books
from gpt_jax.errors import UserError

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)

RECORDER = """
import os, sys
with open(os.environ["CALLED"], "a") as file:
    print(*sys.argv[1:], file=file)
"""


@pytest.fixture
def environment(tmp_path) -> dict[str, str]:
    """Of a process whose pip installs nothing, and writes what it was asked for into the file $CALLED."""
    (tmp_path / "stand-ins/pip").mkdir(parents=True)
    (tmp_path / "stand-ins/pip/__init__.py").touch()
    (tmp_path / "stand-ins/pip/__main__.py").write_text(RECORDER)
    env = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_", "PYTHON", "MPL"))}
    return env | {
        "PYTHONPATH": str(tmp_path / "stand-ins"), "CALLED": str(tmp_path / "called"), "IPYTHONDIR": str(tmp_path),
        "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1",
    }  # fmt: skip


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    """Texts and compiled programs of one notebook serve the next."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def execute(environment, cache):
    """Runs a notebook with other settings; returns {cell id: its outputs}."""

    def run(name: str, **settings) -> dict[str, list]:
        notebook = nbformat.read(ROOT / "notebooks" / name, as_version=4)
        [cell] = [cell for cell in notebook.cells if "settings" in cell.metadata.get("tags", [])]
        assert assigned(cell.source) == set(settings)
        cell.source = "\n".join(f"{name} = {value!r}" for name, value in settings.items())
        options = dict(timeout=600, startup_timeout=300)  # a busy machine is no failure
        client = nbclient.NotebookClient(notebook, **options, resources={"metadata": {"path": ROOT / "notebooks"}})
        python_path = os.pathsep.join([environment["PYTHONPATH"], str(ROOT)])
        client.execute(env=environment | {"PYTHONPATH": python_path, "XDG_CACHE_HOME": str(cache)})
        assert not Path(environment["CALLED"]).exists(), "nothing is installed where everything is there"
        return {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}

    return run


def assigned(source: str) -> set[str]:
    """The names that a cell gives values to."""
    return {
        node.id
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }


def printed(outputs: list) -> str:
    return "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")


def pictures(cells: dict[str, list]) -> set[str]:
    """The cells that show one."""
    return {id for id, outputs in cells.items() if any("image/png" in output.get("data", {}) for output in outputs)}


def tiny_pretraining(folder: Path) -> list[str]:
    """Flags of a run on some 40 KB of words, in which nothing is of any size."""
    draw = random.Random(0)
    words = ["".join(draw.choices("aeioubdfgklmnprst", k=draw.randint(2, 7))) for _ in range(200)]
    (folder / "text.txt").write_text("".join(" ".join(draw.choices(words, k=9)) + ".\n" for _ in range(800)))
    fields = {
        "data.source": f"file:{folder / 'text.txt'}", "tokenizer.vocab_size": 400, "model.num_layers": 1,
        "model.embed_dim": 32, "model.num_heads": 2, "model.context_length": 32, "train.batch_size": 8,
        "train.steps": 10, "schedule.warmup_steps": 2, "report.sample_tokens": 4, "report.tensorboard": False,
    }  # fmt: skip
    return [f"--config.{name}={value}" for name, value in fields.items()]


@pytest.mark.slow
def test_pretraining_shows_its_loss_and_what_it_writes(execute, tmp_path):
    settings = dict(SOURCE=f"file:{tmp_path / 'text.txt'}", STEPS=10, PROMPTS=["one", "and two"], TOKENS=6)
    cells = execute("pretrain.ipynb", **settings, FLAGS=tiny_pretraining(tmp_path), WORKDIR=str(tmp_path / "run"))
    assert pictures(cells) == {"loss", "next"}
    assert cells["train"][-1].data["text/plain"].startswith("{'loss': ")
    assert printed(cells["write"]).count("[and two]") == 3
    assert (tmp_path / "run/report.md").exists()


@pytest.mark.slow
def test_fine_tuning_shows_scores_confusion_and_labels_of_new_texts(execute, tmp_path):
    try:
        find_books()
    except UserError as missing:
        pytest.skip(str(missing))
    cells = execute(
        "finetune.ipynb",
        TABLE=None, TEXT="text", LABEL="label", ROWS=16, EPOCHS=2, INIT_FROM=None, PRETRAIN=tiny_pretraining(tmp_path),
        PRETRAINED=str(tmp_path / "pretrained"), WORKDIR=str(tmp_path / "tuned"), NEW_TEXTS=["A whale.", "A ball."],
        FLAGS=["--config.train.batch_size=8", "--config.report.tensorboard=False"],
    )  # fmt: skip
    assert "52 examples to learn from, 12 put aside" in printed(cells["split"])
    assert pictures(cells) == {"learning", "confusion", "probabilities"}
    assert "'accuracy'" in cells["finetune"][-1].data["text/plain"]
    assert "worst mistakes on test" in cells["mistakes"][-1].data["text/markdown"]


def test_published_weights_write_are_surprised_and_answer(execute, tmp_path):
    settings = dict(PROMPT="ab", STORY="once", TEXT="a <b> & c", QUESTION="two", ANSWERS=[" x", " yz"], TOKENS=4)
    settings["QUESTIONS"] = ["Who?", "And why?"]
    model = write_model(tmp_path / "model", "gpt2-small", context_length=64)
    template = "{% for m in messages %}{{ m.content }}<|endoftext|>{% endfor %}"
    about = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps(about | {"chat_template": template}))
    cells = execute("talk.ipynb", MODEL=str(model), **settings)
    assert pictures(cells) == {"next", "answers"}
    assert printed(cells["draw"]).count("[once]") == 3
    surprise = cells["surprise"][-1].data["text/html"]
    assert surprise.count("<span title=") == len("a <b> & c") and "&lt;" in surprise and "&amp;" in surprise
    roles = re.findall("^(USER: .*|ASSISTANT):?", printed(cells["chat"]), re.MULTILINE)
    assert roles == ["USER: Who?", "ASSISTANT", "USER: And why?", "ASSISTANT"]


@each_notebook
def test_a_notebook_is_committed_valid_and_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    codes = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert codes and not any(cell.outputs or cell.execution_count for cell in codes)
    kinds = [cell.cell_type for cell in notebook.cells]
    assert ("code", "code") not in zip(kinds, kinds[1:], strict=False), "a sentence stands before each cell of code"


def test_the_notebooks_are_clean_and_formatted():
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, ROOT / "notebooks"], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_all_set_up_themselves_alike():
    """They differ in the packages that they need."""
    sources = {path.stem: set_up(path).splitlines() for path in NOTEBOOKS}
    assert len({tuple(line for line in lines if not line.startswith("EXTRAS")) for lines in sources.values()}) == 1


def set_up(path: Path) -> str:
    [source] = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.id == "setup"]
    return source


def set_up_in(
    folder: Path, env: dict[str, str], *, before: str = "", repository: str = ""
) -> subprocess.CompletedProcess:
    """Runs the set-up cell of fine-tuning in `folder`, after the code `before`."""
    folder.mkdir(exist_ok=True)
    cell = set_up(ROOT / "notebooks/finetune.ipynb").replace('REPOSITORY = ""', f"REPOSITORY = {repository!r}")
    # As where gpt_jax is not installed: of what is found, it alone is hidden.
    hidden = "import importlib.util as u; f = u.find_spec; u.find_spec = lambda n: None if n == 'gpt_jax' else f(n)"
    code = "\n".join([hidden, before, cell])
    return subprocess.run([sys.executable, "-c", code], cwd=folder, env=env, capture_output=True, text=True)


def test_outside_a_checkout_it_asks_for_the_repositorys_address(environment, tmp_path):
    done = set_up_in(tmp_path / "colab", environment)
    assert done.returncode == 1 and "Write the repository's address" in done.stderr
    assert not Path(environment["CALLED"]).exists()


@pytest.mark.parametrize(
    ("accelerator", "extras"), [("cpu", "finetune"), ("gpu", "gpu,finetune"), ("tpu", "tpu,finetune")]
)
def test_in_colab_it_clones_and_installs_what_the_accelerator_needs(environment, tmp_path, accelerator, extras):
    place = {"cpu": "nothing", "gpu": "nvidia-smi", "tpu": "/dev/accel0"}[accelerator]
    before = f"""
import glob, shutil
glob.glob = lambda pattern: [{place!r}] if {place!r}.startswith(pattern[:-1]) else []
shutil.which = lambda name: name if name == {place!r} else None
"""
    (tmp_path / "origin/gpt_jax").mkdir(parents=True)
    (tmp_path / "origin/gpt_jax/main.py").touch()
    git = ["git", "-C", str(tmp_path / "origin"), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *command], check=True)
    colab = tmp_path / "colab"
    done = set_up_in(colab, environment, before=before, repository=f"file://{tmp_path / 'origin'}")
    assert done.returncode == 0, done.stderr
    assert Path(environment["CALLED"]).read_text() == f"install -q -e {colab / 'gpt_jax'}[{extras}]\n"
    assert done.stdout == f"gpt_jax in {colab / 'gpt_jax'}, on a {accelerator.upper()}\n"
