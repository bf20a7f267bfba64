"""Before JAX joins the processes of a run: all of them meet at process 0's port, and agree on what they will run.

JAX's own joining kills a process from C++ when its time is up, without a word on who is missing. So process 0 listens
at the coordinator's port itself first. Everyone else connects, says who it is and what it runs, and is told to go, or
why not. Then JAX gets the port; the connections stay open for watch.py.

The words on the wire are JSON objects, one a line.
"""

import contextlib
import json
import socket
import time
from typing import Any

from gpt_jax.errors import UserError
from gpt_jax.parallel.agreement import disagreement
from gpt_jax.parallel.cluster import Place
from gpt_jax.progress import say

GREETING = {"roll_call": "gpt_jax 1"}
HELLO_SECONDS = 10.0  # for the first words of a connection that is up
RETRY_SECONDS = 0.5
KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4, "TCP_USER_TIMEOUT": 30_000}  # s, s, times, ms
SECONDS_BETWEEN_LINES = 20.0
LONGEST_LINE = 1 << 22


class Connection:
    """JSON objects over a socket whose other end is noticed to be gone within half a minute, however it went."""

    def __init__(self, connected: socket.socket):
        """Takes over `connected`."""
        self._socket, self._lines = connected, connected.makefile("rb")
        # The kernels ask each other, so a process that is busy is not taken for a host that is dead.
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in KEEPALIVE.items():
            if hasattr(socket, name):  # not all of them on macOS
                connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def send(self, **message: Any) -> None:
        """Sends one object. OSError: the other end is gone."""
        self._socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, seconds: float | None = None) -> dict[str, Any]:
        """The next object. OSError: the other end is gone, or silent for `seconds`; ValueError: it speaks otherwise."""
        self._socket.settimeout(seconds)
        line = self._lines.readline(LONGEST_LINE)
        self._socket.settimeout(None)
        if not line:
            raise ConnectionResetError("connection closed")
        message = json.loads(line)
        if not isinstance(message, dict):
            raise ValueError(f"not an object: {line[:40]!r}")
        return message

    def is_open(self) -> bool:
        """Whether the other end has not hung up; for a moment when it has nothing to say."""
        try:
            return bool(self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        except BlockingIOError:
            return True
        except OSError:
            return False

    def close(self) -> None:
        """Hangs up; what was sent still arrives."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._lines.close()
        self._socket.close()


def join(place: Place, facts: dict[str, str], time_limit: float) -> tuple[list[str], dict[int, Connection]]:
    """Waits until all processes of the run are there and agree.

    Args:
      facts: what has to be the same on all of them (agreement.py).
      time_limit: seconds.

    Returns:
      The name of each process's host, and open connections: of process 0 to all others, of the others to process 0.

    Raises:
      UserError: when processes are missing, two have one id, nothing answers, or they do not agree.
    """
    return _call(place, facts, time_limit) if place.process == 0 else _answer(place, facts, time_limit)


def _call(place: Place, facts: dict[str, str], time_limit: float) -> tuple[list[str], dict[int, Connection]]:
    """Process 0's side."""
    there: dict[int, Connection] = {}
    hellos: dict[int, dict] = {0: {"host": socket.gethostname(), "facts": facts}}
    deadline, next_line = time.monotonic() + time_limit, time.monotonic() + SECONDS_BETWEEN_LINES
    refusal = None
    with _listen(place) as listener:
        while refusal is None and (missing := [i for i in range(1, place.processes) if not _present(there, i)]):
            now = time.monotonic()
            if now > deadline:
                refusal = _missing(place, missing, time_limit)
            elif now > next_line:
                next_line = now + SECONDS_BETWEEN_LINES
                say(f"waiting for {len(missing)} of {place.processes} processes: ids {_some(missing)}")
            elif (newcomer := _next_hello(listener)) is not None:
                connection, hello = newcomer
                refusal = _objection(place, hello, there, hellos)
                if refusal is None:
                    there[hello["process"]], hellos[hello["process"]] = connection, hello
                else:
                    _tell([connection], refused=refusal)
    if refusal is None:
        hosts = [hellos[process]["host"] for process in range(place.processes)]
        refusal = disagreement([hellos[process]["facts"] for process in range(place.processes)], hosts)
    if refusal is not None:
        _tell(there.values(), refused=refusal)
        raise UserError(refusal)
    _tell(there.values(), hosts=hosts)
    return hosts, there


def _answer(place: Place, facts: dict[str, str], time_limit: float) -> tuple[list[str], dict[int, Connection]]:
    """The side of every other process."""
    host, _, port = place.coordinator.rpartition(":")
    deadline = time.monotonic() + time_limit
    while True:
        try:
            connection = Connection(socket.create_connection((host.strip("[]"), int(port)), timeout=HELLO_SECONDS))
            if connection.receive(HELLO_SECONDS) != GREETING:
                raise ValueError("another greeting")
            connection.send(process=place.process, processes=place.processes, host=socket.gethostname(), facts=facts)
            verdict = connection.receive(time_limit + HELLO_SECONDS)  # its own limit may have begun later
            break
        except ValueError:
            problem = f"what answers at {place.coordinator} is no process 0 that waits for others of this version"
        except OSError as error:
            problem = f"nothing answers at {place.coordinator} ({error.strerror or error})"
        if time.monotonic() > deadline:
            raise UserError(
                f"process {place.process} of {place.processes}: {problem}, for {time_limit:g} s. There process 0 "
                f"should wait for the others ({place.environment}). Is it started, with the same command? Is the "
                "address that of its host, not of an earlier one? Is the port open between the hosts (firewall), and "
                "free of other programs?"
            )
        time.sleep(RETRY_SECONDS)
    if "refused" in verdict:
        raise UserError(verdict["refused"])
    return verdict["hosts"], {0: connection}


def _listen(place: Place) -> socket.socket:
    """The socket at which process 0 is found."""
    port = int(place.coordinator.rpartition(":")[2])
    try:
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        listener = socket.create_server(("", port), family=family, dualstack_ipv6=both, backlog=1024)
    except OSError as error:
        raise UserError(
            f"process 0 cannot listen at port {port} ({error.strerror}): an earlier run that has not ended, a second "
            f"process with id 0, or another program? End it, or choose another port ({place.environment}; "
            "JAX_COORDINATOR_PORT where the address is found and not given)."
        ) from None
    listener.settimeout(1.0)
    return listener


def _next_hello(listener: socket.socket) -> tuple[Connection, dict] | None:
    """The next process that says who it is; None when nobody came for a second, or it was a stranger."""
    try:
        connection = Connection(listener.accept()[0])
    except TimeoutError:
        return None
    try:
        connection.send(**GREETING)
        hello = connection.receive(HELLO_SECONDS)
        if isinstance(hello["process"], int) and isinstance(hello["processes"], int) and hello["host"]:
            return connection, hello | {"facts": dict(hello["facts"])}
    except (OSError, ValueError, KeyError, TypeError):
        pass
    connection.close()
    return None


def _objection(place: Place, hello: dict, there: dict[int, Connection], hellos: dict[int, dict]) -> str | None:
    """Why the process that says `hello` cannot belong to this run; None where it can."""
    process, host = hello["process"], hello["host"]
    if hello["processes"] != place.processes:
        return (
            f"process 0 (host {hellos[0]['host']}) was started as one of {place.processes} processes, "
            f"process {process} (host {host}) as one of {hello['processes']}. Give all of them the same number "
            f"({place.environment})."
        )
    if process == 0 or _present(there, process):
        return (
            f"two processes have the id {process}: on host {hellos[process]['host']} and on host {host}. Each needs "
            f"its own, from 0 to {place.processes - 1} ({place.environment}); or is one left over from an earlier "
            "start?"
        )
    return None


def _missing(place: Place, missing: list[int], time_limit: float) -> str:
    return (
        f"{len(missing)} of {place.processes} processes have not come within {time_limit:g} s: ids {_some(missing)}. "
        f"Process 0 waits for them at {place.coordinator} ({place.environment}). Start the same command on every host "
        "(on a TPU VM: gcloud ... ssh --worker=all); if it is started, see what it printed there."
    )


def _some(ids: list[int]) -> str:
    return ", ".join(map(str, ids[:10])) + (f" and {len(ids) - 10} more" if len(ids) > 10 else "")


def _present(there: dict[int, Connection], process: int) -> bool:
    """Whether the process has come and is still there: one that was stopped meanwhile may come again."""
    return process in there and there[process].is_open()


def _tell(connections, **message: Any) -> None:
    for connection in connections:
        with contextlib.suppress(OSError):
            connection.send(**message)
