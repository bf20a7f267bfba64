"""Programs that the launch scripts call, played by a script that records its arguments and answers as a test says."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[2]
COMMAND = ["python", "-m", "gpt_jax.main", "--config=configs/pretrain.py:gpt2-small"]
# Words that a shell, YAML or Kubernetes would make something else of.
AWKWARD = ["echo", "~", "two words", "it's", '"$HOME"', "$(rm -rf x)", "a\\b", "`c`", "*", "", "a\nb", "é #", "$$"]
# Any words that a line of a shell can have, with those in front that it would make something else of.
CHARACTERS = st.characters(exclude_categories=["Cc", "Cs", "Cn", "Co", "Zl", "Zp"]) | st.sampled_from("\n\t\"'$\\()`")
WORDS = st.lists(st.text(CHARACTERS), min_size=1, max_size=5)
# What the scripts may use of the machine. Nothing else is on their PATH: a gcloud that is installed is never called.
TOOLS = "bash cat chmod cp dirname env git kill mkdir mkfifo mktemp rm sed seq setsid sleep tail uname".split()
# A command that prints what worker.sh found out.
SHOW_PLACE = [
    "bash", "-c", 'echo "$JAX_COORDINATOR_ADDRESS $JAX_NUM_PROCESSES $JAX_PROCESS_ID ${JAX_LOCAL_DEVICE_IDS:-all}"'
]  # fmt: skip

PLAYER = """#!{python}
import json, os, sys
place = {place!r}
name = os.path.basename(sys.argv[0])
with open(place + "/calls.jsonl", "a") as calls:
    calls.write(json.dumps([name, *sys.argv[1:]]) + "\\n")
with open(place + "/answers.json") as file:
    answers = json.load(file)
for answer in answers:
    if answer["words"] in " ".join([name, *sys.argv[1:]]):
        text = answer["texts"].pop(0) if len(answer["texts"]) > 1 else answer["texts"][0]
        with open(place + "/answers.json", "w") as file:
            json.dump(answers, file)
        sys.stdout.write(text)
        sys.exit(answer["code"])
"""


class Stage:
    """A checkout with launch/ in it, a PATH of its own, and the stand-ins on it."""

    def __init__(self, place: Path):
        self.place, self.checkout, self.bin, self.home = place, place / "check out", place / "bin", place / "home"
        shutil.copytree(ROOT / "launch", self.checkout / "launch")
        self.bin.mkdir()
        self.home.mkdir()
        for tool in TOOLS:
            (self.bin / tool).symlink_to(shutil.which(tool))
        (place / "calls.jsonl").touch()
        (place / "answers.json").write_text("[]")
        self.environment = {"PATH": str(self.bin), "HOME": str(self.home), "LC_ALL": "C.UTF-8"}

    def plays(self, *names: str) -> None:
        """Puts stand-ins of these names on the PATH."""
        for name in names:
            self.script(self.bin / name, PLAYER.format(python=sys.executable, place=str(self.place)))

    def script(self, path: Path, text: str) -> None:
        """Writes a program."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def answers(self, words: str, *texts: str, code: int = 0) -> None:
        """What a stand-in prints when `words` stand in its call: one text after another, the last one for ever."""
        path = self.place / "answers.json"
        path.write_text(json.dumps([*json.loads(path.read_text()), {"words": words, "texts": texts, "code": code}]))

    @property
    def calls(self) -> list[list[str]]:
        """The calls of the stand-ins so far, each with its name first."""
        return [json.loads(line) for line in (self.place / "calls.jsonl").read_text().splitlines()]

    def start(self, script: str, *arguments: str, **environment: str) -> subprocess.Popen:
        """Starts a script of launch/."""
        return subprocess.Popen(
            [self.bin / "bash", self.checkout / "launch" / script, *arguments], cwd=self.checkout, text=True,
            env=self.environment | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip

    def run(self, script: str, *arguments: str, code: int = 0, **environment: str) -> tuple[str, str]:
        """Runs a script of launch/ to its end; returns what it wrote to stdout and stderr."""
        process = self.start(script, *arguments, **environment)
        out, err = process.communicate(timeout=60)
        assert process.returncode == code, out + err
        return out, err

    def on_worker(self, command: str, **environment: str) -> subprocess.CompletedProcess:
        """What the shell at the other end of ssh makes of the command: its folder is home."""
        return subprocess.run(
            [self.bin / "bash", "-c", command], cwd=self.home, text=True, capture_output=True, timeout=60,
            env=self.environment | environment,
        )  # fmt: skip

    def commit(self) -> str:
        """Makes the checkout a repository of one commit; returns its hash."""
        git = ["git", "-C", str(self.checkout), "-c", "user.name=a", "-c", "user.email=a@b"]
        for words in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message=all"]):
            subprocess.run([*git, *words], check=True, env=self.environment)
        return subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()


def wait_for(condition: Callable[[], bool]) -> None:
    """Returns once the condition holds; fails after a time that no working program needs."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.05)


def bash(code: str, *words: str) -> str:
    """What bash prints that runs the code, the words being its arguments."""
    return subprocess.run(
        ["bash", "-c", code, "bash", *words], check=True, capture_output=True, env=os.environ | {"LC_ALL": "C.UTF-8"}
    ).stdout.decode()
