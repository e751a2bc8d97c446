"""A server gets a port that no other one has or will have, and only its own answer counts."""

from __future__ import annotations

import http.server
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from conftest import RunCli
from served import StandIn, write_model
from slurm_fixtures import wait_until

from nexa_hpc.core.servers import Servers
from nexa_hpc.runners import ports

LISTEN = """
import socket, sys
with socket.socket() as listener:
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    print(listener.getsockname()[1], flush=True)
    sys.stdin.read()
"""


def test_a_port_that_another_server_of_ours_is_to_take_is_taken() -> None:
    first = ports.claim_any("127.0.0.1")
    assert ports.claim("127.0.0.1", first.port) is None
    first.drop()
    again = ports.claim("127.0.0.1", first.port)
    assert again is not None
    again.drop()


def test_a_port_that_somebody_listens_on_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        assert ports.claim("127.0.0.1", other.getsockname()[1]) is None


def test_who_listens_is_told_by_the_kernel() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", LISTEN], stdin=-1, stdout=-1, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None and process.stdin is not None
        port = int(process.stdout.readline())
        assert ports.is_listened_on_by(process.pid, port)
        with subprocess.Popen(["sleep", "60"], start_new_session=True) as other:
            assert not ports.is_listened_on_by(other.pid, port)
            other.kill()
        process.stdin.close()
    assert not ports.is_listened_on_by(process.pid, port)


def test_a_process_that_has_ended_holds_nothing() -> None:
    with subprocess.Popen([sys.executable, "-c", ""], start_new_session=True) as process:
        wait_until(lambda: ports._has_ended(Path(f"/proc/{process.pid}")), 30, "its end")
        with socket.create_server(("127.0.0.1", 0)) as other:
            assert not ports.is_listened_on_by(process.pid, other.getsockname()[1])


class _Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.mark.slow
def test_a_stranger_that_answers_at_its_port_is_not_taken_for_the_server(
    project: Path, run_cli: RunCli
) -> None:
    write_model(project / "m")
    stand_in = StandIn(project.parent / "stand_in")
    stand_in.gate.touch()
    servers = Servers(project / ".nexa_state/serve")
    wanted = ports.claim_any("127.0.0.1")
    wanted.drop()
    asked = ["serve", "start", "m", "--python", stand_in.python, "--port", str(wanted.port)]
    starting = threading.Thread(target=run_cli, args=asked)
    starting.start()
    wait_until(stand_in.starts, 30, "the server to start")
    stranger = http.server.ThreadingHTTPServer(("127.0.0.1", wanted.port), _Answers)
    threading.Thread(target=stranger.serve_forever, daemon=True).start()
    try:
        with pytest.raises(AssertionError):
            wait_until(lambda: servers.get("m").url, 1, "the stranger to be believed")
        stand_in.gate.unlink()  # Now it finds its port taken.
        starting.join(60)
        handle = servers.get("m")
        assert handle.url and not handle.url.endswith(f":{wanted.port}")
        assert handle.notes == (
            f"port {wanted.port} was taken",
            f"port {wanted.port} is taken: another was chosen",
        )
    finally:
        stranger.shutdown()
        stranger.server_close()
        run_cli("serve", "stop", "m")
