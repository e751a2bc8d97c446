"""Reading datasets: files of three kinds, folders of splits, columns told or found, labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("datasets", reason="needs the extra [hf]")
pytest.importorskip("torch", reason="needs the extra [hf]")

from hf_tiny import sentences, write_jsonl

from nexa_hpc.errors import StepError


def load(path: Path, scratch: Path) -> dict[str, Any]:
    from nexa_hpc.backends.hf import rows
    from nexa_hpc.backends.hf.sources import Source

    return rows.load_splits(Source(path, None, None, "the data"), None, scratch)


def dataset(columns: dict[str, Any], features: Any = None) -> Any:
    import datasets

    return datasets.Dataset.from_dict(columns, features=features)


def sentiment(names: list[str], values: list[int]) -> Any:
    """Return a dataset as hubs have them: labels as numbers, with their names beside."""
    import datasets

    features = {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)}
    columns = {"text": ["…"] * len(values), "label": values}
    return dataset(columns, datasets.Features(features))


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv", "parquet"])
def test_files_of_every_kind_give_the_same_rows(tmp_path: Path, kind: str) -> None:
    expected = sentences(6, 1)
    file = tmp_path / f"train.{kind}"
    if kind == "jsonl":
        write_jsonl(file, expected)
    elif kind == "parquet":
        dataset(
            {"text": [r["text"] for r in expected], "label": [r["label"] for r in expected]}
        ).to_parquet(file)
    else:
        between = {"csv": ",", "tsv": "\t"}[kind]
        lines = [f"{row['text']}{between}{row['label']}" for row in expected]
        file.write_text("\n".join([f"text{between}label", *lines]) + "\n")
    assert list(load(file, tmp_path)["whole"]) == expected
    assert list(load(tmp_path, tmp_path)["train"]) == expected


def test_a_folder_is_read_by_the_names_of_its_files(tmp_path: Path) -> None:
    for name in ("train-00000-of-00002", "train-00001-of-00002", "val", "test"):
        write_jsonl(tmp_path / f"{name}.jsonl", sentences(4, 1))
    write_jsonl(tmp_path / "trainers.jsonl", [{"other": 1}])
    (tmp_path / "metrics.json").write_text("{}")
    splits = load(tmp_path, tmp_path)
    assert {name: len(split) for name, split in splits.items()} == {
        "train": 8, "validation": 4, "test": 4,
    }  # fmt: skip


def test_a_folder_that_datasets_saved_is_read_as_it_is(tmp_path: Path) -> None:
    import datasets

    part = dataset({"text": ["a", "b"], "label": [0, 1]})
    datasets.DatasetDict({"train": part, "test": part}).save_to_disk(tmp_path / "saved")
    assert {*load(tmp_path / "saved", tmp_path)} == {"train", "test"}


def test_a_folder_without_splits_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(StepError, match="no file named train, validation or test"):
        load(tmp_path, tmp_path / "scratch")


def test_files_of_two_kinds_are_refused(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", sentences(2, 1))
    (tmp_path / "test.csv").write_text("text,label\na,b\n")
    with pytest.raises(StepError, match=r"files ending in \.csv, \.jsonl"):
        load(tmp_path, tmp_path / "scratch")


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"text": "good"\n{"text": \n')
    with pytest.raises(StepError, match="cannot read the dataset the data"):
        load(tmp_path, tmp_path / "scratch")


def test_a_split_that_is_not_there_is_refused_with_the_nearest(tmp_path: Path) -> None:
    from nexa_hpc.backends.hf.rows import split_named

    with pytest.raises(StepError, match="did you mean 'validation'"):
        split_named({"train": 1, "validation": 2}, "validaton", "the data")


@pytest.mark.parametrize(
    ("columns", "texts", "label"),
    [
        ({"text": ["a"], "label": [1], "other": ["b"]}, ("text",), "label"),
        ({"sentence": ["a"], "label": [1], "idx": [0]}, ("sentence",), "label"),
        ({"question": ["a"], "answer": ["b"], "labels": [1]}, ("question", "answer"), "labels"),
        ({"text": ["a"]}, ("text",), None),
    ],
)
def test_columns_are_found(
    columns: dict[str, Any], texts: tuple[str, ...], label: str | None
) -> None:
    from nexa_hpc.backends.hf.rows import find_columns

    found = find_columns(dataset(columns), None, None, "the data")
    assert (found.texts, found.label) == (texts, label)


def test_columns_that_cannot_be_told_must_be_said(tmp_path: Path) -> None:
    from nexa_hpc.backends.hf.rows import find_columns

    three = dataset({"a": ["x"], "b": ["y"], "c": ["z"]})
    with pytest.raises(StepError, match="which column"):
        find_columns(three, None, None, "the data")
    assert find_columns(three, ["a", "c"], "b", "the data").texts == ("a", "c")
    with pytest.raises(StepError, match="did you mean 'body'"):
        find_columns(dataset({"body": ["x"]}), "bodi", None, "the data")


def test_the_same_rows_are_drawn_every_time_and_from_everywhere() -> None:
    from nexa_hpc.backends.hf.rows import first_rows

    numbers = dataset({"n": list(range(1000))})
    drawn = first_rows(numbers, 50)["n"]
    assert list(drawn) == list(first_rows(numbers, 50)["n"])
    assert max(drawn) > 500 > min(drawn)
    assert len(first_rows(numbers, 5000)) == 1000


def test_labels_may_be_words_numbers_or_a_hubs_own() -> None:
    from nexa_hpc.backends.hf.rows import label_names, label_numbers

    words = dataset({"label": ["no", "yes", "no"]})
    assert label_names(words, "label", "the data") == ["no", "yes"]
    assert label_numbers(words, "label", ["no", "yes"], "the data") == [0, 1, 0]
    stars = dataset({"label": [5, 1, 10]})
    assert label_names(stars, "label", "the data") == ["1", "5", "10"]
    assert label_numbers(stars, "label", ["1", "5", "10"], "the data") == [1, 0, 2]
    hub = sentiment(["negative", "positive"], [1, 0])
    assert label_names(hub, "label", "the data") == ["negative", "positive"]
    assert label_numbers(hub, "label", ["Positive", "Negative"], "the data") == [0, 1]


def test_a_model_with_nameless_labels_takes_the_datasets_numbers() -> None:
    from nexa_hpc.backends.hf.rows import label_numbers

    hub = sentiment(["negative", "positive"], [1, 0])
    assert label_numbers(hub, "label", ["LABEL_0", "LABEL_1"], "the data") == [1, 0]


@pytest.mark.parametrize("values", [[0.5, 0.25], ["same", "same"]])
def test_a_column_that_holds_no_classes_is_refused(values: list[Any]) -> None:
    from nexa_hpc.backends.hf.rows import label_names

    with pytest.raises(StepError):
        label_names(dataset({"label": values}), "label", "the data")
