"""A conversation that never outgrows the context: when it is full, the oldest turns leave first."""

from collections.abc import Callable, Sequence

from gpt_jax.errors import UserError
from gpt_jax.text.chat_template import Message


class Conversation:
    """What was said, under a system prompt that stays.

    Attributes:
      messages: all of them, the system prompt first if there is one, also those that have left the context.
      left: how many of the oldest have, not counting the system prompt.
    """

    def __init__(self, system: str | None = None):
        """`system`: the system prompt; None: the template's own, if it has one."""
        self._system = [{"role": "system", "content": system}] if system else []
        self.reset()

    def reset(self) -> None:
        """Forgets all but the system prompt."""
        self.messages: list[dict[str, str]] = list(self._system)
        self.left = 0

    def add(self, role: str, content: str) -> None:
        """Says something."""
        self.messages.append({"role": role, "content": content})

    def unsay(self) -> None:
        """Takes the last message back."""
        self.messages.pop()

    def prompt(self, encode: Callable[[Sequence[Message]], Sequence[int]], most: int) -> list[int]:
        """The ids to answer, without messages that have left the context.

        Args:
          encode: messages -> ids, `ChatTemplate.encode`; most: how many ids there may be.

        Raises:
          UserError: not even the last message fits, or the template refuses the messages.
        """
        said = self.messages[len(self._system) :]
        # A conversation always begins with its user, as most templates demand.
        for first in (place for place, message in enumerate(said) if message["role"] == "user" and place >= self.left):
            ids = encode([*self._system, *said[first:]])
            if len(ids) <= most:
                self.left = first
                return [int(id) for id in ids]
        raise UserError(
            f"too long: with the system prompt it is {len(ids)} tokens, and there is room for {most}. Say it in fewer "
            "words, or start with a larger --config.length."
        )
