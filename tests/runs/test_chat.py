"""The conversation on the terminal and through a pipe, in a process of its own."""

import contextlib
import dataclasses
import io
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from unittest.mock import Mock

import pytest

pytest.importorskip("tokenizers", reason="the extra 'huggingface' is not installed")
pytest.importorskip("jinja2", reason="the extra 'serve' is not installed")

from chatting import LENGTH, ROOT, arguments, environment, write_chat_model  # noqa: E402

from gpt_jax.errors import UserError  # noqa: E402
from gpt_jax.main import main  # noqa: E402
from gpt_jax.runs.chat import lines  # noqa: E402
from gpt_jax.runs.pretrained import open_pretrained  # noqa: E402
from gpt_jax.serving.conversation import Conversation  # noqa: E402

TAKE_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
)
SMALL = {"max_new_tokens": 8, "temperature": 1.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("chat")


@pytest.fixture(scope="module")
def model(folder):
    return write_chat_model(folder / "model")


@pytest.fixture
def piped(model, monkeypatch, capfd):
    """Sends lines through a pipe; returns (exit code, answers, what else was said)."""

    def send(*lines, model=model, **fields):
        text = lines[0] if isinstance(lines[0], bytes) else "\n".join(lines).encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text), encoding="utf-8"))
        code = main(arguments(f"model={model}", **SMALL | fields)[2:])
        return code, *capfd.readouterr()

    return send


def test_a_pipe_is_answered_line_by_line_the_same_each_time(piped, folder):
    saved = folder / "one.json"
    code, answers, told = piped("hello", "", "and more", f"/save {saved}", f"/save {saved}", "/sav x", "/quit", "never")
    assert code == 0, told
    messages = json.loads(saved.read_text())["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant"] * 2
    assert answers == "".join(message["content"] + "\n" for message in messages if message["role"] == "assistant")
    assert f"saved: {saved}" in told and "exists already" in told and "Did you mean '/save'" in told
    assert piped("hello", "and more")[1] == answers != piped("hello", "and more", seed=1)[1]


def test_a_process_reads_a_pipe(model, folder):
    command, env = arguments(f"model={model}", **SMALL), environment(folder / "programs")
    ended = subprocess.run(command, cwd=ROOT, env=env, input=b"hello\n/quit\n", capture_output=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.endswith(b"\n") and b"26,816 parameters, a context of 256 tokens" in ended.stderr


def test_reset_forgets_all_but_the_system_prompt(piped, folder):
    saved = folder / "two.json"
    code, _, told = piped("hello", "/reset", "again", f"/save {saved}", system="Be brief.")
    assert code == 0, told
    system, user, _ = json.loads(saved.read_text())["messages"]
    assert (system["content"], user["content"]) == ("Be brief.", "again")


def test_when_the_context_is_full_the_oldest_turns_leave_it(piped, folder):
    saved = folder / "three.json"
    lines = [f"{number} " + "x" * 80 for number in range(5)]
    code, answers, told = piped(*lines, "y" * LENGTH, f"/save {saved}")
    assert code == 0, told
    assert re.findall(r"the first (\d+) messages have left", told) == ["2", "4", "6"]
    assert "not sent: too long" in told
    messages = json.loads(saved.read_text())["messages"]
    assert [message["content"] for message in messages[::2]] == lines  # all that was said is kept


def test_a_stop_text_ends_an_answer(piped):
    _, answers, _ = piped("hello")
    stop = answers[2:4]
    assert piped("hello", stop=repr((stop,)))[1] == answers[: answers.index(stop)] + "\n"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"temperature": 0, "top_p": 0.5}, "takes the likeliest token"),
        ({"top_p": 2}, "top_p=2"),
        ({"stop": "('',)"}, "stop: an empty text"),
        ({"template": "nowhere.jinja"}, "template=nowhere.jinja: no such file"),
        ({"length": 1000}, "length=1000"),
        ({"system": "x" * LENGTH}, "system: with the shortest message it is"),
        ({"tokenizer.path": "nowhere"}, "nowhere"),
    ],
)
def test_what_cannot_be_is_one_message(piped, fields, words):
    code, answers, told = piped("hello", **fields)
    assert (code, answers) == (2, "") and words in told and "Traceback" not in told
    assert told.count("error:") == 1


def test_bytes_that_are_no_text_are_told_of_and_the_conversation_goes_on(monkeypatch, capfd):
    typed = iter([b"a", b"\xff", b"b"])

    def read(prompt):
        if (line := next(typed, None)) is None:
            raise EOFError
        return line.decode()

    monkeypatch.setattr(sys, "stdin", Mock(isatty=lambda: True))
    monkeypatch.setattr("builtins.input", read)
    assert list(lines()) == ["a", "b"]
    assert "not sent: what was typed is not UTF-8 text" in capfd.readouterr().err


