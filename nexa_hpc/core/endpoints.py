"""Servers of steps as other steps see them: their names, who reads them, where they answer.

A server is called after its step and the step's key, so any session finds it, and a result made
with it is found by what was served. Where it answers is read from its handle by each attempt that
reads it, and never recorded: what an earlier one was told may be another's by now. Called by
planning, the fold, the worker and handlers. Standard library alone.
"""

from __future__ import annotations

import re
import time
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from nexa_hpc.core.answering import answers, is_loopback, is_refused, silence
from nexa_hpc.core.instances import SKIP, Instance
from nexa_hpc.core.paths import ProjectPaths
from nexa_hpc.core.results import find_result
from nexa_hpc.core.servers import Condition, Servers, is_here
from nexa_hpc.errors import Interrupted, StepError

KEEP, DRY_RUN = "keep", "dry_run"
"""The params of a step that serves which say that its server stays, or that none is started."""
_STOPPED = "is not there: it was stopped"
IDLE = "nothing that reads it has to run"
_NAME_CHARACTERS = 48
_ASK_S = 10.0
_TOLD_S = 3.0
"""How long the supervisor of a server that answers no more may take to say why."""
_POLL_S = 0.1


@dataclass(frozen=True)
class Endpoint:
    """Where the server of a step answers."""

    step: str
    name: str
    """As `serve list` has it."""
    url: str
    token_file: Path | None
    """Holds what it must be shown; None where it wants nothing."""


def server_name(instance: Instance) -> str:
    """Return what the server of `instance`, which serves, is called."""
    told = re.sub(r"[^A-Za-z0-9_-]", "-", instance.step_id).strip("-_")[:_NAME_CHARACTERS]
    return f"{told or 'server'}-{instance.key[:8]}"


def is_kept(instance: Instance) -> bool:
    """Return whether the server of `instance` stays when nothing reads it any more."""
    return bool(instance.params.get(KEEP))


def kept_servers(instances: Iterable[Instance], paths: ProjectPaths) -> list[str]:
    """Return the names of the servers of `instances` that stay, and are there."""
    servers = Servers(paths.servers)
    names = (server_name(i) for i in instances if i.serves and is_kept(i))
    found = ((name, servers.find(name)) for name in names)
    return [name for name, h in found if h is not None and servers.condition(h)[0].lives]


def is_for_others(instance: Instance, paths: ProjectPaths) -> bool:
    """Return whether the server of `instance` is up, stays, and is reached from other machines."""
    handle = Servers(paths.servers).find(server_name(instance))
    if handle is None or handle.ended or handle.leased:
        return False
    return bool(handle.url) and not is_loopback(handle.host)


def readers_of(instances: Mapping[str, Instance]) -> dict[str, list[Instance]]:
    """Return step that serves -> the instances that read its server."""
    found: dict[str, list[Instance]] = {i.step: [] for i in instances.values() if i.serves}
    for instance in instances.values() if found else ():
        for step in servers_read(instance):
            found[step].append(instance)
    return found


def servers_read(instance: Instance) -> set[str]:
    """Return the steps whose servers `instance` reads."""
    return {handed["server"] for handed in instance.inputs.values() if "server" in handed}


def is_idle(
    instance: Instance,
    readers: Iterable[Instance],
    paths: ProjectPaths,
    stopped: Container[str] = (),
) -> bool:
    """Return whether nothing is left to do for the server of `instance`, as all have results or
    were `stopped` singly.
    """
    return not is_kept(instance) and all(
        reader.step in stopped or _is_done(reader, paths) for reader in readers
    )


def _is_done(reader: Instance, paths: ProjectPaths) -> bool:
    if reader.effect:
        return reader.action == SKIP
    return find_result(reader, paths).artifact is not None


def endpoints_of(
    instance: Instance, instances: Mapping[str, Instance], paths: ProjectPaths
) -> dict[str, Endpoint]:
    """Return input -> where the server that it names answers now.

    Raises StepError, saying why, for one that does not.
    """
    servers = Servers(paths.servers)
    found = {}
    for name, handed in instance.inputs.items():
        if "server" in handed:
            step = handed["server"]
            found[name] = _endpoint(servers, step, server_name(instances[step]))
    return found


def _endpoint(servers: Servers, step: str, name: str) -> Endpoint:
    handle = servers.find(name)
    if handle is None:
        raise _gone(Endpoint(step, name, "", None), _STOPPED)
    token_file = servers.file(name, "token") if handle.token_variable else None
    endpoint = Endpoint(step, name, handle.url, token_file)
    require_living(servers, [endpoint])
    # A handle from before a reboot says nothing of an end.
    if (told := silence(servers, handle, _ASK_S)) is not None:
        what = f"does not answer at {handle.url}: {told}"
        # One that stays is believed until somebody stops it.
        raise _gone(endpoint, what, "" if handle.leased else f"nexa-hpc serve stop {name}; ")
    return endpoint


def require_living(servers: Servers, endpoints: Iterable[Endpoint]) -> None:
    """Raise StepError, saying why, if one of the servers is not there any more."""
    for endpoint in endpoints:
        handle = servers.find(endpoint.name)
        if handle is None:
            raise _gone(endpoint, _STOPPED)
        condition, message = servers.condition(handle)
        if condition is not Condition.HEALTHY:
            raise _gone(endpoint, f"is {condition.value}" + (f": {message}" if message else ""))
        if endpoint.url != handle.url:
            raise _gone(endpoint, f"was started anew: it answers at {handle.url} now")
        if not is_here(handle) and is_refused(handle.url):
            # Its supervisor cannot be seen, and may be silent for long before it counts as gone.
            raise _gone(endpoint, f"is not there: nobody listens at {handle.url} any more")


@contextmanager
def blaming_servers(servers: Servers, endpoints: Sequence[Endpoint]) -> Iterator[None]:
    """Have an error within say so where a server that was being read has gone."""
    try:
        yield
    except Interrupted:
        raise
    except Exception as error:
        gone = _gone_of(servers, endpoints)
        if gone is None or str(gone) in str(error):
            raise
        raise StepError(f"{gone}; so: {error}", hint=gone.hint) from error


def _gone_of(servers: Servers, endpoints: Sequence[Endpoint]) -> StepError | None:
    """Return what is to be said of the first server that has gone, or None."""
    silent = {e.name: told for e in endpoints if (told := answers(e.url)) is not None}
    deadline = time.monotonic() + (_TOLD_S if silent else 0.0)
    while True:
        try:
            require_living(servers, endpoints)
        except StepError as gone:
            return gone
        if time.monotonic() >= deadline:
            break
        time.sleep(_POLL_S)
    for endpoint in endpoints:
        if endpoint.name in silent:
            return _gone(endpoint, f"does not answer any more: {silent[endpoint.name]}")
    return None


def _gone(endpoint: Endpoint, what: str, first: str = "") -> StepError:
    return StepError(
        f"server '{endpoint.name}' of step '{endpoint.step}' {what}",
        hint=f"nexa-hpc serve logs {endpoint.name}; {first}nexa-hpc resume starts it again",
    )
