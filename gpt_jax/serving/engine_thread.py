"""The engine in a thread of its own: jobs from any thread in, pieces of their text out."""

import dataclasses
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from typing import Any

from gpt_jax.inference.engine import Engine, Event
from gpt_jax.inference.sampling import Sampling
from gpt_jax.inference.streaming import TextStream
from gpt_jax.text.tokenizer import Tokenizer


class Overloaded(Exception):
    """There is no room for more jobs now; later there will be."""


class Stopping(Exception):
    """The server was asked to stop; nothing more is answered."""


@dataclasses.dataclass(frozen=True)
class Job:
    """A text to continue: its ids, how, which of several samples it is, and the texts before which to stop."""

    prompt_ids: Sequence[int]
    sampling: Sampling
    sample: int = 0
    stop: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Token:
    """A token with its log-probability (None: nothing stood before it) and the likeliest ones at its place."""

    id: int
    logprob: float | None
    alternatives: Sequence[tuple[int, float]] = ()


@dataclasses.dataclass(frozen=True)
class Piece:
    """What a job goes on with.

    Attributes:
      text: whole characters, which may be shown; "" while more tokens are needed to tell.
      tokens: those that begin in `text`, where log-probabilities were asked for.
      generated: tokens drawn so far, those of a stop text among them.
      finished: None, or why there is no more: "stop" (the model's end, or a stop text) or "length".
    """

    text: str
    tokens: Sequence[Token] = ()
    generated: int = 0
    finished: str | None = None


Deliver = Callable[[int, Piece | Exception], None]  # (which of the jobs, what it goes on with)


class Transcript:
    """From the engine's events of one job to pieces."""

    def __init__(self, tokenizer: Tokenizer, job: Job):
        self._token_bytes = tokenizer.token_bytes
        self._stream = TextStream(tokenizer, job.stop, job.prompt_ids)
        self._pending: deque[tuple[int, Token]] = deque()  # with the byte at which a token's text begins
        self._spelled = self._shown = 0  # bytes
        self._generated = 0

    def take(self, event: Event) -> Piece:
        """The piece that an event makes."""
        for place, (id, logprob) in enumerate(zip(event.tokens, event.logprobs, strict=False)):
            alternatives = event.alternatives[place] if event.alternatives else ()
            self._pending.append((self._spelled, Token(id, logprob, alternatives)))
            self._spelled += int(self._token_bytes[id])
        self._generated += len(event.tokens)
        text = self._stream.push(event.tokens)
        if event.finished:
            text += self._stream.finish()
        self._shown += len(text.encode())
        stopped = self._stream.stopped is not None
        finished = "stop" if stopped else event.finished
        # A stop text takes its tokens along; an end by itself shows all that is left, what spells nothing too.
        everything = finished is not None and not stopped
        tokens = []
        while self._pending and (everything or self._pending[0][0] < self._shown):
            tokens.append(self._pending.popleft()[1])
        return Piece(text, tokens, self._generated, finished)


@dataclasses.dataclass(eq=False)
class Running:
    """A job on its way; what `EngineThread.cancel` takes."""

    job: Job
    index: int
    deliver: Deliver
    transcript: Transcript
    request: int | None = None  # its number in the engine


