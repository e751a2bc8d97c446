"""Starting a server: from what was asked to a handle, and from that to a server that answers.

Called by `serve start` and by the handler of `runners.serve`. Light: the library is the server's.
"""

from __future__ import annotations

import os
import secrets
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nexa_hpc.backends import model_files, vllm_server
from nexa_hpc.backends.hf import adapters, checks
from nexa_hpc.backends.hf_runtime import options as hf_runtime
from nexa_hpc.core import atomic
from nexa_hpc.core.answering import is_loopback
from nexa_hpc.core.leftovers import untagged
from nexa_hpc.core.servers import (
    LOCAL,
    TAG_VARIABLE,
    Condition,
    Handle,
    Servers,
    name_problem,
)
from nexa_hpc.errors import Interrupted, StepError, UserError, nearest
from nexa_hpc.runners import ports, supervising

BACKENDS = ("hf_runtime", "vllm")
LOOPBACK = "127.0.0.1"
OWN_PARAMS: Mapping[str, checks.Kind] = {
    "model": checks.TEXT,
    "name": checks.Kind(
        "letters, digits, - and _, at most 64", lambda value: name_problem(value) is None
    ),
    "host": checks.TEXT,
    "port": checks.Kind(
        "a port, or 0 for a free one", lambda value: type(value) is int and 0 <= value < 65536
    ),
    "tensor_parallel": checks.COUNT,
    "dry_run": checks.FLAG,
    "token": checks.FLAG,
    "python": checks.TEXT,
    "served_model_name": checks.TEXT,
    "start_timeout_s": checks.COUNT,
    "trust_remote_code": checks.FLAG,
    "allow_pickle": checks.FLAG,
}
"""The params that are ours; all others are the server's."""
_ALLOWANCES = ("trust_remote_code", "allow_pickle")
_WANTS_TOKEN = "a server that other machines reach has a token"
_DEADLINE_S = 600
_POLL_S = 0.1
_TELL_S = 2.0


def problems(
    backend: str | None, params: Mapping[str, Any], *, is_elsewhere: bool = False
) -> Iterator[tuple[str, str]]:
    """Yield (place, message) for what is wrong with what was asked; `is_elsewhere`: in an
    environment that cannot be looked into from here.
    """
    yield from _own_problems(backend, params)
    options = {name: value for name, value in params.items() if name not in OWN_PARAMS}
    python = str(params.get("python", ""))
    if backend == "vllm" and not is_elsewhere:
        yield from vllm_server.problems(options, python)
    elif backend == "hf_runtime":
        is_ours = not is_elsewhere and python in ("", sys.executable)
        yield from hf_runtime.problems(options, params.get("tensor_parallel", 1), is_ours=is_ours)


