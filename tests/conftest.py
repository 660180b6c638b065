"""Fixtures: the tiny dataset, which nnU-Net itself plans and preprocesses once per session; every test gets a copy."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import TinyDataset, preprocess_labeled, shrink_plans, write_raw


@pytest.fixture(scope="session")
def dataset_template(tmp_path_factory: pytest.TempPathFactory) -> TinyDataset:
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
    from nnunetv2.experiment_planning.plan_and_preprocess_api import plan_experiments

    from nnunetv2_micd.data.preprocessing import preprocess_unlabeled

    dataset = TinyDataset(tmp_path_factory.mktemp("nnunet"))
    write_raw(dataset)
    with pytest.MonkeyPatch.context() as monkeypatch:
        dataset.set_environment(monkeypatch)
        monkeypatch.setenv("nnUNet_n_proc_DA", "1")  # with 0 nnU-Net cannot plan
        extractor = DatasetFingerprintExtractor(dataset.id, num_processes=1)
        extractor.num_foreground_voxels_for_intensitystats = 10_000  # the default of 10e7 takes a second per case
        extractor.run()
        plan_experiments([dataset.id])
        shrink_plans(dataset.plans_file)
        preprocess_labeled(dataset)
        assert preprocess_unlabeled(dataset.id, num_processes=1) == []
    splits = [
        {"train": ["case_0", "case_1", "case_2"], "val": ["case_3", "case_4"]},
        {"train": ["case_0"], "val": ["case_3", "case_4"], "unlabeled": ["case_1", "case_2", "case_5"]},
    ]
    dataset.splits_file.write_text(json.dumps(splits, indent=4))
    return dataset


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