class EngineThread:
    """Owns an engine, which knows no threads.

    Attributes:
      most: how many jobs and calls may be unfinished at a time: those at work and those that wait.
      failure: the exception that ended the thread; None: it is well. `on_failure` is called in the thread then.
    """

    def __init__(self, engine: Engine, tokenizer: Tokenizer, *, most: int):
        self._engine = engine
        self._tokenizer = tokenizer
        self.most = most
        self.failure: BaseException | None = None
        self.on_failure: Callable[[], None] = lambda: None
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._calls: deque[tuple[Callable[[], Any], Future]] = deque()
        self._running: dict[int, Running] = {}  # by the engine's numbers
        self._unfinished = 0
        self._lock = threading.Lock()
        self._stopping = self._dismissed = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Begins to take jobs."""
        self._thread.start()

    def dismiss(self) -> None:
        """Takes no more jobs, and tells those that are not finished that the server stops."""
        self._commands.put(self._dismiss)

    def stop(self) -> None:
        """Ends the thread after the step that it is at; unfinished jobs are dropped."""
        self._commands.put(self._stop)
        self._thread.join()

    @property
    def unfinished(self) -> int:
        """How many jobs and calls run or wait."""
        return self._unfinished

    def submit(self, jobs: Sequence[Job], deliver: Deliver) -> list[Running]:
        """Takes all of the jobs, or none.

        Args:
          deliver: called in the engine's thread with (index of the job, piece or exception) until the piece that is
            `finished`, or the exception; it must not block.

        Raises:
          Overloaded: there is no room for them now. Stopping; RuntimeError: the engine has failed.
        """
        running = [Running(job, index, deliver, Transcript(self._tokenizer, job)) for index, job in enumerate(jobs)]
        self._command(lambda: self._admit(running), len(jobs))
        return running

    def cancel(self, jobs: Iterable[Running]) -> None:
        """Frees the slots of those that are not finished; they deliver no more."""
        jobs = list(jobs)
        self._commands.put(lambda: self._drop(jobs))

    def call(self, function: Callable[[], Any]) -> Future:
        """Runs `function` between two steps, where no other call runs; the future may be cancelled until then.

        Raises:
          Overloaded, Stopping, RuntimeError: as `submit`.
        """
        future: Future = Future()
        future.add_done_callback(self._free)  # before those of the caller, who may come back for the place at once
        self._command(lambda: self._calls.append((function, future)), 1)
        return future

    def _command(self, command: Callable[[], None], places: int) -> None:
        """Under the lock: after a failure no command comes that nobody would hear."""
        with self._lock:
            if self.failure is not None or self._dismissed:
                raise self._refusal()
            if self._unfinished + places > self.most:
                raise Overloaded
            self._commands.put(command)
            self._unfinished += places

    def _refusal(self) -> Exception:
        if self.failure is not None:
            return RuntimeError(f"the engine has stopped: {self.failure!r}")
        return Stopping()

    # --- in the engine's thread

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._obey(wait=not (self._engine.busy or self._calls))
                self._call_one()
                for event in self._engine.step():
                    self._take(event)
        except BaseException as error:
            with self._lock:
                self.failure = error
            self._admit([*self._running.values()])
            self._obey(wait=False)
            while self._calls:
                self._call_one()
            self.on_failure()

    def _obey(self, *, wait: bool) -> None:
        """Does what was asked for; waits until something is, if there is nothing else to do."""
        while True:
            try:
                command = self._commands.get(block=wait)
            except queue.Empty:
                return
            command()
            wait = False

    def _call_one(self) -> None:
        """Runs the first of the calls that somebody still waits for."""
        while self._calls:
            function, future = self._calls.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                if self.failure is not None or self._dismissed:
                    raise self._refusal()
                future.set_result(function())
            except Exception as error:  # it is the caller's
                future.set_exception(error)
            return

    def _admit(self, jobs: list[Running]) -> None:
        for running in jobs:
            if self.failure is not None or self._dismissed:
                self._finish(running, self._refusal())
                continue
            try:
                job = running.job
                running.request = self._engine.submit(job.prompt_ids, job.sampling, job.sample)
            except Exception as error:  # whatever it is, it is this job's alone
                self._finish(running, error)
            else:
                self._running[running.request] = running

    def _take(self, event: Event) -> None:
        running = self._running.get(event.request)
        if running is None:
            return
        piece = running.transcript.take(event)
        if piece.finished:
            if not event.finished:  # a stop text, of which the engine knows nothing
                self._engine.cancel(event.request)
            self._finish(running, piece)
        elif piece.text or piece.tokens:
            running.deliver(running.index, piece)

    def _finish(self, running: Running, last: Piece | Exception) -> None:
        self._release(running)
        running.deliver(running.index, last)

    def _drop(self, jobs: list[Running]) -> None:
        for running in jobs:
            if running.request in self._running:
                self._engine.cancel(running.request)
                self._release(running)

    def _release(self, running: Running) -> None:
        if running.request is not None:
            self._running.pop(running.request, None)
        self._free()

    def _free(self, *_: Future) -> None:
        with self._lock:
            self._unfinished -= 1

    def _dismiss(self) -> None:
        with self._lock:
            self._dismissed = True
        unfinished = list(self._running.values())
        for running in unfinished:
            self._engine.cancel(running.request)
        self._admit(unfinished)

    def _stop(self) -> None:
        self._stopping = True
