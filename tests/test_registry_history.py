"""Any sequence of registry calls leaves what a plain list of versions for each tag would hold."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from nexa_hpc.core.publishing import create_artifact
from nexa_hpc.core.registry import Registry
from nexa_hpc.errors import RegistryError, UnknownNameError

TAGS = st.sampled_from(["production", "staging"])
NUMBERS = st.integers(1, 6)


class RegistryMachine(RuleBasedStateMachine):
    """The registry on disk beside a model of it: live versions, and a list for each tag."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        create_artifact(self.root / "model", lambda out: (out / "model.bin").write_text("weights"))
        self.registry = Registry(self.root / ".registry")
        self.registered = 0
        self.live: list[int] = []
        self.pointed: dict[str, list[int | None]] = {}
        self.moves: dict[str, int] = {}

    def teardown(self) -> None:
        shutil.rmtree(self.root)

    def present(self, tag: str) -> int | None:
        return self.pointed.get(tag, [None])[-1]

    def moved(self, tag: str) -> None:
        self.moves[tag] = self.moves.get(tag, 0) + 1

    @rule()
    def register(self) -> None:
        self.registered += 1
        self.live.append(self.registered)
        assert self.registry.register("m", self.root / "model").number == self.registered

    @rule(tag=TAGS, number=NUMBERS)
    def promote(self, tag: str, number: int) -> None:
        if number not in self.live:
            self.refused(UnknownNameError, lambda: self.registry.promote("m", number, tag))
            return
        assert self.registry.promote("m", number, tag).version == number
        if self.present(tag) != number:
            self.pointed.setdefault(tag, []).append(number)
            self.moved(tag)

    @rule(tag=TAGS)
    def rollback(self, tag: str) -> None:
        past = self.pointed.get(tag, [])
        usable = [
            place
            for place, number in enumerate(past)
            if number in self.live and number != past[-1] and place < len(past) - 1
        ]
        if not usable:
            kind = RegistryError if tag in self.pointed else UnknownNameError
            self.refused(kind, lambda: self.registry.rollback("m", tag))
            return
        del past[usable[-1] + 1 :]
        self.moved(tag)
        assert self.registry.rollback("m", tag).version == past[-1]

    @rule(tag=TAGS)
    def remove_tag(self, tag: str) -> None:
        if self.present(tag) is None:
            self.refused(UnknownNameError, lambda: self.registry.remove_tag("m", tag))
            return
        self.registry.remove_tag("m", tag)
        self.pointed[tag].append(None)
        self.moved(tag)

    @rule(number=NUMBERS)
    def delete(self, number: int) -> None:
        if number not in self.live:
            self.refused(UnknownNameError, lambda: self.registry.delete("m", number))
        elif number in [self.present(tag) for tag in self.pointed]:
            self.refused(RegistryError, lambda: self.registry.delete("m", number))
        else:
            self.registry.delete("m", number)
            self.live.remove(number)

    @invariant()
    def the_disk_holds_what_the_model_holds(self) -> None:
        if not self.registered:
            return
        assert [version.number for version in self.registry.versions("m")] == self.live
        present = {tag: past[-1] for tag, past in self.pointed.items() if past[-1] is not None}
        assert self.registry.tags("m") == present
        for tag, count in self.moves.items():
            history = self.registry.history("m", tag)
            assert [move.sequence for move in history] == [*range(1, count + 1)]
        for tag, number in present.items():
            assert self.registry.resolve(f"m@{tag}").number == number

    @staticmethod
    def refused(kind: type[Exception], call) -> None:
        try:
            call()
        except kind:
            return
        raise AssertionError(f"not refused with {kind.__name__}")


TestRegistry = RegistryMachine.TestCase
TestRegistry.settings = settings(
    max_examples=25,
    stateful_step_count=30,
    deadline=None,  # each step fsyncs
    suppress_health_check=[HealthCheck.too_slow],
)
