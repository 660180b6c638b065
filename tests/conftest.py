"""Fixtures: the tiny dataset, which nnU-Net itself plans and preprocesses once per session; every test gets a copy."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import TinyDataset, make_dataset


@pytest.fixture(scope="session")
def dataset_template(tmp_path_factory: pytest.TempPathFactory) -> TinyDataset:
    return make_dataset(tmp_path_factory.mktemp("nnunet"))


@pytest.fixture
def dataset(dataset_template: TinyDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TinyDataset]:
    """Return a copy of the dataset that the test may change; nnU-Net's environment variables point to it."""
    shutil.copytree(dataset_template.root, tmp_path / "nnunet")
    copy = TinyDataset(tmp_path / "nnunet")
    copy.set_environment(monkeypatch)
    return copy


@pytest.fixture
def plans(dataset: TinyDataset) -> SimpleNamespace:
    """Return what a trainer knows of ``dataset``: ``plans_manager``, ``configuration_manager``, ``dataset_json``."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    manager = PlansManager(str(dataset.plans_file))
    return SimpleNamespace(
        plans_manager=manager,
        configuration_manager=manager.get_configuration("3d_fullres"),
        dataset_json=json.loads((dataset.preprocessed / "dataset.json").read_text()),
    )
