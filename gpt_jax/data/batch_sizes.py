"""How many examples each step takes: always as many, or more from stage to stage; and their sums in closed form.

So the position in the data stays one integer, the step, while the batch grows.
"""

import bisect
import itertools
import math
from dataclasses import dataclass


@dataclass(frozen=True)
class BatchSizes:
    """From step `first_steps[j]` on (the first is 0) a step takes `sizes[j]` examples."""

    first_steps: tuple[int, ...]
    sizes: tuple[int, ...]

    @classmethod
    def constant(cls, size: int) -> "BatchSizes":
        """The same in every step."""
        return cls((0,), (size,))

    @classmethod
    def ramp(cls, first: int, full: int, examples: float, stages: int) -> "BatchSizes":
        """From `first` to `full` in a straight line over `examples` examples, in so many stages of as many examples.

        A stage has the size that the line has at its beginning, rounded down to a multiple of `first`: so what divides
        `first` divides every size but `full`. (The sizes must not follow the mesh: a run may go on with another.) After
        Brown et al. 2020, appendix B.
        """
        if not 0 < first < full:
            return cls.constant(full)
        first_steps, sizes, taken = [], [], 0
        step = 0
        for stage in range(stages):
            size = (first + (full - first) * stage // stages) // first * first
            steps = math.ceil((examples * (stage + 1) / stages - taken) / size)
            if steps <= 0:  # the stage before ended beyond this one
                continue
            if not sizes or sizes[-1] != size:
                first_steps.append(step)
                sizes.append(size)
            step, taken = step + steps, taken + steps * size
        return cls((*first_steps, step), (*sizes, full))

    @property
    def full(self) -> int:
        """The last size, which the others lead to."""
        return self.sizes[-1]

    def size(self, step: int) -> int:
        """Examples of `step`, counted from 0."""
        return self.sizes[self._stage(step)]

    def examples(self, step: int) -> int:
        """Examples of all steps before `step`."""
        stage = self._stage(step)
        return self._first_examples()[stage] + (step - self.first_steps[stage]) * self.sizes[stage]

    def steps(self, examples: float) -> int:
        """The most whole steps that take no more than `examples`."""
        stage = bisect.bisect_right(self._first_examples(), examples) - 1
        return self.first_steps[stage] + int((examples - self._first_examples()[stage]) / self.sizes[stage])

    def reaching(self, examples: float) -> int:
        """The fewest whole steps that take no less than `examples`."""
        steps = self.steps(examples)
        return steps if self.examples(steps) >= examples else steps + 1

    def _stage(self, step: int) -> int:
        return bisect.bisect_right(self.first_steps, step) - 1

    def _first_examples(self) -> list[int]:
        lengths = (after - before for before, after in itertools.pairwise(self.first_steps))
        taken = (length * size for length, size in zip(lengths, self.sizes, strict=False))
        return list(itertools.accumulate(taken, initial=0))
