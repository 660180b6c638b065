"""nnU-Net's own commands in every mode: a training is killed, continued, validated and predicts."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from helpers import BOTH, IGNORE, MICD, PATCH_SIZE, REGIONS, Shell, TinyDataset, relabel, write_image

pytestmark = pytest.mark.slow


@pytest.fixture
def shell(dataset: TinyDataset) -> Shell:
    return Shell(dataset)


def results(dataset: TinyDataset, configuration: str, trainer: str = MICD, plans: str = "nnUNetPlans") -> Path:
    return dataset.results / dataset.name / f"{trainer}__{plans}__{configuration}"


def go_through(
    shell: Shell, configuration: str, fold: str = "0", plans: str = "nnUNetPlans", trainer: str = MICD, more: str = ""
) -> None:
    """Train until killed, continue, validate, predict."""
    dataset = shell.dataset
    chosen = f"{configuration} {fold} -p {plans}"
    shell.train(chosen, trainer, code=-9, KILL_IN="step")
    output = shell.train(f"{chosen} --c --npz", trainer)
    assert "Epoch 1" in output
    assert "Epoch 0" not in output
    folder = results(dataset, configuration, trainer, plans) / f"fold_{fold}"
    validation = folder / "validation"
    cases = sorted(path.name for path in validation.glob("*.nii.gz"))
    assert cases
    assert len(list(validation.glob("*.npz"))) == len(cases)
    (validation / "summary.json").unlink()
    shell.train(f"{chosen} --val", trainer)
    assert (validation / "summary.json").exists()
    assert not list(folder.glob("*.tmp"))

    predicted = shell.predict(f"-c {configuration} -f {fold} -p {plans} {more}", trainer)
    description = json.loads((dataset.raw / "dataset.json").read_text())
    for name in dataset.unlabeled:
        segmentation = sitk.ReadImage(str(predicted / f"{name}.nii.gz"))
        image = sitk.ReadImage(str(dataset.images / f"{name}_0000{description['file_ending']}"))
        assert segmentation.GetSize() == image.GetSize()
        assert set(np.unique(sitk.GetArrayViewFromImage(segmentation))) <= {0, 1, 2}


def change_plans(dataset: TinyDataset, change: Callable[[dict[str, Any]], Any], plans: str = "nnUNetPlans") -> None:
    path = dataset.preprocessed / f"{plans}.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content, indent=4))


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_default_plans(configuration: str, shell: Shell) -> None:
    go_through(shell, configuration)


@pytest.mark.parametrize("trainer", ["nnUNetTrainerMeanTeacher_short", "nnUNetTrainerMICD_shortNoDeepSupervision"])
def test_other_trainers(trainer: str, shell: Shell) -> None:
    go_through(shell, "3d_fullres", trainer=trainer)


def shrink_residual(plans: dict[str, Any]) -> None:
    configurations = plans["configurations"]
    for name, patch_size in (("3d_fullres", PATCH_SIZE), ("2d", PATCH_SIZE[1:])):
        dimensions = len(patch_size)
        configurations[name].update(patch_size=patch_size, batch_size=2)
        kwargs = configurations[name]["architecture"]["arch_kwargs"]
        assert "n_blocks_per_stage" in kwargs
        kwargs.update(
            n_stages=3,
            features_per_stage=[4, 8, 8],
            n_blocks_per_stage=[1, 3, 4],
            n_conv_per_stage_decoder=[1, 1],
            kernel_sizes=[[3] * dimensions] * 3,
            strides=[[1] * dimensions, [2] * dimensions, [2] * dimensions],
        )


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_residual_encoder_plans(configuration: str, shell: Shell) -> None:
    plans = "nnUNetResEncUNetMPlans"
    shell(f"nnUNetv2_plan_experiment -d {shell.dataset.id} -pl nnUNetPlannerResEncM", nnUNet_n_proc_DA="1")
    change_plans(shell.dataset, shrink_residual, plans)
    shell(f"nnUNetv2_preprocess -d {shell.dataset.id} -plans_name {plans} -c {configuration} -np 1")
    shell(f"nnUNetv2_micd preprocess -d {shell.dataset.id} -p {plans} -c {configuration} -np 1")
    go_through(shell, configuration, plans=plans)
    checkpoint = results(shell.dataset, configuration, plans=plans) / "fold_0" / "checkpoint_final.pth"
    state = torch.load(checkpoint, weights_only=False)["nnunetv2_micd"]
    students = state["students"]
    assert any("stages.2.blocks.3" in name for name in students["a"])
    assert not any("blocks" in name for name in students["b"])


def test_cascade(shell: Shell) -> None:
    dataset = shell.dataset

    def add_stages(plans: dict[str, Any]) -> None:
        configurations = plans["configurations"]
        configurations["3d_lowres"] = {
            **configurations["3d_fullres"],
            "spacing": [1.5, 1.5, 1.5],
            "data_identifier": "nnUNetPlans_3d_lowres",
            "next_stage": "3d_cascade_fullres",
        }
        configurations["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}

    change_plans(dataset, add_stages)
    shell(f"nnUNetv2_preprocess -d {dataset.id} -c 3d_lowres -np 1")
    shell(f"nnUNetv2_micd preprocess -d {dataset.id} -c 3d_lowres -np 1")
    output = shell.train("3d_cascade_fullres 0", code=1)
    assert "nnUNetv2_train Dataset901_Tiny 3d_lowres" in output
    go_through(shell, "3d_lowres", fold="all")
    lowres = shell.predict("-c 3d_lowres -f all", output="lowres")
    go_through(shell, "3d_cascade_fullres", more=f"-prev_stage_predictions {lowres}")


@pytest.mark.parametrize(
    ("description", "slices"), [(REGIONS, None), (IGNORE, 6), (BOTH, 6)], ids=["regions", "ignore", "both"]
)
def test_regions_and_ignore_label(description: dict[str, Any], slices: int | None, shell: Shell) -> None:
    relabel(shell.dataset, description, annotated_slices=slices)
    go_through(shell, "3d_fullres", fold="all" if description is BOTH else "0")


def test_two_channels_masks_and_dummy_2d(shell: Shell) -> None:
    dataset = shell.dataset
    for path in [*(dataset.raw / "imagesTr").iterdir(), *dataset.images.iterdir()]:
        image = sitk.ReadImage(str(path))
        array = sitk.GetArrayFromImage(image)
        array[:2] = 0
        write_image(path, array, image.GetSpacing())
        write_image(path.with_name(path.name.replace("_0000", "_0001")), array * 2, image.GetSpacing())
    for folder in (dataset.raw, dataset.preprocessed):
        description = json.loads((folder / "dataset.json").read_text())
        description["channel_names"] = {"0": "T1", "1": "T2"}
        (folder / "dataset.json").write_text(json.dumps(description))

    def flatten(plans: dict[str, Any]) -> None:
        properties = plans["foreground_intensity_properties_per_channel"]
        properties["1"] = properties["0"]
        plans["configurations"].pop("2d")
        plans["configurations"]["3d_fullres"] |= {
            "patch_size": [4, 20, 24],
            "use_mask_for_norm": [True, False],
            "normalization_schemes": ["ZScoreNormalization", "ZScoreNormalization"],
        }

    change_plans(dataset, flatten)
    shell(f"nnUNetv2_preprocess -d {dataset.id} -c 3d_fullres -np 1")
    shell(f"nnUNetv2_micd preprocess -d {dataset.id} -c 3d_fullres -np 1 --overwrite")
    go_through(shell, "3d_fullres")


def weights(dataset: TinyDataset) -> dict[str, torch.Tensor]:
    checkpoint = torch.load(results(dataset, "3d_fullres") / "fold_0" / "checkpoint_final.pth", weights_only=False)
    networks = {"deployed": checkpoint["network_weights"], **checkpoint["nnunetv2_micd"]["students"]}
    networks["teacher_b"] = checkpoint["nnunetv2_micd"]["teachers"]["b"]
    return {f"{name} {key}": tensor for name, state in networks.items() for key, tensor in state.items()}


def test_a_killed_training_ends_as_one_that_was_not(shell: Shell) -> None:
    shell.train("3d_fullres 0")
    uninterrupted = weights(shell.dataset)
    folder = results(shell.dataset, "3d_fullres") / "fold_0"
    for place in ("step", "checkpoint", "validation"):
        for path in folder.glob("checkpoint_*"):
            path.unlink()
        shell.train("3d_fullres 0", code=-9, KILL_IN=place)
        assert not (folder / "checkpoint_final.pth").exists()
        shell.train("3d_fullres 0 --c")
        continued = weights(shell.dataset)
        assert all(torch.equal(tensor, continued[name]) for name, tensor in uninterrupted.items()), place


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_start_methods(method: str, shell: Shell, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        "import multiprocessing\n"
        "from nnunetv2.run.run_training import run_training_entry\n"
        "if __name__ == '__main__':\n"
        f"    multiprocessing.set_start_method('{method}')\n"
        "    run_training_entry()\n"
    )
    for workers in ("1", "2"):
        shell(f"python {script} 901 3d_fullres 0 -tr {MICD} -device cpu", nnUNet_n_proc_DA=workers)


def test_options_of_training(shell: Shell) -> None:
    dataset = shell.dataset
    shell.train("3d_fullres 0", "nnUNetTrainer_short")
    stock = results(dataset, "3d_fullres", "nnUNetTrainer_short") / "fold_0" / "checkpoint_final.pth"
    output = shell.train(f"3d_fullres 0 -pretrained_weights {stock} --disable_checkpointing --npz")
    assert "Loading pretrained weights" in output
    folder = results(dataset, "3d_fullres") / "fold_0"
    assert not list(folder.glob("checkpoint*"))
    assert list((folder / "validation").glob("*.npz"))
    assert "nnUNetv2_predict" not in output

    shell.train("3d_fullres 0 --val_best")
    assert "checkpoint_best" in {path.stem for path in folder.iterdir()}
    output = shell.train(f"3d_fullres 0 -pretrained_weights {folder / 'checkpoint_best.pth'}")
    assert "Loading pretrained weights" in output
    output = shell.train("3d_fullres 0 --c", "nnUNetTrainerMeanTeacher_short")  # nothing there: nnU-Net starts anew
    assert "Starting a new training" in output


def test_best_configuration_ensemble_and_zip(shell: Shell, tmp_path: Path) -> None:
    dataset = shell.dataset
    cases = np.array_split(dataset.labeled, 5)
    splits = [{"train": [c for c in dataset.labeled if c not in fold], "val": [str(c) for c in fold]} for fold in cases]
    dataset.splits_file.write_text(json.dumps(splits))
    for trainer in ("nnUNetTrainer_short", MICD):
        shell.train_folds("3d_fullres", 5, trainer)
    output = shell(f"nnUNetv2_find_best_configuration {dataset.id} -c 3d_fullres -tr nnUNetTrainer_short {MICD} -np 1")
    assert "nnUNetv2_predict" in output
    both = dataset.results / dataset.name / "ensembles"
    assert any(MICD in path.name and "nnUNetTrainer_short" in path.name for path in both.iterdir())

    folders = []
    for trainer in ("nnUNetTrainer_short", MICD):
        folders.append(shell.predict("-c 3d_fullres -f 0 1 --save_probabilities", trainer, f"of_{trainer}"))
    together = dataset.root / "together"
    shell(f"nnUNetv2_ensemble -i {folders[0]} {folders[1]} -o {together} -np 1")
    assert len(list(together.glob("*.nii.gz"))) == len(dataset.unlabeled)

    archive = tmp_path / "model.zip"
    folds = "-f 0 1 2 3 4"
    shell(f"nnUNetv2_export_model_to_zip -d {dataset.id} -o {archive} -c 3d_fullres -tr {MICD} {folds}")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shell.environment["nnUNet_results"] = str(elsewhere)
    shell(f"nnUNetv2_install_pretrained_model_from_zip {archive}")
    again = shell.predict("-c 3d_fullres -f 0 1", output="again")
    for name in dataset.unlabeled:
        one, other = (sitk.ReadImage(str(folder / f"{name}.nii.gz")) for folder in (folders[1], again))
        assert np.array_equal(sitk.GetArrayViewFromImage(one), sitk.GetArrayViewFromImage(other))
