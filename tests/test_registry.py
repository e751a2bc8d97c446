"""What the model registry promises, on real files."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from nexa_hpc.core.publishing import create_artifact
from nexa_hpc.core.registry import Registry
from nexa_hpc.core.registry_names import Reference
from nexa_hpc.errors import ArtifactError, NexaError, RegistryError, StateError, UnknownNameError


def make(folder: Path, text: str = "weights") -> Path:
    create_artifact(folder, lambda out: (out / "model.bin").write_text(text))
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "project" / "artifacts" / ".store"


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "project/artifacts/.registry", project=tmp_path / "project")


@pytest.fixture
def three(registry: Registry, store: Path) -> Registry:
    """A registry whose model `m` has versions 1, 2 and 3."""
    for number in (1, 2, 3):
        registry.register("m", make(store / f"k{number}", f"weights {number}"), {"n": number})
    return registry


# ------------------------------------------------------------------------------------- registering


def test_the_first_version_is_1_and_says_what_was_registered(
    registry: Registry, store: Path
) -> None:
    version = registry.register("m", make(store / "k"), {"accuracy": 0.9}, source={"step": "r"})
    assert (version.number, version.path) == (1, store / "k")
    assert version.meta == {"accuracy": 0.9}
    assert version.source == {"step": "r"}
    assert str(version) == "m version 1"
    assert registry.versions("m") == [version]
    assert registry.models() == ["m"]


def test_an_out_link_is_registered_as_the_store_folder_it_points_to(
    registry: Registry, store: Path, tmp_path: Path
) -> None:
    make(store / "old")
    out = tmp_path / "project/artifacts/model"
    out.symlink_to(os.path.relpath(store / "old", out.parent))
    registry.register("m", out)
    out.unlink()
    out.symlink_to(os.path.relpath(make(store / "new", "other"), out.parent))
    assert registry.resolve("m@1").path == store / "old"


def test_a_moved_project_keeps_its_versions(three: Registry, tmp_path: Path) -> None:
    (tmp_path / "project").rename(tmp_path / "moved")
    moved = Registry(tmp_path / "moved/artifacts/.registry")
    assert moved.resolve("m@3").path == tmp_path / "moved/artifacts/.store/k3"


def test_an_artifact_outside_the_project_is_remembered_by_its_absolute_path(
    registry: Registry, tmp_path: Path
) -> None:
    registry.register("m", make(tmp_path / "elsewhere"))
    (tmp_path / "deeper").mkdir()
    (tmp_path / "project").rename(tmp_path / "deeper/moved")
    found = Registry(tmp_path / "deeper/moved/artifacts/.registry").resolve("m@1")
    assert found.path == tmp_path / "elsewhere"


def test_what_lies_beside_the_registry_moves_with_it_when_no_project_is_named(
    tmp_path: Path,
) -> None:
    Registry(tmp_path / "a/.registry").register("m", make(tmp_path / "a/model"))
    (tmp_path / "a").rename(tmp_path / "b")
    assert Registry(str(tmp_path / "b/.registry")).resolve("m@1").path == tmp_path / "b/model"


def test_find_version_finds_the_newest_with_that_artifact_and_meta(
    registry: Registry, store: Path
) -> None:
    for meta in ({"n": 1}, {"n": 1.5}, {"n": 1.5}):
        digest = registry.register("m", make(store / "k"), meta).artifact_hash
    for meta, number in ((None, 3), ({"n": 1}, 1), ({"n": 1.5}, 3)):
        found = registry.find_version("m", digest, meta)
        assert found is not None
        assert found.number == number
    assert registry.find_version("m", digest, {"n": True}) is None
    assert registry.find_version("m", "0" * 64) is None
    assert registry.find_version("unknown", digest) is None


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda k: (k / "COMPLETE").unlink(), "no complete artifact"),
        (lambda k: (k / "model.bin").unlink(), "model.bin is gone"),
        (lambda k: (k / "model.bin").write_text("short"), "has 5 bytes"),
        (shutil.rmtree, "no result yet"),
    ],
)
def test_what_is_not_a_complete_artifact_cannot_be_registered(
    registry: Registry, store: Path, spoil, words: str
) -> None:
    spoil(make(store / "k"))
    with pytest.raises(ArtifactError, match=words) as caught:
        registry.register("m", store / "k")
    assert caught.value.exit_code == 3
    assert registry.models() == []


def test_a_part_of_an_artifact_cannot_be_registered(registry: Registry, store: Path) -> None:
    make(store / "k")
    with pytest.raises(ArtifactError, match="is a part of the artifact"):
        registry.register("m", store / "k" / "model.bin")


@pytest.mark.parametrize("name", ["", ".hidden", "..", "a/b", "a b", "ä", "x" * 65, "m@1", 3, None])
def test_a_bad_model_name_is_refused_before_anything_is_written(
    registry: Registry, store: Path, name: str
) -> None:
    with pytest.raises(RegistryError, match="is not a name"):
        registry.register(name, make(store / "k"))
    assert not registry.folder.exists()


@pytest.mark.parametrize(
    "meta", [[1], {"x": float("nan")}, {"x": object()}, {"x": "\ud800"}, "text"]
)
def test_meta_that_is_no_json_object_is_refused(registry: Registry, store: Path, meta) -> None:
    with pytest.raises(RegistryError, match=r"JSON"):
        registry.register("m", make(store / "k"), meta)
    assert registry.models() == []


def test_files_that_are_no_entries_are_passed_over(three: Registry) -> None:
    folder = three.folder / "m" / "versions"
    (folder / "4.json.tmp.host.1.abcd").write_text("{")
    (folder / "notes.json").write_text("{")
    (three.folder / ".trash").mkdir()
    assert [v.number for v in three.versions("m")] == [1, 2, 3]
    assert three.models() == ["m"]


@pytest.mark.parametrize("content", ["[]", "{}", '{"format": 2}', '{"format": 1}', "{"])
def test_an_entry_that_cannot_be_understood_is_named(three: Registry, content: str) -> None:
    (three.folder / "m/versions/4.json").write_text(content)
    with pytest.raises(StateError, match=r"versions/4\.json"):
        three.resolve("m@latest")
    three.promote("m", 1, "t")
    (three.folder / "m/tags/t/2.json").write_text(content)
    with pytest.raises(StateError, match=r"tags/t/2\.json"):
        three.resolve("m@t")


# --------------------------------------------------------------------------------------- resolving


@pytest.mark.parametrize(
    ("reference", "number"),
    [("m@1", 1), ("models:m@2", 2), ("m@latest", 3), ("models:m@prod", 2), ("m@prod", 2)],
)
def test_a_reference_names_a_number_latest_or_a_tag(
    three: Registry, reference: str, number: int
) -> None:
    three.promote("m", 2, "prod")
    assert three.resolve(reference).number == number


@pytest.mark.parametrize(
    ("reference", "message", "hint"),
    [
        ("n@1", "no model 'n'", "models list"),
        ("movy@1", "did you mean 'movie'?", "models list"),
        ("m@9", "model 'm' has no version 9", "models show m"),
        ("m@prud", "has no tag 'prud'; did you mean 'prod'?", "models show m"),
        ("movie@prod", "model 'movie' has no tag 'prod'", "models promote movie latest prod"),
        ("m@2", "version 2 of model 'm' was deleted", "models show m"),
    ],
)
def test_an_unknown_name_brings_the_nearest_one_and_the_next_command(
    three: Registry, store: Path, reference: str, message: str, hint: str
) -> None:
    three.register("movie", make(store / "k1"))
    three.promote("m", 1, "prod")
    three.delete("m", 2)
    with pytest.raises(UnknownNameError) as caught:
        three.resolve(reference)
    assert message in str(caught.value)
    assert hint in (caught.value.hint or "")


def test_an_empty_registry_says_how_to_register(registry: Registry) -> None:
    with pytest.raises(UnknownNameError) as caught:
        registry.resolve("m@latest")
    assert "models register m" in (caught.value.hint or "")


@pytest.mark.parametrize(
    "text", ["m", "m@", "@1", "", "models:", "m@a@b", "m@../x", "m@0", "m@registered"]
)
def test_text_that_is_no_reference_is_refused(registry: Registry, text: str) -> None:
    with pytest.raises(RegistryError):
        registry.resolve(text)


def test_a_reference_spells_itself() -> None:
    assert str(Reference.parse("models:m@prod")) == "m@prod"
    assert Reference.parse("m@prod").tag == "prod"
    assert Reference.parse("m@3").tag is None


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (shutil.rmtree, "no result yet"),
        (lambda k: (k / "model.bin").unlink(), "model.bin is gone"),
        (lambda k: (k / "COMPLETE").unlink(), "COMPLETE is gone"),
        (lambda k: (shutil.rmtree(k), make(k, "different")), "another artifact"),
    ],
)
def test_a_version_whose_files_are_gone_is_listed_but_not_resolved(
    three: Registry, store: Path, spoil, reason: str
) -> None:
    spoil(store / "k2")
    with pytest.raises(ArtifactError, match=reason) as caught:
        three.resolve("m@2")
    assert caught.value.exit_code == 3
    assert [v.number for v in three.versions("m")] == [1, 2, 3]
    assert three.look(three.version("m", 2)).artifact is None
    assert three.find("m@2").number == 2


# -------------------------------------------------------------------------------------------- tags


def test_promoting_moves_the_tag_and_keeps_its_history(three: Registry) -> None:
    assert str(three.promote("m", 1, "prod")) == "prod → version 1"
    assert str(three.promote("m", "latest", "prod")) == "prod → version 3 (was version 1)"
    assert [move.version for move in three.history("m", "prod")] == [1, 3]
    assert three.tags("m") == {"prod": 3}


def test_promoting_what_the_tag_points_to_writes_nothing(three: Registry) -> None:
    first = three.promote("m", 1, "prod")
    assert three.promote("m", "1", "prod") == first
    assert len(three.history("m", "prod")) == 1


@pytest.mark.parametrize("tag", ["3", "0", "latest", "registered", "", ".x", "a/b", "../x"])
def test_a_tag_that_reads_as_a_version_or_a_path_is_refused(three: Registry, tag: str) -> None:
    with pytest.raises(RegistryError):
        three.promote("m", 1, tag)
    assert three.tags("m") == {}


@pytest.mark.parametrize("version", [0, -1, True, 1.0, "one", "", None, "1" * 10])
def test_what_is_no_version_is_refused(three: Registry, version) -> None:
    with pytest.raises(RegistryError, match="is not a version"):
        three.promote("m", version, "prod")


def test_changed_bytes_of_the_same_size_stop_a_promotion(three: Registry, store: Path) -> None:
    three.promote("m", 1, "prod")
    (store / "k2/model.bin").write_text("weights X")
    with pytest.raises(ArtifactError, match=r"version 2 is damaged: model\.bin"):
        three.promote("m", 2, "prod")
    assert three.tags("m") == {"prod": 1}


def test_many_damaged_files_are_summed_up(registry: Registry, store: Path) -> None:
    names = [f"{n}.bin" for n in range(5)]
    create_artifact(store / "k", lambda out: [(out / name).write_text("a") for name in names])
    registry.register("m", store / "k")
    for name in names:
        (store / "k" / name).write_text("b")
    with pytest.raises(ArtifactError, match="and 2 more"):
        registry.promote("m", 1, "prod")


def test_an_incomplete_artifact_stops_a_promotion(three: Registry, store: Path) -> None:
    (store / "k2/COMPLETE").unlink()
    with pytest.raises(ArtifactError):
        three.promote("m", 2, "prod")
    assert three.tags("m") == {}


def test_each_rollback_goes_back_one_more(three: Registry) -> None:
    for number in (1, 2, 3):
        three.promote("m", number, "prod")
    assert str(three.rollback("m", "prod")) == "prod → version 2 (was version 3)"
    assert three.rollback("m", "prod").version == 1
    with pytest.raises(RegistryError, match="no earlier version"):
        three.rollback("m", "prod")
    assert [move.version for move in three.history("m", "prod")] == [1, 2, 3, 2, 1]


def test_a_rollback_passes_over_deleted_versions(three: Registry) -> None:
    for number in (1, 2, 3):
        three.promote("m", number, "prod")
    three.delete("m", 2)
    assert three.rollback("m", "prod").version == 1
    with pytest.raises(RegistryError, match="no earlier version"):
        three.rollback("m", "prod")


def test_a_rollback_checks_what_it_goes_back_to(three: Registry, store: Path) -> None:
    three.promote("m", 1, "prod")
    three.promote("m", 2, "prod")
    (store / "k1/model.bin").unlink()
    with pytest.raises(ArtifactError):
        three.rollback("m", "prod")
    assert three.tags("m") == {"prod": 2}


def test_a_removed_tag_is_unknown_until_a_rollback_brings_it_back(three: Registry) -> None:
    three.promote("m", 2, "prod")
    assert str(three.remove_tag("m", "prod")) == "prod removed (was version 2)"
    for look in (lambda: three.resolve("m@prod"), lambda: three.remove_tag("m", "prod")):
        with pytest.raises(UnknownNameError):
            look()
    assert three.rollback("m", "prod").version == 2


def test_the_history_of_an_unknown_tag_names_the_nearest(three: Registry) -> None:
    three.promote("m", 1, "production")
    with pytest.raises(UnknownNameError, match="did you mean 'production'"):
        three.history("m", "prodution")


# ---------------------------------------------------------------------------------------- deleting


def test_a_deleted_version_is_gone_and_its_number_is_not_used_again(
    three: Registry, store: Path
) -> None:
    three.delete("m", 3)
    assert [v.number for v in three.versions("m")] == [1, 2]
    assert three.version("m", "latest").number == 2
    assert three.register("m", store / "k3").number == 4
    assert (store / "k3/model.bin").exists()


def test_a_tagged_version_is_not_deleted_and_the_tags_are_named(three: Registry) -> None:
    three.promote("m", 2, "prod")
    three.promote("m", 2, "staging")
    with pytest.raises(RegistryError, match="m version 2 is prod and staging"):
        three.delete("m", 2)
    three.promote("m", 1, "prod")
    three.remove_tag("m", "staging")
    three.delete("m", 2)
    assert [v.number for v in three.versions("m")] == [1, 3]


def test_a_model_without_versions_left_is_not_listed(registry: Registry, store: Path) -> None:
    registry.register("m", make(store / "k"))
    registry.delete("m", 1)
    assert registry.models() == []
    assert registry.versions("m") == []
    with pytest.raises(UnknownNameError, match="all versions of model 'm' are deleted"):
        registry.resolve("m@latest")


def test_the_gc_is_told_the_folders_of_all_versions_that_are_left(
    three: Registry, store: Path
) -> None:
    three.register("other", make(store / "k1"))
    three.delete("m", 2)
    assert three.roots() == {store / "k1", store / "k3"}


def test_the_registry_is_read_without_permission_to_write(three: Registry) -> None:
    three.promote("m", 1, "prod")
    before = sorted(three.folder.rglob("*"))
    three.resolve("m@prod")
    three.roots()
    three.history("m", "prod")
    assert sorted(three.folder.rglob("*")) == before


def test_files_of_the_registry_are_private_and_readable_json(three: Registry) -> None:
    three.promote("m", 1, "prod")
    for file in (three.folder / "m/versions/1.json", three.folder / "m/tags/prod/1.json"):
        assert file.stat().st_mode & 0o077 == 0
        assert json.loads(file.read_text())["format"] == 1


def test_a_user_without_a_name_is_recorded_by_number(
    registry: Registry, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000)
    assert registry.register("m", make(store / "k")).registered_by == "4000000"


# ------------------------------------------------- two at the same moment, in every possible order


class Meddled(Registry):
    """A registry in which somebody else does `meddle` just after the first call of `method`."""

    def __init__(self, registry: Registry, method: str, meddle) -> None:
        super().__init__(registry.folder)
        original = getattr(self, method)

        def meddled(*arguments):
            delattr(self, method)
            answer = original(*arguments)
            meddle()
            return answer

        setattr(self, method, meddled)


def test_a_version_deleted_while_it_is_promoted_is_not_left_tagged(three: Registry) -> None:
    three.promote("m", 1, "prod")
    meddled = Meddled(three, "verify", lambda: three.delete("m", 2))
    with pytest.raises(RegistryError, match="was deleted at this moment"):
        meddled.promote("m", 2, "prod")
    assert three.tags("m") == {"prod": 1}


def test_a_removed_tag_stays_removed_when_a_promotion_is_taken_back(three: Registry) -> None:
    three.promote("m", 1, "prod")
    three.remove_tag("m", "prod")
    with pytest.raises(RegistryError, match="was deleted at this moment"):
        Meddled(three, "verify", lambda: three.delete("m", 2)).promote("m", 2, "prod")
    assert three.tags("m") == {}


def test_a_new_tag_is_not_left_behind_by_a_promotion_taken_back(three: Registry) -> None:
    with pytest.raises(RegistryError, match="was deleted at this moment"):
        Meddled(three, "verify", lambda: three.delete("m", 2)).promote("m", 2, "prod")
    assert three.tags("m") == {}


def test_a_version_promoted_while_it_is_deleted_stays(three: Registry) -> None:
    with pytest.raises(RegistryError, match="is prod"):
        Meddled(three, "tags", lambda: three.promote("m", 2, "prod")).delete("m", 2)
    assert three.resolve("m@prod").number == 2


def test_two_deletions_of_one_version_both_succeed(three: Registry) -> None:
    Meddled(three, "tags", lambda: three.delete("m", 2)).delete("m", 2)
    assert [v.number for v in three.versions("m")] == [1, 3]


def test_a_promotion_between_comes_first_and_both_are_recorded(three: Registry) -> None:
    three.promote("m", 1, "prod")
    moved = Meddled(three, "current", lambda: three.promote("m", 2, "prod")).promote("m", 3, "prod")
    assert str(moved) == "prod → version 3 (was version 2)"
    assert [move.version for move in three.history("m", "prod")] == [1, 2, 3]


@pytest.mark.parametrize("verb", ["rollback", "remove_tag"])
def test_a_rollback_or_removal_is_refused_when_the_tag_moves_meanwhile(
    three: Registry, verb: str
) -> None:
    three.promote("m", 1, "prod")
    three.promote("m", 2, "prod")
    meddled = Meddled(three, "history", lambda: three.promote("m", 3, "prod"))
    with pytest.raises(RegistryError, match="moved by somebody else"):
        getattr(meddled, verb)("m", "prod")
    assert three.tags("m") == {"prod": 3}


def test_every_error_is_ours(three: Registry) -> None:
    for wrong in ("../../etc", "m@\0", "m@1\n", " m@1", "m@１"):  # noqa: RUF001 (a digit not ours)
        with pytest.raises(NexaError):
            three.resolve(wrong)
