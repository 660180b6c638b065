"""nnU-Net's own integration data sets, made from hippocampus images, go through nnU-Net's own integration sequence.

As in ``nnunetv2/tests/integration_tests``: four configurations in all folds, the best of them or of their ensembles,
prediction and postprocessing; with smaller networks and shorter trainings.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from helpers import MICD, Shell, TinyDataset

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

EXAMPLE = Path(__file__).parents[2] / "examples" / "hippocampus"
CONFIGURATIONS = "2d 3d_lowres 3d_cascade_fullres 3d_fullres"


def lay_out(raw: Path, labeled: int, unlabeled: int, test: int) -> None:
    """Write ``Dataset004_Hippocampus``, from which nnU-Net's scripts make the others."""
    cases = [
        (EXAMPLE / f"images{part}" / path.name.replace(".nii", "_0000.nii"), path)
        for part in ("Tr", "Ts")
        for path in sorted((EXAMPLE / f"labels{part}").iterdir())
    ]
    for folder in ("imagesTr", "labelsTr", "imagesUn", "imagesTs"):
        (raw / folder).mkdir(parents=True)
    for image, label in cases[:labeled]:
        shutil.copy(image, raw / "imagesTr")
        shutil.copy(label, raw / "labelsTr")
    for image, _ in cases[labeled : labeled + test]:
        shutil.copy(image, raw / "imagesTs")
    for image in sorted((EXAMPLE / "imagesUn").iterdir())[:unlabeled]:
        shutil.copy(image, raw / "imagesUn")
    description = json.loads((EXAMPLE / "dataset.json").read_text())
    (raw / "dataset.json").write_text(json.dumps(description | {"numTraining": labeled}))


def shrink(plans_file: Path) -> None:
    """Narrow the networks, as they are to be trained on a CPU; ``3d_lowres`` has a network of its own."""
    plans = json.loads(plans_file.read_text())
    for name, patch_size in (("2d", (40, 32)), ("3d_fullres", (24, 32, 24)), ("3d_lowres", (20, 28, 20))):
        configuration = plans["configurations"][name]
        configuration |= {"patch_size": patch_size, "batch_size": 2}
        kwargs = configuration["architecture"]["arch_kwargs"]
        kwargs["features_per_stage"] = [4, 8, 8, 8, 8, 8][: kwargs["n_stages"]]
    plans_file.write_text(json.dumps(plans, indent=4))


@pytest.mark.parametrize(
    ("number", "name", "folds"),
    [(996, "regions_ignore", 5), (997, "regions", 2), (998, "ignore", 2), (999, "", 2)],
    ids=["regions and ignore", "regions", "ignore", "plain"],
)
def test_integration_sequence(
    number: int, name: str, folds: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full_name = f"Dataset{number}_IntegrationTest_Hippocampus" + (f"_{name}" if name else "")
    dataset = TinyDataset(tmp_path, number, full_name)
    dataset.set_environment(monkeypatch)
    shell = Shell(dataset)
    lay_out(tmp_path / "raw" / "Dataset004_Hippocampus", labeled=10, unlabeled=6, test=3)
    scripts = "nnunetv2.dataset_conversion.datasets_for_integration_tests"
    shell(f"python -m {scripts}.{full_name}")
    shell(f"nnUNetv2_plan_and_preprocess -d {number} --no_pp -npfp 1", nnUNet_n_proc_DA="1")
    shell(f"python -m nnunetv2.tests.integration_tests.add_lowres_and_cascade -d {number}")
    shrink(dataset.plans_file)
    shell(f"nnUNetv2_preprocess -d {number} -c 2d 3d_lowres 3d_fullres -np 1 1 1")
    shell(f"nnUNetv2_micd preprocess -d {number} -np 1")
    cases = sorted(path.name.removesuffix(".nii.gz") for path in (dataset.raw / "labelsTr").iterdir())
    splits = [
        {"train": [case for case in cases if case not in fold], "val": [str(case) for case in fold]}
        for fold in np.array_split(cases, folds)
    ]
    dataset.splits_file.write_text(json.dumps(splits))

    for configuration in CONFIGURATIONS.split():
        shell.train_folds(configuration, folds)
    chosen = " ".join(str(fold) for fold in range(folds))
    shell(f"nnUNetv2_find_best_configuration {number} -c {CONFIGURATIONS} -tr {MICD} -f {chosen} -np 1")
    information = json.loads((dataset.results / full_name / "inference_information.json").read_text())
    predict_best(shell, information["best_model_or_ensemble"])


def predict_best(shell: Shell, best: dict[str, Any]) -> None:
    dataset = shell.dataset
    images = dataset.raw / "imagesTs"
    folders = []
    for model in best["selected_model_or_models"]:
        options = "-f 0 1 --save_probabilities"
        if model["configuration"] == "3d_cascade_fullres":
            lowres = shell.predict("-c 3d_lowres -f 0 1", output="first_stage", images=images)
            options += f" -prev_stage_predictions {lowres}"
        output = f"of_{model['configuration']}"
        folders.append(shell.predict(f"-c {model['configuration']} {options}", output=output, images=images))
    predicted = folders[0]
    if len(folders) > 1:
        predicted = dataset.root / "ensemble"
        shell(f"nnUNetv2_ensemble -i {' '.join(map(str, folders))} -o {predicted} -np 1")
    final = dataset.root / "final"
    shell(
        f"nnUNetv2_apply_postprocessing -i {predicted} -o {final} -pp_pkl_file {best['postprocessing_file']} "
        f"-plans_json {best['some_plans_file']} -np 1"
    )
    for path in images.iterdir():
        segmentation = sitk.ReadImage(str(final / path.name.replace("_0000", "")))
        assert segmentation.GetSize() == sitk.ReadImage(str(path)).GetSize()
        assert set(np.unique(sitk.GetArrayViewFromImage(segmentation))) <= {0, 1, 2}
