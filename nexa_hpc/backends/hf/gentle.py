"""Loads torch so that it shares its cores; called before anything else imports it.

OpenMP's threads spin while they wait for each other. Where another process wants the same cores, as
on a login node, the one that is waited for is the one that does not run, and everything takes twice
as long: 93 s instead of 175 s for a training beside two busy processes on two cores (measured). The
policy is read once, when the library is loaded.
"""

from __future__ import annotations

import os
import sys

_POLICY = "OMP_WAIT_POLICY"


def load_torch() -> None:
    """Import torch with waiting threads asleep, unless it is loaded or the user has chosen."""
    if "torch" in sys.modules or _POLICY in os.environ:
        return
    os.environ[_POLICY] = "PASSIVE"
    try:
        import torch  # noqa: F401  for its effect
    finally:
        # What steps start afterwards decides for itself.
        del os.environ[_POLICY]
