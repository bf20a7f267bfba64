"""A conversation on the terminal, or through a pipe: a line in, an answer out."""

import contextlib
import dataclasses
import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from ml_collections import ConfigDict

from gpt_jax import terminal
from gpt_jax.disk import write_atomically
from gpt_jax.errors import UserError, did_you_mean
from gpt_jax.inference.engine import Engine
from gpt_jax.inference.sampling import Sampling
from gpt_jax.inference.streaming import TextStream
from gpt_jax.models import decoder
from gpt_jax.progress import say
from gpt_jax.runs.chat_model import ChatModel, missing_template, open_chat_model
from gpt_jax.serving.conversation import Conversation

HELP = """\
/reset      forget what was said; the system prompt stays
/save FILE  write the conversation to FILE, as JSON
/quit       leave (Ctrl-D does, too)
/help       this text
Ctrl-C stops an answer. A message that begins with a slash is sent with a space before it."""
COMMANDS = ("/reset", "/save", "/quit", "/help")
PROMPT = ">>> "


def run(config: ConfigDict, workdir: Path) -> list[dict[str, str]]:
    """Talks until the input ends or says /quit; `workdir` is not used: only /save writes.

    Returns:
      What was said, as {"role": ..., "content": ...}.

    Raises:
      UserError: for what the caller can mend.
    """
    names = {field.name for field in dataclasses.fields(Sampling)} & set(config)
    sampling = Sampling(**{name: config[name] for name in names if config[name] is not None})
    if not all(config.stop):
        raise UserError("stop: an empty text would end every answer before it begins; leave it out.")
    model = open_chat_model(config)
    if model.template is None:
        raise missing_template(config.source)
    chat = Chat(model, model.engine(slots=1, reuse_prefix=True), sampling, tuple(config.stop), config.system)
    count = decoder.parameter_count(model.config)
    say(f"{config.source}: {count:,} parameters, a context of {model.length:,} tokens. /help tells what else there is.")
    for line in lines():
        if line.startswith("/"):
            if not command(line, chat.conversation):
                break
        elif line.strip():
            chat.answer(line)
    return chat.conversation.messages


class Chat:
    """A conversation with a model that answers it.

    Attributes:
      conversation: what was said.
    """

    def __init__(self, model: ChatModel, engine: Engine, sampling: Sampling, stop: tuple[str, ...], system: str | None):
        """UserError: the system prompt leaves no room, or the template has no place for one."""
        self.conversation = Conversation(system)
        self._model, self._engine, self._sampling, self._stop = model, engine, sampling, stop
        self._answers = 0
        self._reserved = min(sampling.max_new_tokens, engine.length // 2)
        if system:
            least = model.template.encode([{"role": "system", "content": system}, {"role": "user", "content": "?"}])
            if len(least) > (room := engine.length - self._reserved):
                raise UserError(
                    f"system: with the shortest message it is {len(least):,} tokens, and there is room for {room:,}. "
                    "Shorten it, or start with a larger --config.length or a smaller --config.max_new_tokens."
                )

    def answer(self, message: str) -> None:
        """Says `message` and shows what is answered, as it is made."""
        left = self.conversation.left
        self.conversation.add("user", message)
        try:
            ids = self.conversation.prompt(self._model.template.encode, self._engine.length - self._reserved)
        except UserError as error:
            self.conversation.unsay()
            say(f"not sent: {error}")
            return
        if self.conversation.left > left:
            say(f"(the context is full: the first {self.conversation.left} messages have left it)")
        text, stopped = self._stream(ids)
        if stopped and not text:
            self.conversation.unsay()
        else:
            self.conversation.add("assistant", text)

    def _stream(self, ids: list[int]) -> tuple[str, bool]:
        """Shows the answer to a prompt; returns it, and whether Ctrl-C stopped it."""
        room = min(self._sampling.max_new_tokens, self._engine.length - len(ids))
        sampling = dataclasses.replace(self._sampling, max_new_tokens=room)
        request = self._engine.submit(ids, sampling, sample=self._answers)
        self._answers += 1
        stream = TextStream(self._model.tokenizer, self._stop, ids)
        with interruptible() as interrupted:
            while self._engine.busy and not interrupted:
                for event in self._engine.step():
                    terminal.write(stream.push(event.tokens), sys.stdout)
                if stream.stopped is not None:
                    break
        self._engine.cancel(request)
        terminal.write(stream.finish() + "\n", sys.stdout)
        return stream.text, bool(interrupted)


def lines(prompt: str = PROMPT, leaving: str = "/quit or Ctrl-D leaves.") -> Iterator[str]:
    """What is typed behind `prompt`, or comes through a pipe, line by line; `leaving` is said at Ctrl-C."""
    if not sys.stdin.isatty():
        try:
            for line in sys.stdin:
                yield line.rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise UserError(f"standard input is not UTF-8 text ({error}).") from None
        return
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - input() then edits lines and remembers them
    while True:
        try:
            yield input(prompt)
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print(f"\n{leaving}")
        except UnicodeDecodeError as error:
            say(f"not sent: what was typed is not UTF-8 text ({error}).")


def command(line: str, conversation: Conversation) -> bool:
    """Does what a line that begins with a slash asks for; whether the conversation goes on."""
    name, _, argument = line.strip().partition(" ")
    match name:
        case "/quit":
            return False
        case "/reset":
            conversation.reset()
            say("forgotten")
        case "/help":
            say(HELP)
        case "/save":
            save(argument.strip(), conversation)
        case _:
            say(f"{name}: no such command.{did_you_mean(name, COMMANDS)} /help shows what there is.")
    return True


def save(name: str, conversation: Conversation) -> None:
    """Writes the conversation to a new file, and says so or why not."""
    if not name:
        say("/save: where to? /save FILE")
        return
    path = Path(name).expanduser()
    if path.exists():
        say(f"/save: {path} exists already; choose another name")
        return
    try:
        content = json.dumps({"messages": conversation.messages}, ensure_ascii=False, indent=1)
        write_atomically(path, f"{content}\n".encode())
    except OSError as error:
        say(f"/save: {path} cannot be written ({error.strerror})")
    else:
        say(f"saved: {path}")


@contextlib.contextmanager
def interruptible() -> Iterator[list[int]]:
    """Ctrl-C within the block is noted in the list, and goes no further: no step is left half-done."""
    noted: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: noted.append(number))
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, before)
