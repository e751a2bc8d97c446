"""`python -m nexa_hpc.element <run folder>#<token>`: what a job of steps runs in each element."""

from __future__ import annotations

import sys

from nexa_hpc.element.main import run_element

if __name__ == "__main__":
    run_element(sys.argv[1])
