"""What the sheets of one hand-over wait for, as sbatch takes it. Called by `handover`.

Standard library alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nexa_hpc.core.batches import Batch
from nexa_hpc.schedulers.slurm.shapes import Sheet

Ready = Sequence["tuple[str, Batch] | None"]
"""For each sheet before the present one its job and batch; None where it was not submitted."""


def dependency(
    sheet: Sheet,
    ready: Ready,
    in_flight: Mapping[str, str | None],
) -> str:
    """Return what sbatch's --dependency gets; empty where `sheet` waits for nothing."""
    after_ok: dict[str, None] = {}
    for number, index in sheet.whole:
        job, batch = _known(ready, number)
        after_ok[job if index is None else batch.job_text(job, index)] = None
    after_ok.update(dict.fromkeys(str(in_flight[step]) for step in sheet.foreign))
    parts = [":".join(("afterok", *after_ok))] if after_ok else []
    parts += [f"aftercorr:{_known(ready, number)[0]}" for number in sheet.one_to_one]
    if sheet.after_any:
        parts.append(":".join(("afterany", *(_known(ready, n)[0] for n in sheet.after_any))))
    return ",".join(parts)


def _known(ready: Ready, number: int) -> tuple[str, Batch]:
    found = ready[number]
    assert found is not None
    return found


def waits_for(sheet: Sheet) -> list[int]:
    """Return the numbers of the sheets that `sheet` waits for."""
    return [*(number for number, _ in sheet.whole), *sheet.one_to_one, *sheet.after_any]


def steps_of(sheet: Sheet) -> list[str]:
    """Return the steps that `sheet` runs."""
    return [job.step for units in sheet.units for unit in units for job in unit]
