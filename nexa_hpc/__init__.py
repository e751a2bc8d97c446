"""nexa_hpc: ML pipelines on a laptop or on Slurm, cached, atomic and resumable."""
