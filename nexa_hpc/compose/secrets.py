"""Secrets are names: no composed value may be that of a variable which looks like one.

What is composed is recorded with the run, for everybody who may read it. Called wherever values are
about to be resolved.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from nexa_hpc.core.quoting import shown
from nexa_hpc.errors import UserError

_VARIABLE = re.compile(r"oc\.env:\s*(\w+)")
_SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|API_KEY|CREDENTIAL", re.IGNORECASE)


def refuse_secrets(value: Any, names: Collection[str] = ()) -> None:
    """Raise UserError where `value`, unresolved, has the value of a secret written somewhere.

    `names` are variables that a pipeline calls secret; others are known by what they are called.
    """
    if isinstance(value, Mapping):
        for inner in value.values():
            refuse_secrets(inner, names)
    elif isinstance(value, list):
        for inner in value:
            refuse_secrets(inner, names)
    elif isinstance(value, str):
        for variable in _VARIABLE.findall(value):
            if variable in names or _SECRET.search(variable):
                raise UserError(
                    f"'{shown(value)}' would write the value of {variable} into what is recorded",
                    hint=f"name it where it is used: `env: {{secrets: [{variable}]}}`",
                )


def secret_names(steps: Any) -> set[str]:
    """Return the variables that `steps`, as composed, call secret."""
    envs = (step.get("env") for step in steps if isinstance(step, dict)) if steps else ()
    lists = (env.get("secrets") for env in envs if isinstance(env, dict))
    return {name for names in lists if isinstance(names, list) for name in names}
