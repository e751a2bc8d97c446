"""Hydra's and OmegaConf's errors in our words; a broken plugin of somebody else's, by its name.

Hydra imports every module of `hydra_plugins` in the environment and forgives only ImportError, so a
plugin that is too old for this Python would break each composition with a traceback of its own.
"""

from __future__ import annotations

import contextlib
import re
import traceback
from collections.abc import Iterator
from importlib import metadata

from nexa_hpc.core.quoting import printable, shown
from nexa_hpc.errors import UserError, nearest

PRIMARY = "nexa_hpc_primary"
"""What Hydra calls the configuration that it composes for us."""
_PLUGIN = re.compile(r".*[/\\]hydra_plugins[/\\](?P<module>[^/\\]+?)(?:\.py)?(?:[/\\].*)?")
_OPTIONS = re.compile(r"^\t(\S+)$", re.MULTILINE)


@contextlib.contextmanager
def hydra_imported() -> Iterator[None]:
    """Tell what to do where Hydra is missing or cannot be imported."""
    try:
        yield
    except ImportError as error:
        raise UserError(
            f"Hydra cannot be imported: {error}", hint="pip install 'hydra-core>=1.3.8,<1.4'"
        ) from error


@contextlib.contextmanager
def told(what: str) -> Iterator[None]:
    """Raise UserError, about `what`, for all that Hydra and OmegaConf raise."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        yield
    except UserError:
        raise
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(f"{what}: {_words(error)}") from error
    except Exception as error:
        plugin = _guilty(error)
        if plugin is None:
            raise
        raise _broken(plugin, error) from error


def _words(error: BaseException) -> str:
    """Return what `error` and its cause say, in one line, and the nearest option's name."""
    said = [str(error).strip()]
    cause = error.__cause__
    if cause is not None and str(cause).strip() and str(cause).strip() not in said[0]:
        said.append(str(cause).strip())
    text = ": ".join(said).replace(f"In '{PRIMARY}': ", "")
    missing = re.search(r"Could not find '([^']+)'", text)
    hint = nearest(missing[1].rpartition("/")[2], _OPTIONS.findall(text)) if missing else ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    kept = [line for line in lines if not line.startswith(("See https", "full_key", "object_type"))]
    return printable(" ".join(kept)[:900]) + hint


def _guilty(error: BaseException) -> str | None:
    """Return the module below `hydra_plugins` that `error` comes from."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        match = _PLUGIN.fullmatch(frame.filename)
        if match is not None:
            return match["module"]
    return None


def _broken(plugin: str, error: BaseException) -> UserError:
    distribution = _distribution(plugin)
    named = f" of the package {distribution}" if distribution else ""
    remedy = f"pip uninstall {distribution}" if distribution else "remove it, or mend it"
    said = str(error).strip().splitlines()
    return UserError(
        f"Hydra's plugin hydra_plugins.{plugin}{named} is broken, and every composition imports "
        f"it: {type(error).__name__}: {shown(said[0]) if said else ''}",
        hint=f"{remedy}; nexa_hpc needs no such plugin",
    )


def _distribution(plugin: str) -> str | None:
    """Return the installed distribution that has `hydra_plugins/<plugin>`."""
    for distribution in metadata.distributions():
        for file in distribution.files or ():
            parts = file.parts
            if parts[0] == "hydra_plugins" and parts[1:2] and parts[1].split(".")[0] == plugin:
                return str(distribution.metadata["Name"])
    return None
