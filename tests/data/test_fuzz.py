"""Whatever a user's file holds, its reader returns something sound or ends with a sentence."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import TinyDataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nnunetv2_micd.benchmark.records import RECORD, read_record
from nnunetv2_micd.data.dataset import Dataset
from nnunetv2_micd.data.groups import GROUPS_FILE, load_groups
from nnunetv2_micd.data.preprocessed import FINGERPRINT_FILE, read_fingerprint
from nnunetv2_micd.data.raw_images import find_unused, group_images
from nnunetv2_micd.data.sources import SOURCES_FILE, find_gone, find_replaced, read_sources
from nnunetv2_micd.data.splits import load_split_unlabeled, load_splits

SETTINGS = settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
WORDS = st.sampled_from(["train", "val", "unlabeled", "unlabelled", "case_0", "case_1", "fingerprint", "labels", "run"])
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | WORDS
TREES = st.recursive(
    LEAVES, lambda part: st.lists(part, max_size=4) | st.dictionaries(WORDS | st.text(max_size=5), part, max_size=4)
)
CASES = st.lists(LEAVES, max_size=3)
SPLITS = st.lists(st.fixed_dictionaries({"train": CASES, "val": CASES}, optional={"unlabeled": CASES}), max_size=3)
CONTENTS = st.binary(max_size=60) | (TREES | SPLITS).map(lambda tree: json.dumps(tree).encode())


def returned(reader: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a reader returns, or None if it ends with a sentence of one line."""
    try:
        return reader(*arguments)
    except (ValueError, OSError) as error:
        message = str(error)
        assert message
        assert "\n" not in message
        assert "Traceback" not in message


@given(content=CONTENTS)
@SETTINGS
def test_splits(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "splits_final.json"
    path.write_bytes(content)
    for entry in returned(load_splits, path) or []:
        for key in ("train", "val"):
            assert all(isinstance(case, str) for case in entry[key])
            assert len(set(entry[key])) == len(entry[key])
    returned(load_split_unlabeled, path, 0)


@given(content=CONTENTS)
@SETTINGS
def test_groups(content: bytes, dataset: TinyDataset) -> None:
    (dataset.raw / GROUPS_FILE).write_bytes(content)
    groups = returned(load_groups, dataset.name)
    assert groups is None or all(isinstance(word, str) for pair in groups.items() for word in pair)


@given(content=CONTENTS)
@SETTINGS
def test_records_of_preprocessed_images(content: bytes, tmp_path: Path) -> None:
    for name in (FINGERPRINT_FILE, SOURCES_FILE):
        (tmp_path / name).write_bytes(content)
    fingerprint, sources = read_fingerprint(tmp_path), read_sources(tmp_path)
    assert fingerprint is None or isinstance(fingerprint, str)
    assert find_gone(sources, sources) is not None
    assert find_replaced(sources, list(sources)) is not None


@given(content=CONTENTS)
@SETTINGS
def test_record_of_a_run(content: bytes, tmp_path: Path) -> None:
    (tmp_path / RECORD).write_bytes(content)
    returned(read_record, tmp_path)


@pytest.mark.parametrize("file", ["dataset.json", "nnUNetPlans.json"])
@given(data=st.data())
@SETTINGS
def test_plans_and_description(file: str, data: st.DataObject, dataset: TinyDataset) -> None:
    """Any value in place of a part of a sound file."""
    path = dataset.preprocessed / file
    sound = path.read_text()
    content = json.loads(sound)
    part = content
    while True:
        key = data.draw(st.sampled_from(sorted(part)))
        if not isinstance(part[key], dict) or not part[key] or data.draw(st.booleans()):
            break
        part = part[key]
    part[key] = data.draw(TREES)
    path.write_text(json.dumps(content))
    try:
        returned(Dataset.find, dataset.id)
    finally:
        path.write_text(sound)


@given(
    names=st.lists(st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), max_size=20), max_size=9)
)
@SETTINGS
def test_every_image_is_used_or_named(names: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("images")
    files = {f"{name}{end}" for name in names for end in ("_0000.png", ".png", "_1.png", "_0001.PNG", "_0000.jpg")}
    for name in sorted(files):
        try:
            (folder / name).touch()
        except OSError:  # longer than the file system allows
            continue
    used = {os.path.basename(file) for case in group_images(folder, ".png").values() for file in case}
    unused = {os.path.basename(file) for file in find_unused([str(folder)], ".png")}
    visible = {name for name in os.listdir(folder) if not name.startswith(".")}
    assert used | unused == visible
    assert not used & unused
