"""The garbage collector is held off while much is made, and is as it was afterwards."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest
from conftest import child_environment

from nexa_hpc.core.collector import without_gc

# In a process of its own: what is frozen stays so.
_CHILD = """
import gc
from nexa_hpc.core.collector import made_to_stay, without_gc
with made_to_stay():
    with without_gc():
        made = [[] for _ in range(1000)]
    assert not gc.isenabled()
assert gc.isenabled()
assert gc.get_freeze_count() > 1000
try:
    with made_to_stay():
        raise ValueError
except ValueError:
    assert gc.isenabled()
"""


def test_what_is_made_to_stay_is_not_looked_at_again_and_the_collector_goes_on() -> None:
    subprocess.run([sys.executable, "-c", _CHILD], check=True, env=child_environment())


def test_within_another_the_collector_stays_off_until_the_outer_one_ends() -> None:
    assert gc.isenabled()
    with without_gc():
        with pytest.raises(ValueError, match="x"), without_gc():
            raise ValueError("x")
        assert not gc.isenabled()
    assert gc.isenabled()
