"""Slurm: what is asked of it, what it answers, and what is submitted through submitit."""
