"""The server that an element starts: held while steps in the element read it, and stayed for.

Called by `main`. Standard library alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from nexa_hpc.core.drivers import Driver, Heartbeat
from nexa_hpc.core.endpoints import server_name
from nexa_hpc.core.holding import HeldServers
from nexa_hpc.core.instances import Instance
from nexa_hpc.core.runs import Run
from nexa_hpc.core.servers import Condition, Servers
from nexa_hpc.element.child import TERMINATION, Signals

_LOOK_EVERY_S = 1.0


@contextmanager
def held(run: Run, instance: Instance) -> Iterator[None]:
    """Hold the server of `instance` while the context is open.

    First ends what an earlier incarnation of the job has left of it; on another machine this takes
    as long as a driver may be silent.
    """
    driver = Driver.this_process(Servers(run.paths.servers).beats, run.paths.state)
    holding = HeldServers(run, driver)
    with Heartbeat(driver, run.paths.state, run.place.cancelled, lambda: None):
        try:
            holding.hold(instance, is_kept_ours=True)
            yield
        finally:
            holding.close()
            holding.stop(instance)


def stay(run: Run, instance: Instance, signals: Signals) -> int:
    """Return when the server of `instance`, which nobody need hold, has ended; with an exit code.

    Its job may run to its time limit; SIGTERM ends it with the element.
    """
    servers = Servers(run.paths.servers)
    while (handle := servers.find(server_name(instance))) is not None:
        condition, message = servers.condition(handle)
        if not condition.lives:
            print(f"server '{handle.name}' has ended: {message}", flush=True)
            return 0 if condition is Condition.STOPPED else 1
        if TERMINATION in signals.got:
            servers.stop(handle)
            return 0
        time.sleep(_LOOK_EVERY_S)
    return 0
