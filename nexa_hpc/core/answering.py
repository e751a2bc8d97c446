"""Whether a server answers, is reached from here, and is the one that is meant.

Called by those that read servers, by their supervisors and by `serve`. Standard library alone.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

from nexa_hpc.core.drivers import is_this_host
from nexa_hpc.errors import UserError

if TYPE_CHECKING:
    from nexa_hpc.core.servers import Handle, Servers

_ASK_S = 2.0


def answers(
    url: str, timeout_s: float = _ASK_S, *, path: str = "/health", token: str | None = None
) -> str | None:
    """Return None where GET `path` at `url` says 200, else what it said instead."""
    # Imported here: it is large, and the way into every step comes by.
    import http.client
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout_s)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        connection.request("GET", path, headers=headers)
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        return str(error) or type(error).__name__
    finally:
        connection.close()
    return None if status == 200 else f"{path} says {status}"


def is_refused(url: str) -> bool:
    """Return whether nobody listens at `url`; of a machine that says nothing, that is not known."""
    # Imported here, as above.
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    try:
        places = socket.getaddrinfo(parts.hostname, parts.port, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return all(_refuses(place[4][0], parts.port or 0) for place in places)


def _refuses(host: Any, port: int) -> bool:
    try:
        socket.create_connection((host, port), _ASK_S).close()
    except OSError as error:
        return isinstance(error, ConnectionRefusedError)
    return False


def silence(servers: Servers, handle: Handle, timeout_s: float = _ASK_S) -> str | None:
    """Return why the server of `handle` cannot be asked from here; None where it answers.

    What answers on the loopback of this machine is not what listened on that of another, and what
    does not know its token has taken its address since.
    """
    if not is_reached(handle):
        return f"it listens on {handle.host} of {where(handle)}, which is not reached from here"
    told = answers(handle.url, timeout_s)
    if told is not None or not handle.token_variable:
        return told
    try:
        token = servers.token(handle.name)
    except UserError:
        return None  # Another user's: what is made with it fails or not by that.
    return answers(handle.url, timeout_s, path="/v1/models", token=token)


def is_loopback(host: str) -> bool:
    """Return whether what listens on `host` is reached from its own machine alone."""
    return host in ("localhost", "::1") or host.startswith("127.")


def is_reached(handle: Handle) -> bool:
    """Return whether what the server of `handle` listens on can be this machine's."""
    supervisor = handle.supervisor
    return not is_loopback(handle.host) or (
        supervisor is not None and is_this_host(supervisor["machine"])
    )


def where(handle: Handle) -> str:
    """Return the host of a server, as people name it."""
    return handle.supervisor["host"] if handle.supervisor else "another machine"
