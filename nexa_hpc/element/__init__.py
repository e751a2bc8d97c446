"""Inside a Slurm job: one element makes its attempts, one after the other.

`python -m nexa_hpc.element`; standard library alone, like the worker that each step starts.
"""
