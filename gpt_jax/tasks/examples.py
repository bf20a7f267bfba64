"""The four structured inputs of the paper's Figure 1, that of the Winograd schemas, and a labelled example."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Classification:
    """One text."""

    text: str

    @property
    def parts(self) -> tuple[str, ...]:
        """The texts to encode, in order."""
        return (self.text,)

    @property
    def shared(self) -> str:
        """The text by which examples that belong together are kept on one side of a held-out split."""
        return self.text


@dataclass(frozen=True)
class Entailment:
    """Two texts in an order that matters."""

    premise: str
    hypothesis: str

    @property
    def parts(self) -> tuple[str, ...]:
        """Premise and hypothesis."""
        return (self.premise, self.hypothesis)

    @property
    def shared(self) -> str:
        """The premise: SNLI has three hypotheses to each."""
        return self.premise


@dataclass(frozen=True)
class Similarity:
    """Two texts in no particular order."""

    first: str
    second: str

    @property
    def parts(self) -> tuple[str, ...]:
        """Both texts."""
        return (self.first, self.second)

    @property
    def shared(self) -> str:
        """The same for a pair and the pair turned round."""
        return min(self.first, self.second)


@dataclass(frozen=True)
class MultipleChoice:
    """A context, a question about it or none (""), and the answers or continuations to choose from."""

    context: str
    answers: tuple[str, ...]
    question: str = ""

    @property
    def parts(self) -> tuple[str, ...]:
        """Context, question (maybe empty), answers."""
        return (self.context, self.question, *self.answers)

    @property
    def shared(self) -> str:
        """The context: RACE asks several questions about each."""
        return self.context


@dataclass(frozen=True)
class Substitution:
    """Texts that differ in what stands for a pronoun at their end, and the one continuation of them all."""

    options: tuple[str, ...]
    continuation: str

    @property
    def parts(self) -> tuple[str, ...]:
        """Options, continuation."""
        return (*self.options, self.continuation)

    @property
    def shared(self) -> str:
        """The first option: a schema comes twice, with two continuations."""
        return self.options[0]


Inputs = Classification | Entailment | Similarity | MultipleChoice | Substitution


@dataclass(frozen=True)
class Example:
    """One example of a task.

    inputs: its texts.
    target: the number of its label or right answer, an int from 0; a score, a float; None where it is to be predicted.
    id: what its table calls it, or its number there.
    place: where it stands, for messages: "train.csv, line 17".
    """

    inputs: Inputs
    target: int | float | None
    id: str
    place: str
