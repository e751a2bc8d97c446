"""The supervisor of one server: starts it, says when it answers, and ends it with all it started.

A process of its own, detached from whoever started it. It is the only writer of the handle from
then on. The server gets SIGTERM from the kernel when its supervisor is killed. Standard library
alone.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from io import BufferedReader
from pathlib import Path

from nexa_hpc.core.answering import answers
from nexa_hpc.core.drivers import Driver, Heartbeat
from nexa_hpc.core.leases import Leases
from nexa_hpc.core.leftovers import end_leftovers, untagged
from nexa_hpc.core.redaction import Redactor
from nexa_hpc.core.servers import TAG_VARIABLE, Condition, Handle, Servers
from nexa_hpc.runners import ports
from nexa_hpc.runners.process_group import ask_to_stop, signal_group

START = (
    "import sys; sys.path[:] = [*filter(None, sys.path), sys.argv.pop()]; "
    "from nexa_hpc.runners.supervising import main; main()"
)
"""Nothing is imported from the current folder, which `python -m` would begin with."""
ROOT = Path(__file__).resolve().parents[2]
_POLL_S = 0.1
_LOOK_S = 0.5
_GRACE_S = 10.0
_CHUNK = 65536
_PORTS = 5
_TAKEN = "already in use"


def command(servers: Servers, handle: Handle, python: str = sys.executable) -> list[str]:
    """Return the argv of the supervisor of `handle`, in the interpreter `python`."""
    return [python, "-c", START, str(servers.folder), handle.name, handle.tag, str(ROOT)]


class Supervisor:
    """Runs one server to its end."""

    def __init__(self, servers: Servers, handle: Handle) -> None:
        self._servers = servers
        self._leases = Leases(servers)
        self.driver = Driver.this_process(servers.beats, servers.folder)
        # Of a job that was requeued, nothing stands that it said when it ran before.
        self.handle = replace(
            handle,
            supervisor=self.driver.to_json(),
            restarts=int(os.environ.get("SLURM_RESTART_COUNT") or 0),
            url="",
            ended="",
            ending=False,
            message="",
        )
        self._asked = ""
        self._looked_at = 0.0
        self._claim: ports.Claim | None = None
        self._meets_stranger = False

    def ask_to_stop(self, signum: int, frame: object) -> None:
        """Take a signal for the wish that the server end."""
        self._asked = f"stopped by {signal.Signals(signum).name}"

    def run(self) -> Condition:
        """Serve until the server ends or is to end; the handle then says how, as is returned."""
        self._servers.update(self.handle)
        deadline = time.monotonic() + self.handle.deadline_s
        for _ in range(_PORTS):
            port = self._free_port()
            ended, message = self._serve(port, deadline)
            if ended is Condition.STOPPED or self.handle.url or not self._found_taken():
                break
            self._note(f"port {port} was taken")
        else:
            ended, message = Condition.CRASHED, f"{_PORTS} ports were taken, one after the other"
        self._drop_claim()  # Before anybody learns of the end, and starts the next one.
        self._servers.update(replace(self.handle, ended=ended.value, message=message))
        return ended

    def _serve(self, port: int, deadline: float) -> tuple[Condition, str]:
        handle = self.handle
        print(f"starting on port {port}", flush=True)
        try:
            process = subprocess.Popen(
                handle.command(port),
                env=self._environment(),
                cwd=self._servers.folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )
        except OSError as error:
            return Condition.CRASHED, f"cannot be started: {error}"
        passing_on = threading.Thread(target=self._pass_on, args=(process.stdout,), daemon=True)
        passing_on.start()
        try:
            return self._follow(process, port, deadline)
        finally:
            ask_to_stop(process, signal.SIGTERM, _GRACE_S)
            signal_group(process, signal.SIGKILL)
            process.wait()
            end_leftovers(handle.tag, TAG_VARIABLE)
            passing_on.join(_GRACE_S)  # Now it ends: who wrote to it has gone.

    def _pass_on(self, output: BufferedReader) -> None:
        """Write what the server prints into its log, without secrets."""
        token = self._servers.token(self.handle.name)
        redactor = Redactor(self.handle.secrets, values=[token] if token else [])
        with output, open(sys.stdout.fileno(), "wb", buffering=0, closefd=False) as log:
            for chunk in redactor.chunks(iter(lambda: output.read1(_CHUNK), b"")):
                with suppress(OSError):  # Of a full disk the server takes no harm.
                    log.write(chunk)

    def _follow(
        self, process: subprocess.Popen[bytes], port: int, deadline: float
    ) -> tuple[Condition, str]:
        url = f"http://{_in_url(_reachable(self.handle.host))}:{port}"
        while True:
            code = process.poll()
            if code is not None:
                return Condition.CRASHED, _how(code)
            if time.monotonic() - self._looked_at > _LOOK_S:
                self._looked_at = time.monotonic()
                try:
                    self._look()
                except OSError:
                    pass  # A disk that hesitates is no wish: the next look may get through.
                if not self.handle.url and self._answers(process, port, url):
                    self.handle = replace(self.handle, port=port, url=url)
                    self._servers.update(self.handle)
            if self._asked:
                return Condition.STOPPED, self._asked
            if not self.handle.url and time.monotonic() > deadline:
                told = f"did not answer within {self.handle.deadline_s:.0f} s"
                if self._meets_stranger:
                    told += f"; what listens on port {port} is none of its processes"
                return Condition.CRASHED, told
            time.sleep(_POLL_S)

    def _answers(self, process: subprocess.Popen[bytes], port: int, url: str) -> bool:
        """Return whether what answers at `url` is our server, and not who was there before it."""
        if answers(url, _LOOK_S) is not None:
            return False
        self._meets_stranger = not ports.is_listened_on_by(process.pid, port)
        return not self._meets_stranger and process.poll() is None

    def _look(self) -> None:
        """See whether the server is to end."""
        if self._servers.is_to_stop(self.handle):
            self._asked = "stopped"
        elif self._is_abandoned():
            self._asked = "no step that is left reads it"

    def _is_abandoned(self) -> bool:
        """Return whether nobody holds it; then whoever comes to hold it now sees that it ends."""
        if self._leases.is_wanted(self.handle):
            return False
        self._set_ending(True)
        # Whoever wrote a lease before that may not have seen it, so theirs is looked for again.
        if not self._leases.is_wanted(self.handle):
            return True
        self._set_ending(False)
        return False

    def _set_ending(self, ending: bool) -> None:
        self.handle = replace(self.handle, ending=ending)
        self._servers.update(self.handle)

    def _environment(self) -> dict[str, str]:
        token = self._servers.token(self.handle.name)
        secret = {self.handle.token_variable: token} if token is not None else {}
        return {
            **untagged(os.environ),
            **self.handle.variables,
            **secret,
            TAG_VARIABLE: self.handle.tag,
        }

    def _free_port(self) -> int:
        self._drop_claim()
        wanted = self.handle.port
        self._claim = ports.claim(self.handle.host, wanted) if wanted else None
        if self._claim is None:
            if wanted:
                self._note(f"port {wanted} is taken: another was chosen")
                self.handle = replace(self.handle, port=0)
            self._claim = ports.claim_any(self.handle.host)
        return self._claim.port

    def _drop_claim(self) -> None:
        if self._claim is not None:
            self._claim.drop()

    def _note(self, text: str) -> None:
        print(text, flush=True)
        self.handle = replace(self.handle, notes=(*self.handle.notes, text))
        self._servers.update(self.handle)

    def _found_taken(self) -> bool:
        said = self._servers.tail(self.handle.name, 40)
        return _TAKEN in said.rpartition("starting on port")[2]


def main() -> None:
    """Supervise the server that the arguments name: folder, name, tag."""
    folder, name, tag = sys.argv[1:4]
    servers = Servers(Path(folder))
    handle = servers.get(name)
    if handle.tag != tag:
        sys.exit(f"'{name}' is another server by now")
    supervisor = Supervisor(servers, handle)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, supervisor.ask_to_stop)
    with Heartbeat(supervisor.driver, servers.folder, servers.file(name, "stop"), lambda: None):
        ended = supervisor.run()
    # What Slurm is told of the job that it is.
    sys.exit(0 if ended is Condition.STOPPED else 1)


_prctl = getattr(ctypes.CDLL(None), "prctl", None)


def _end_with_parent() -> None:
    if _prctl is not None:  # Linux alone
        _prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG, prctl(2)


def _how(code: int) -> str:
    if code < 0:
        return f"the server was killed by {signal.Signals(-code).name}"
    return f"the server exited with {code}"


def _reachable(host: str) -> str:
    """Return the name under which others reach what listens on `host`."""
    return socket.gethostname() if host in ("0.0.0.0", "::") else host


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


if __name__ == "__main__":
    main()
