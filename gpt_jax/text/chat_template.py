"""Chat templates: a conversation as the model was taught to read one.

A template is a Jinja program that its makers put beside the weights (Hugging Face's `chat_template`). It is other
people's code, so it runs in Jinja's sandbox, over plain texts alone, with the few functions that such templates expect.
"""

import datetime
import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gpt_jax.errors import UserError
from gpt_jax.extras import require
from gpt_jax.text.tokenizer import Tokenizer, check_unicode

Message = Mapping[str, str]  # {"role": "system" | "user" | "assistant" | ..., "content": text}
# For models that were never taught to chat, in words that any vocabulary spells; END stands for its end of text.
PLAIN = """\
{%- for message in messages -%}
{{ message['role'] | capitalize + ':\\n' + message['content'] }}
{{- 'END\\n\\n' if message['role'] == 'assistant' else '\\n\\n' }}
{%- endfor -%}
{{- 'Assistant:\\n' if add_generation_prompt }}"""
_MARK = "\ud800"  # half a character, which no text holds
_ANSWER = "an answer"


class ChatTemplate:
    """A template with the tokenizer whose symbols it writes.

    Attributes:
      source: the Jinja program; where: what messages call it.
      end_ids: the symbol that the template writes behind an answer, so that a model which learnt from it writes it
        there too: `<|im_end|>`, say. Empty where the template ends answers otherwise.
    """

    def __init__(
        self,
        source: str,
        tokenizer: Tokenizer,
        where: str = "the chat template",
        day: datetime.date | None = None,
    ):
        """UserError: `source` is no Jinja template.

        Args:
          where: what messages call it.
          day: what a template that writes the date takes for today; None: what is.
        """
        jinja2 = require("jinja2", "serve")
        self._tokenizer = tokenizer
        self.source, self.where = source, where
        # Longest first: one symbol may begin with another.
        self._symbols = re.compile("|".join(map(re.escape, sorted(tokenizer.symbols, key=len, reverse=True))) or "(?!)")
        try:
            self._template = _environment(day).from_string(source)
        except jinja2.TemplateError as error:
            raise UserError(
                f"{where} is not a Jinja template that can be read ({error}). Name a file with another: "
                "--config.template=FILE."
            ) from None
        self.end_ids = self._symbol_after_an_answer()

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """The text that the model reads, up to where its answer begins.

        Raises:
          UserError: the template refuses these messages (two of one user in a row, say), or fails over them.
        """
        try:
            return self._template.render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
                tools=None,
                documents=None,
                **self._tokenizer.symbol_names,
            )
        except Exception as error:  # whatever it is, it is the template's
            raise UserError(f"{self.where} does not take these messages: {error}.") from None

    def encode(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> np.ndarray:
        """Ids of `render`, int32 [n]. What a message says is text, even where it spells one of the symbols.

        Raises:
          UserError: as `render`; or a message is not valid Unicode.
        """
        return self._ids(self.render(self._without_symbols(messages), add_generation_prompt=add_generation_prompt))

    def encode_answers(self, messages: Sequence[Message]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of a conversation up to its last answer, int32 [n], and which of them the assistant wrote, bool [n].

        What it wrote begins where `encode` of the messages before it ends, and ends with the symbol behind an answer:
        just what a model has to write that is asked. Where one token would reach over the beginning of an answer, the
        answer gets tokens of its own, as it does when it is generated.

        Raises:
          UserError: as `encode`; there is no answer; or the template does not tell where answers begin and end.
        """
        hidden = self._without_symbols(messages)
        answers = [place for place, message in enumerate(hidden) if message["role"] == "assistant"]
        if not answers:
            raise UserError("there is no message of the role 'assistant', and so nothing to learn.")
        text = self.render(hidden[: answers[-1] + 1], add_generation_prompt=False)
        cuts = [0]
        for place in answers:
            asked = self.render(hidden[:place], add_generation_prompt=True)
            if not text.startswith(asked):
                raise UserError(
                    f"{self.where} writes what stands before message {place + 1} otherwise once it is answered, so "
                    "that nobody can tell where the answer begins. Name a template that only adds to what it wrote."
                )
            ends = (end for end in self._symbols.finditer(text, len(asked)) if self._ends_answer(end[0]))
            if (end := next(ends, None)) is None:
                raise UserError(
                    f"{self.where} writes no symbol behind an answer, from which a model could learn to end it. Name "
                    "a template that does."
                )
            cuts += [len(asked), end.end()]
        stretches = self._stretches(text, cuts)
        answered = [np.full(len(ids), number % 2 == 1) for number, ids in enumerate(stretches)]
        return np.concatenate(stretches), np.concatenate(answered)

    def _ends_answer(self, symbol: str) -> bool:
        return self._tokenizer.symbols[symbol] in self.end_ids

    def _stretches(self, text: str, cuts: Sequence[int]) -> list[np.ndarray]:
        """The ids of `text` between one of the `cuts` and the next; the ids of it all, if no token reaches over one."""
        stretches = []
        begin, ids, given = 0, self._ids(text), 0  # `ids` are those of text[begin:], `given` of them in stretches
        for cut in cuts[1:]:
            before = self._ids(text[begin:cut])
            stretches.append(before[given:])
            given = len(before)
            if not np.array_equal(before, ids[:given]):
                begin, ids, given = cut, self._ids(text[cut:]), 0
        return stretches

    def _ids(self, text: str) -> np.ndarray:
        return self._tokenizer.encode_parts(self._parts(text))

    def _without_symbols(self, messages: Sequence[Message]) -> list[dict[str, str]]:
        return [{name: self._hidden(value) for name, value in message.items()} for message in messages]

    def _hidden(self, text: str) -> str:
        """`text` with a mark inside whatever spells a symbol."""
        check_unicode(text)
        return self._symbols.sub(lambda found: found[0][0] + _MARK + found[0][1:], text)

    def _parts(self, text: str) -> list[str | int]:
        """`text` with its symbols as ids, and without marks."""
        parts: list[str | int] = []
        end = 0
        for found in self._symbols.finditer(text):
            parts += [text[end : found.start()], self._tokenizer.symbols[found[0]]]
            end = found.end()
        parts = [part.replace(_MARK, "") if isinstance(part, str) else part for part in [*parts, text[end:]]]
        return [part for part in parts if part != ""]

    def _symbol_after_an_answer(self) -> tuple[int, ...]:
        asked = [{"role": "user", "content": "a question"}, {"role": "assistant", "content": _ANSWER}]
        try:
            _, found, rest = self.render(asked, add_generation_prompt=False).rpartition(_ANSWER)
        except UserError:
            return ()
        first = next((part for part in self._parts(rest.lstrip())), None) if found else None
        return (first,) if isinstance(first, int) else ()


def plain_template(tokenizer: Tokenizer) -> str:
    """A template in plain words for a model that was never taught to chat.

    Raises:
      UserError: the vocabulary has no symbol for the end of a text, which is to end an answer too.
    """
    end = tokenizer.specials.end_of_text
    name = next((name for name, id in tokenizer.symbols.items() if id == end), None)
    if name is None:
        raise UserError(
            "the tokenizer has no end-of-text symbol, from which a model could learn to end its answers. Begin with a "
            "model that has one."
        )
    return PLAIN.replace("END", name)


def _environment(day: datetime.date | None):
    """Jinja as the templates of Hugging Face's models expect it."""
    sandbox = require("jinja2.sandbox", "serve")
    extensions = require("jinja2.ext", "serve")

    class Generation(extensions.Extension):
        """The block `generation`, which marks what a model is trained on; what stands in it is rendered."""

        tags = {"generation"}

        def parse(self, parser):
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    environment = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, extensions.loopcontrols]
    )
    environment.filters["tojson"] = _to_json  # Jinja's own escapes the signs of HTML
    environment.globals |= {"raise_exception": _refuse, "strftime_now": functools.partial(_now, day)}
    return environment


def _to_json(value: Any, ensure_ascii: bool = False, indent=None, separators=None, sort_keys: bool = False) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> None:
    raise require("jinja2", "serve").TemplateError(message)


def _now(day: datetime.date | None, form: str) -> str:
    now = datetime.datetime.now()
    return datetime.datetime.combine(day or now.date(), now.time()).strftime(form)
