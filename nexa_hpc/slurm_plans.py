"""What a plan comes to in Slurm: arrays, what they ask for, the scripts; by the code that submits.

Called by `plan` and `run --dry-run`, through `pipeline`; nothing is written or asked.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from nexa_hpc.candidates import Candidate, with_servers, within_reach
from nexa_hpc.caution import Caution
from nexa_hpc.core.drivers import Driver
from nexa_hpc.core.instances import SKIP
from nexa_hpc.core.paths import ProjectPaths
from nexa_hpc.core.planning import Plan
from nexa_hpc.core.runs import Run
from nexa_hpc.core.states import Standing, State
from nexa_hpc.handover import HandOver
from nexa_hpc.schedulers.slurm import requests
from nexa_hpc.schedulers.slurm.shapes import Sheet
from nexa_hpc.schedulers.slurm.terms import Terms
from nexa_hpc.schedulers.slurm.waits import waits_for


class PlannedSubmission:
    """What would be submitted at once of a plan's Slurm steps that are to run."""

    def __init__(self, paths: ProjectPaths, plan: Plan, terms: Terms) -> None:
        self.terms = terms
        place = paths.pipeline(plan.pipeline).run(f"{plan.pipeline}-0")
        run = Run(paths, place, plan.instances)
        driver = Driver.this_process(place.drivers, paths.state)
        self._hand_over = HandOver(run, terms, terms.queue(), driver)
        skipped = Standing(State.SKIPPED)
        done = {i.step: skipped for i in plan.instances.values() if i.action == SKIP}
        caution = Caution(run, terms)
        reached = {
            instance.step: Candidate(instance, 1)
            for instance in within_reach(plan.instances.values(), done)
            if caution.may_submit(instance.step, done)
        }
        self._candidates, _ = with_servers(run, reached, done)
        self.later = sum(i.scheduler == "slurm" for i in plan.to_run()) - len(self._candidates)
        """How many Slurm steps are submitted later, when local steps or canaries are done."""
        self.sheets = self._hand_over.sheets(self._candidates, {})

    def arrays(self) -> list[dict[str, Any]]:
        """Return for each sbatch call its width, steps, time and what it asks for, as JSON."""
        return [self._array(number, sheet) for number, sheet in enumerate(self.sheets)]

    def scripts(self) -> Iterator[str]:
        """Yield the sbatch scripts."""
        return self._hand_over.texts(self._candidates)

    def hours(self) -> tuple[float, float]:
        """Return the core-hours and GPU-hours that are asked for, at most."""
        cores = gpus = 0.0
        for sheet in self.sheets:
            asked = self._resources(sheet)
            hours = len(sheet.units) * sheet.time_min / 60
            cores += hours * requests.tasks(asked) * (asked.get("cpus_per_task") or 1)
            gpus += hours * requests.gpus(asked)
        return cores, gpus

    def _resources(self, sheet: Sheet) -> dict[str, Any]:
        instance = self._candidates[sheet.first.step].instance
        return self.terms.resources(instance.resources)

    def _array(self, number: int, sheet: Sheet) -> dict[str, Any]:
        named = ("partition", "nodes", "tasks_per_node", "cpus_per_task", "gpus_per_node", "mem_gb")
        asked = self._resources(sheet)
        waits = sorted(set(waits_for(sheet)))
        return {
            "number": number + 1,
            "elements": len(sheet.units),
            "steps": [job.step for unit in sheet.units[0] for job in unit],
            "time_min": sheet.time_min,
            "at_once": sheet.at_once,
            "after": [n + 1 for n in waits],
            "resources": {name: asked[name] for name in named if asked.get(name) is not None},
        }
