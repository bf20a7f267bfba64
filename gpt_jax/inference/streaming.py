"""Tokens to text while they are still being made."""

from collections.abc import Sequence

from gpt_jax.errors import UserError
from gpt_jax.text.tokenizer import Tokenizer

TAIL = 8  # tokens whose text is read again with each new one, since neighbours decide about spaces between words
UNKNOWN = "\ufffd"  # what stands for bytes that are no character, or not yet
MOST_PENDING = 4  # the bytes of the longest character: one that is not whole by then never will be


class TextStream:
    """The text of one continuation, given out as far as it is certain.

    What is held back: a character whose bytes are not all there, and what may be the beginning of a stop string. The
    texts given out, joined, are what the tokens spell behind the prompt, up to the first stop string.

    Attributes:
      text: all that was given out.
      stopped: the stop string that ended it; None: none did.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] | str = (), prompt: Sequence[int] = ()):
        """`stop`: one string or several; `prompt`: the ids that are continued.

        Raises:
          UserError: when a stop string is empty.
        """
        stop = (stop,) if isinstance(stop, str) else tuple(stop)
        if not all(stop):
            raise UserError("an empty stop string would end every text before it begins: leave it out.")
        self._decode = tokenizer.decode
        self._stop = stop
        self._ids = [int(id) for id in prompt[-TAIL:]]
        self._read = len(self._decode(self._ids))  # characters of these ids that are given out or held back
        self._held = ""
        self.text = ""
        self.stopped: str | None = None

    def push(self, ids: Sequence[int]) -> str:
        """The text that has become certain with these new ids."""
        found = ""
        for id in ids:
            self._ids.append(int(id))
            found += self._new_characters(whole=False)
        return self._give_out(found, final=False)

    def finish(self) -> str:
        """What is left, now that no more ids come."""
        return self._give_out(self._new_characters(whole=True), final=True)

    def _new_characters(self, *, whole: bool) -> str:
        text = self._decode(self._ids)
        end = len(text)
        if not whole:
            settled = len(text.rstrip(UNKNOWN))
            end = settled if end - settled <= MOST_PENDING else end
        found, self._read = text[self._read : end], max(self._read, end)
        if end == len(text) and len(self._ids) > 4 * TAIL:
            self._ids = self._ids[-TAIL:]
            self._read = len(self._decode(self._ids))
        return found

    def _give_out(self, found: str, *, final: bool) -> str:
        if self.stopped is not None:
            return ""
        self._held += found
        places = [(self._held.find(stop), stop) for stop in self._stop if stop in self._held]
        if places:
            place, self.stopped = min(places, key=lambda found: found[0])
            out, self._held = self._held[:place], ""
        else:
            held = 0 if final else max((_overlap(self._held, stop) for stop in self._stop), default=0)
            cut = len(self._held) - held
            out, self._held = self._held[:cut], self._held[cut:]
        self.text += out
        return out


def text_of(tokenizer: Tokenizer, ids: Sequence[int], prompt: Sequence[int] = (), stop: Sequence[str] = ()) -> str:
    """What `ids` spell behind the prompt, up to the first stop string."""
    stream = TextStream(tokenizer, stop, prompt)
    stream.push(ids)
    stream.finish()
    return stream.text


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` with which `stop` begins."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-n:])), 0)
