"""Where a model is asked: an URL, or the name of a server that was started here; and its token.

Called by planning (`problem`) and by `endpoint` when a step starts. Light.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from nexa_hpc.core.answering import is_reached, silence, where
from nexa_hpc.core.servers import Condition, Servers, name_problem
from nexa_hpc.errors import StepError, UserError

_VERSION = "/v1"
LIST_THEM = "nexa-hpc serve list"


@dataclass(frozen=True)
class Address:
    """Where requests go, and what they show."""

    url: str
    """Without the /v1 of OpenAI's endpoints."""
    title: str
    """As people name it."""
    token: str | None = field(default=None, repr=False)
    is_ours: bool = False
    """Whether the server was started here: then no proxy is between."""
    model: str | None = None
    """The name under which ours serves its model; of an adapter vLLM offers the base as well."""

    @property
    def base_url(self) -> str:
        """What OpenAI's client takes."""
        return self.url + _VERSION


def is_name(endpoint: Any) -> bool:
    """Return whether an endpoint is meant to be the name of a server that was started here."""
    return not isinstance(endpoint, str) or "://" not in endpoint


def problem(endpoint: Any) -> str | None:
    """Return what is wrong with an endpoint as declared, or None."""
    if is_name(endpoint):
        if name_problem(endpoint) is None:
            return None
        return "expected a URL, such as http://host:8000, or the name of a server"
    try:
        parts = urlsplit(endpoint)
        is_whole = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        is_whole = None
    if not is_whole:
        return "expected a URL, such as http://host:8000 or https://host/v1"
    if parts.username is not None or parts.query or parts.fragment:
        return "a URL is kept in records: name a token's variable in `token_variable` instead"
    return None


def find(endpoint: str, variable: str | None, servers: Servers) -> Address:
    """Return the address of an endpoint; `variable` holds the token of one with a URL.

    Raises UnknownNameError for no such server, StepError for one that has ended or that only its
    own machine reaches, UserError where the token's variable is not set.
    """
    if is_name(endpoint):
        return _of_server(endpoint, servers)
    if variable is not None and not os.environ.get(variable):
        raise UserError(
            f"`token_variable`: the environment variable {variable} is not set",
            hint=f"list it in the step's `env: {{secrets: [{variable}]}}`, and set it",
        )
    url = endpoint.rstrip("/").removesuffix(_VERSION)
    return Address(url, url, os.environ[variable] if variable else None)


def _of_server(name: str, servers: Servers) -> Address:
    handle = servers.get(name)
    condition, message = servers.condition(handle)
    if condition is not Condition.HEALTHY:
        told = f": {message}" if message else ""
        raise StepError(f"server '{name}' is {condition.value}{told}", hint=LIST_THEM)
    if not is_reached(handle):
        here = os.uname().nodename
        raise StepError(
            f"server '{name}' listens on {handle.host} of {where(handle)}, which {here} does not "
            "reach",
            hint="start it with --host 0.0.0.0, or run this step on its machine",
        )
    if (silent := silence(servers, handle)) is not None:
        message = f"server '{name}' does not answer at {handle.url}: {silent}"
        raise StepError(message, hint=LIST_THEM)
    title = f"server '{name}' at {handle.url}"
    return Address(handle.url, title, servers.token(name), True, handle.served_as)
