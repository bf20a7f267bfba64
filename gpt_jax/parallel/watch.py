"""While a run of several processes is at work: who is lost, and an end for all others, who would wait for it for ever.

Every process keeps a connection to process 0 (roll_call.py). A process that is killed, or whose host is gone, breaks
it; one that ends by itself says so first. A process that waits in a collective cannot raise anything, so the end is a
message and `os._exit`: what was saved is whole at any moment.
"""

import contextlib
import os
import sys
import threading
import time
from typing import Any

from gpt_jax.errors import Interrupted, UserError
from gpt_jax.parallel.agreement import who
from gpt_jax.parallel.roll_call import Connection

LOST = os.EX_TEMPFAIL  # 75: the same command, started again, goes on
GRACE_SECONDS = 30.0  # for the others to end by themselves after one has stopped with an error
HOLD_SECONDS = 5.0  # for the news of a lost process, which explains an error of the others, to arrive
AGAIN = "Start the same command again on all hosts; it goes on from the last checkpoint."


class Watch:
    """The connections of this process to the others, and what is known of them."""

    def __init__(self, process: int, hosts: list[str], connections: dict[int, Connection]):
        """Begins to watch.

        Args:
          process: which one this is.
          hosts: name of each process's host.
          connections: of process 0 to all others; of the others to process 0.
        """
        self._process, self._hosts, self._connections = process, hosts, connections
        self._lock = threading.RLock()
        self._ended: set[int] = set()  # those that said so
        self._gone: set[int] = set()  # those that ended, said so, and then did not wait for the others
        self._failure: str | None = None  # of another process
        self._error: str | None = None  # of this one
        self._code = 0
        self._over = threading.Event()
        for other in connections:
            threading.Thread(target=self._listen, args=(other,), name=f"watch {other}", daemon=True).start()

    def stopped_by(self, error: BaseException) -> None:
        """Takes note that `error` ends this process; does not return where a lost process is what caused it."""
        if not isinstance(error, UserError | Interrupted | KeyboardInterrupt):
            time.sleep(HOLD_SECONDS)
        self._error = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        self._code = {UserError: 2, KeyboardInterrupt: 130}.get(type(error), 1)
        if isinstance(error, Interrupted):
            self._code = 128 + error.signal_number

    def goes_on(self) -> None:
        """Takes note that an error noted before was not the end."""
        self._error, self._code = None, 0

    def leave(self) -> None:
        """Says that this process is at its end and waits until all are; does not return where one of them is lost."""
        with self._lock:
            self._ended.add(self._process)
        if self._process == 0:
            self._note_end(0, self._error)
        else:
            self._send([0], ended=self._error)
        try:
            self._over.wait()
        except KeyboardInterrupt:
            self._exit(self._code or 130)
        if self._gone:  # JAX would wait for them
            self._exit(self._code)

    def _listen(self, other: int) -> None:
        """Hears what another process says, until it hangs up."""
        try:
            while True:
                self._hear(other, self._connections[other].receive())
        except (OSError, ValueError):
            self._lost(other)

    def _hear(self, other: int, message: dict[str, Any]) -> None:
        if "ended" in message:
            self._note_end(other, message["ended"])
        elif "failed" in message:
            self._wait_for_the_end_after(message["failed"])
        elif "lost" in message:
            self._end(message["lost"])
        elif "over" in message:
            self._over.set()

    def _note_end(self, process: int, error: str | None) -> None:
        """On process 0: a process, perhaps this one, has ended."""
        with self._lock:
            self._ended.add(process)
            if len(self._ended) == len(self._hosts):
                self._send(self._connections, over=True)
                self._over.set()
            elif error is not None:
                text = f"{who([process], self._hosts)} has stopped: {error}\nNobody can go on without it. {AGAIN}"
                self._send([other for other in self._connections if other != process], failed=text)
                if process != 0:
                    self._wait_for_the_end_after(text)

    def _lost(self, other: int) -> None:
        """A connection broke without a word, or after the last one."""
        with self._lock:
            if self._over.is_set():
                return
            if other in self._ended:
                self._gone.add(other)
                return
            text = (
                f"{who([other], self._hosts)} is gone: killed, out of memory, or its host or network is down (its "
                f"output may say more). {AGAIN}"
            )
            self._send([process for process in self._connections if process != other], lost=text)
            self._end(text)

    def _wait_for_the_end_after(self, failure: str) -> None:
        """Another process has failed: what all agreed on ends this one too in a moment, and if not, this does."""
        with self._lock:
            if self._failure is None:
                self._failure = failure
                timer = threading.Timer(GRACE_SECONDS, self._end, [failure])
                timer.daemon = True
                timer.start()

    def _end(self, text: str) -> None:
        """Ends this process, with its own error if it has ended by one, else with what happened to the others."""
        with self._lock:
            if self._process in self._ended and self._code:
                self._exit(self._code)
            self._exit(LOST, f"\nerror: {self._failure or text}")

    def _exit(self, code: int, text: str = "") -> None:
        with contextlib.suppress(OSError, ValueError):  # of an output that nobody reads any more
            print(text, end="\n" if text else "", file=sys.stderr, flush=True)
            sys.stdout.flush()
        if self._process == 0:
            time.sleep(1)  # what the others were told comes before the end of the connection
        os._exit(code)

    def _send(self, others, **message: Any) -> None:
        for other in others:
            with contextlib.suppress(OSError):  # its own listener sees that it is gone
                self._connections[other].send(**message)
