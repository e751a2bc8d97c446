"""A multirun of a Hydra app in Slurm: each point an instance of a run, handed over like any other.

Behind the launcher `hydra/launcher=nexa_slurm`, which is in `nexa_hpc._hydra_plugins`. A batch of
points becomes a recorded run without a document, in a state of its own below the sweep's folder;
arrays, retries, requeues, the advance job and what `status`, `logs` and `cancel` say come from
there.
"""
