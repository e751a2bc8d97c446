"""The launcher `hydra/launcher=nexa_slurm`; what it does is in `nexa_hpc.hydra_runs`."""
