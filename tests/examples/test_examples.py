"""The recipe of ``examples/trainers``: every method has a trainer in it, found and trained as any other."""

import json
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import TinyDataset, make_trainer
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_micd.ext_trainers import nnunetv2_micd_trainers as methods

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def recipe():
    spec = spec_from_file_location("recipe", EXAMPLES / "trainers" / "nnunetv2_micd_small_trainers.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_method_has_the_recipe(recipe):
    for name in ("nnUNetTrainer", *methods.__all__):
        assert issubclass(getattr(recipe, f"{name}_small"), recipe.SmallRecipe)


@pytest.mark.parametrize(
    ("name", "configuration"),
    [
        ("nnUNetTrainer_small", "3d_fullres"),
        ("nnUNetTrainerMICD_small", "3d_fullres"),
        ("nnUNetTrainerMICD_small", "2d"),
        ("nnUNetTrainerPseudoLabels_small", "3d_fullres"),
    ],
)
def test_a_step_is_in_mixed_precision_with_losses_in_float32(
    recipe, dataset: TinyDataset, monkeypatch, name, configuration
):
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    monkeypatch.setattr(recipe, "COMPUTES_BFLOAT16", True)
    trainer = make_trainer(getattr(recipe, name), dataset, configuration)
    trainer.on_train_start()
    assert isinstance(trainer.optimizer, torch.optim.AdamW)
    layers = trainer.network.decoder.seg_layers
    seen = []
    layers[-1].register_forward_hook(lambda module, inputs, output: seen.append((inputs[0].dtype, output.detach())))
    trainer.network.train()
    assert np.isfinite(trainer.train_step(next(trainer.dataloader_train))["loss"])
    assert (seen[0][0], seen[0][1].dtype) == (torch.bfloat16, torch.float32)
    with torch.no_grad():
        for parameter in trainer.network.parameters():
            parameter.zero_()
    seen.clear()
    trainer.train_step(next(trainer.dataloader_train))
    assert not seen[0][1].any(), "a step takes the weights of the step before"


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_speeding_up_changes_only_rounding(recipe, dataset: TinyDataset, monkeypatch, configuration):
    monkeypatch.setattr(recipe, "COMPUTES_BFLOAT16", False)
    trainer = make_trainer(recipe.nnUNetTrainer_small, dataset, configuration)
    trainer.initialize()
    faster = trainer.network
    plain = nnUNetTrainer.build_network_architecture(
        trainer.plans_manager,
        trainer.configuration_manager,
        trainer.num_input_channels,
        trainer.label_manager.num_segmentation_heads,
        trainer.enable_deep_supervision,
    )
    plain.load_state_dict(faster.state_dict())
    assert any(isinstance(module, recipe.GroupInstanceNorm) for module in faster.modules()) == (configuration == "2d")
    images = torch.randn(2, trainer.num_input_channels, *trainer.configuration_manager.patch_size)
    for scale, expected in zip(faster(images), plain(images), strict=True):
        torch.testing.assert_close(scale, expected, rtol=1e-3, atol=1e-4)


def test_the_small_plans_share_the_data_of_nnunets_own(dataset: TinyDataset):
    subprocess.run([sys.executable, EXAMPLES / "small_plans.py", dataset.name], check=True)
    plans = json.loads((dataset.preprocessed / "nnUNetPlans_small.json").read_text())
    own = json.loads(dataset.plans_file.read_text())
    assert plans["configurations"]["3d_fullres"]["batch_size"] == 2
    assert plans["plans_name"] == "nnUNetPlans_small"
    identifiers = [each["configurations"]["3d_fullres"]["data_identifier"] for each in (plans, own)]
    assert identifiers[0] == identifiers[1]
    assert plans["configurations"]["2d"]["patch_size"] == own["configurations"]["2d"]["patch_size"]


def test_small_plans_that_no_network_could_use(dataset: TinyDataset):
    plans = json.loads(dataset.plans_file.read_text())
    plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["strides"] = [[1] * 3, *[[2] * 3] * 5]
    dataset.plans_file.write_text(json.dumps(plans))
    command = [sys.executable, EXAMPLES / "small_plans.py", dataset.name]
    reason = "divides a patch by [32, 32, 32], which [32, 40, 32] cannot be divided by; change PATCH_SIZE"
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert f"3d_fullres is left out: The network of 3d_fullres {reason}" in done.stdout
    small = dataset.plans_file.with_name("nnUNetPlans_small.json")
    assert json.loads(small.read_text())["configurations"].keys() == {"2d"}
    small.unlink()
    del plans["configurations"]["2d"]
    dataset.plans_file.write_text(json.dumps(plans))
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert reason in done.stderr
    assert not small.exists()


def test_small_plans_of_other_plans(dataset: TinyDataset):
    plans = json.loads(dataset.plans_file.read_text())
    dataset.plans_file.with_name("nnUNetPlans3mm.json").write_text(json.dumps(plans))
    command = [sys.executable, EXAMPLES / "small_plans.py", dataset.name, "--plans", "nnUNetPlans3mm"]
    subprocess.run([*command, "--batch-size", "12"], check=True)
    written = json.loads((dataset.preprocessed / "nnUNetPlans3mm_small.json").read_text())
    assert written["plans_name"] == "nnUNetPlans3mm_small"
    assert {each["batch_size"] for each in written["configurations"].values()} == {12}


def test_small_plans_say_what_is_missing(dataset: TinyDataset):
    command = [sys.executable, EXAMPLES / "small_plans.py"]
    for arguments, message in (
        ([], "required: dataset"),
        (["Dataset555_Other"], "There are no nnUNetPlans.json of Dataset555_Other"),
    ):
        ended = subprocess.run([*command, *arguments], capture_output=True, text=True)
        assert ended.returncode > 0
        assert message in ended.stderr
        assert "Traceback" not in ended.stderr


def test_small_plans_by_number_and_what_they_refuse(dataset: TinyDataset):
    command = [sys.executable, EXAMPLES / "small_plans.py", str(dataset.id)]
    subprocess.run(command, check=True)
    small = dataset.plans_file.with_name("nnUNetPlans_small.json")
    assert small.is_file()
    small.unlink()
    plans = json.loads(dataset.plans_file.read_text())
    for arguments, message in (
        (["--batch-size", "0"], "The batch size must be at least 1, not 0"),
        ([], "nnUNetPlans.json is of an older nnU-Net; plan again"),
    ):
        if not arguments:
            del plans["configurations"]["3d_fullres"]["architecture"]
            dataset.plans_file.write_text(json.dumps(plans))
        ended = subprocess.run([*command, *arguments], check=False, capture_output=True, text=True)
        assert ended.returncode == 1
        assert message in ended.stderr
        assert "Traceback" not in ended.stderr
        assert not small.exists()