def test_a_model_without_a_template_is_told_what_to_do(piped, folder):
    base = write_chat_model(folder / "base", template=None)
    code, _, told = piped("hello", model=base)
    assert code == 2 and "has no chat template" in told
    assert "--config.template=FILE" in told and "configs/generate.py" in told
    template = folder / "template.jinja"
    template.write_text("{% for m in messages %}{{ m.content }}\n{% endfor %}")
    code, answers, told = piped("hello", model=base, template=template)
    assert code == 0 and answers, told


def test_input_that_is_no_text_is_one_message(piped):
    code, _, told = piped(b"\xff\xfe\n")
    assert code == 2 and "not UTF-8" in told


def test_the_makers_say_what_ends_an_answer(model, tmp_path):
    folder = shutil.copytree(model, tmp_path / "model")
    (folder / "generation_config.json").write_text('{"eos_token_id": [256, 10, 999]}')
    pretrained = open_pretrained(folder)
    assert pretrained.end_ids(pretrained.tokenizer()) == (10, 256)
    assert open_pretrained(model).end_ids(pretrained.tokenizer()) == (256,)
    gguf = dataclasses.replace(pretrained.source, metadata={"tokenizer.ggml.eot_token_id": 65})
    assert dataclasses.replace(pretrained, path=model, source=gguf).end_ids(pretrained.tokenizer()) == (65, 256)


class Terminal:
    """A process on a pseudo-terminal."""

    def __init__(self, command, env):
        self._end, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", TAKE_TERMINAL, *command],
            cwd=ROOT, env=env | {"TERM": "dumb"}, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        self.seen = ""

    def type(self, text):
        os.write(self._end, text.encode())

    def until(self, pattern, seconds=300):
        """Reads until `pattern` has come; returns what came up to its end."""
        deadline = time.monotonic() + seconds
        while not (found := re.search(pattern, self.seen)):
            assert time.monotonic() < deadline, self.seen
            if select.select([self._end], [], [], 1)[0]:
                with contextlib.suppress(OSError):  # the other end is closed
                    self.seen += os.read(self._end, 4096).decode(errors="replace")
        before, self.seen = self.seen[: found.end()], self.seen[found.end() :]
        return before

    def press_until(self, key, pattern, seconds=300):
        """Presses `key` again and again until `pattern` has come: a signal just before Python reads a line is lost."""
        deadline = time.monotonic() + seconds
        while not re.search(pattern, self.seen):
            assert time.monotonic() < deadline, self.seen
            self.type(key)
            with contextlib.suppress(AssertionError):
                return self.until(pattern, 5)
        return self.until(pattern)


def test_ctrl_c_stops_an_answer_not_the_program(model, folder):
    fields = {"max_new_tokens": 200, "length": LENGTH}
    terminal = Terminal(arguments(f"model={model}", **fields), environment(folder / "programs"))
    try:
        terminal.until(">>> ")
        terminal.type("hello\n")
        terminal.until("hello\r\n")
        terminal.until(".")  # the answer has begun
        terminal.type("\x03")
        terminal.until("\n>>> ")
        terminal.press_until("\x03", "Ctrl-D leaves.\r\n>>> ")
        saved = folder / "stopped.json"
        terminal.type(f"/save {saved}\n")
        terminal.until("saved: .*\n>>> ")
        terminal.type("\x04")
        assert terminal.process.wait(300) == 0
        [_, answer] = json.loads(saved.read_text())["messages"]
        assert 0 < len(answer["content"].encode()) < 600
    finally:
        terminal.process.send_signal(signal.SIGKILL)
        terminal.process.wait()


def encode(messages):
    return [0] * sum(2 + len(message["content"]) for message in messages)


def test_only_whole_turns_leave_a_conversation():
    conversation = Conversation("sys")
    for number in range(4):
        conversation.add("user", f"question {number}")
        ids = conversation.prompt(encode, 40)
        assert len(ids) <= 40 and conversation.messages[0]["role"] == "system"
        assert conversation.left == max(0, 2 * (number - 1))
        conversation.add("assistant", "answer")
    conversation.add("user", "q" * 40)
    with pytest.raises(UserError, match="47 tokens, and there is room for 40"):
        conversation.prompt(encode, 40)
    conversation.unsay()
    conversation.reset()
    assert conversation.left == 0 and len(conversation.messages) == 1