def _own_problems(backend: str | None, params: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if backend not in BACKENDS:
        yield (
            "backend",
            f"no backend '{backend}' serves"
            + (nearest(backend, BACKENDS) or f"; there are: {', '.join(BACKENDS)}"),
        )
        return
    own = {name: value for name, value in params.items() if name in OWN_PARAMS}
    yield from checks.check(own, OWN_PARAMS, "params")
    if own.get("token") is False and not is_loopback(str(own.get("host", LOOPBACK))):
        yield "params.token", _WANTS_TOKEN


def make_handle(
    name: str,
    model: Path,
    title: str,
    backend: str,
    params: Mapping[str, Any],
    project: Path,
    **more: Any,
) -> Handle:
    """Return the handle of a server that has not been started.

    Raises UserError where the model cannot be served, or not without more trust.
    """
    host = str(params.get("host", LOOPBACK))
    served_as = str(params.get("served_model_name") or model_name(title))
    if params.get("token") is False and not is_loopback(host):
        raise UserError(f"{title}: {_WANTS_TOKEN}")
    served = _Model(model, title, project)
    argv = _command(served, served_as, backend, params)
    library = vllm_server if backend == "vllm" else hf_runtime
    wants_token = bool(params.get("token", not is_loopback(host)))
    return Handle(
        name=name,
        tag=f"{name}-{secrets.token_hex(8)}",
        backend=backend,
        model=title,
        served_as=served_as,
        host=host,
        port=int(params.get("port", 0)),
        argv=tuple(argv),
        folders=served.folders(),
        variables=library.VARIABLES,
        token_variable=library.TOKEN_VARIABLE if wants_token else "",
        created_at=time.time(),
        deadline_s=float(params.get("start_timeout_s", _DEADLINE_S)),
        **more,
    )


@dataclass(frozen=True)
class _Model:
    """What is to be served."""

    folder: Path
    title: str
    project: Path

    def folders(self) -> tuple[str, ...]:
        """Return what the server reads: the model, and what it belongs on."""
        found = [self.folder]
        if adapters.is_adapter(self.folder):
            base = adapters.base_of(self.folder, self.project).source.path
            found += [base] if base is not None else []
        return tuple(map(str, found))

    def base(self, allowed: Sequence[str]) -> adapters.Base | None:
        """Return what it belongs on where it is an adapter, else None.

        Raises UserError where it, or its base, is not whole or asks for more trust.
        """
        self._refuse(model_files.problems(self.folder, allowed))
        if not adapters.is_adapter(self.folder):
            return None
        base = adapters.base_of(self.folder, self.project)
        if base.source.path is not None:
            told = model_files.problems(base.source.path, allowed)
            self._refuse(f"its base {base.source.title}: {problem}" for problem in told)
        return base

    def _refuse(self, problems: Iterable[str]) -> None:
        wrong = [f"{self.title}: {problem}" for problem in problems]
        if wrong:
            raise UserError("\n".join(wrong))


def _command(model: _Model, served_as: str, backend: str, params: Mapping[str, Any]) -> list[str]:
    """Return the argv of a server, as `Handle.argv` has it."""
    allowed = [allowance for allowance in _ALLOWANCES if params.get(allowance)]
    base = model.base(allowed)
    options = {n: v for n, v in params.items() if n not in OWN_PARAMS}
    python = str(params.get("python", ""))
    if backend != "vllm":
        return hf_runtime.command(
            str(model.folder), served_as, model.project, options, allowed, python
        )
    parallel = int(params.get("tensor_parallel", 1))
    if "trust_remote_code" in allowed:
        options["trust_remote_code"] = True
    if base is None:
        return vllm_server.command(str(model.folder), served_as, options, parallel, python)
    try:
        adapters.check_base(base)  # vLLM itself takes any.
    except StepError as error:
        raise UserError(f"{model.title}: its base {error}", hint=error.hint) from error
    rank = adapters.rank_of(model.folder)
    options = {**vllm_server.adapter_options(served_as, model.folder, rank), **options}
    if base.source.revision is not None:
        options.setdefault("revision", base.source.revision)
    return vllm_server.command(base.source.where, f"{served_as}-base", options, parallel, python)


def shown_command(handle: Handle) -> str:
    """Return the command of a server as a shell takes it, its token as `$TOKEN`, with a port that
    is free now where it is to listen on this machine.
    """
    port = handle.port
    if port == 0 and handle.scheduler == LOCAL:
        try:
            claim = ports.claim_any(handle.host)
            port = claim.port
            claim.drop()
        except OSError:
            pass  # An address of another machine.
    variables = [f"{name}={shlex.quote(value)}" for name, value in handle.variables.items()]
    if handle.token_variable:
        variables.append(f'{handle.token_variable}="$TOKEN"')
    return " ".join([*variables, shlex.join(handle.command(port))])


def model_name(title: str) -> str:
    """Return the name that requests give, for a model that people call `title`."""
    return title.removeprefix("models:").rstrip("/").rpartition("/")[2]


def start(servers: Servers, handle: Handle, tell: Callable[[str], None] = lambda _: None) -> Handle:
    """Start a server here and return its handle once it answers; `tell` hears how it goes.

    Raises StepError with the end of its log where it does not come up; then, and when this is
    interrupted, nothing of it is left.
    """
    create(servers, handle)
    try:
        supervisor = _supervisor(servers, handle)
        return await_healthy(servers, handle, lambda: _ended(supervisor), tell)
    except (KeyboardInterrupt, Interrupted, OSError):
        servers.stop(handle)
        raise


def _supervisor(servers: Servers, handle: Handle) -> subprocess.Popen[bytes]:
    with atomic.open_log(servers.file(handle.name, "log")) as log:
        return subprocess.Popen(
            supervising.command(servers, handle),
            env={**untagged(os.environ), TAG_VARIABLE: handle.tag},
            cwd=servers.folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def create(servers: Servers, handle: Handle) -> None:
    """Record `handle`, with a new token where it has one; raises UserError where its name lives."""
    servers.create(handle, secrets.token_urlsafe(32) if handle.token_variable else None)


def _ended(supervisor: subprocess.Popen[bytes]) -> str:
    code = supervisor.poll()
    return f"its supervisor ended with {_code(code)}" if code is not None else ""


def await_healthy(
    servers: Servers,
    handle: Handle,
    ended: Callable[[], str],
    tell: Callable[[str], None],
) -> Handle:
    """Return the handle of a server that is starting once it answers; `ended` says how it ended.

    Raises StepError with the end of its log where it does not come up, and has then stopped it.
    """
    began = told_at = time.monotonic()
    while True:
        how = ended()
        now = servers.find(handle.name)
        if now is None or now.tag != handle.tag:
            raise StepError(f"server '{handle.name}' was stopped while it started")
        condition, message = servers.condition(now)
        if condition is Condition.HEALTHY and not how:
            for note in now.notes:
                tell(note)
            return now
        if not condition.lives or how:
            told = message or how
            last = servers.tail(handle.name)
            servers.stop(replace(now, ended=Condition.CRASHED.value))
            raise StepError(
                f"server '{handle.name}' did not come up: {told}\n{last}",
                hint=f"nexa-hpc serve logs {handle.name}",
            )
        if time.monotonic() - told_at > _TELL_S:
            told_at = time.monotonic()
            last = message or servers.tail(handle.name, 1)[-100:]
            tell(f"starting: {told_at - began:.0f} s; {last}")
        time.sleep(_POLL_S)


def _code(code: int | None) -> str:
    return signal.Signals(-code).name if code is not None and code < 0 else str(code)
