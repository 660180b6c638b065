"""Exports trained networks as a model folder of stock nnU-Net, which predicts without this package."""

import json
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import nnunetv2
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_micd.data.results import FINAL, ModelFolder
from nnunetv2_micd.training.checkpoints import KEY
from nnunetv2_micd.training.networks import peer_architecture
from nnunetv2_micd.utils.checkpoint_files import read_checkpoint
from nnunetv2_micd.utils.files import read_json_object
from nnunetv2_micd.utils.locks import new_folder

JSON_FILES = ("plans.json", "dataset.json")
FINGERPRINT = "dataset_fingerprint.json"  # which nnU-Net writes beside them and does not need to predict


def export_model(
    model: ModelFolder,
    folds: Sequence[int | str],
    output: str | os.PathLike[str],
    network: Literal["a", "b"] = "a",
    stock_trainer: str = "nnUNetTrainer",
    checkpoint_name: str = FINAL,
) -> Path:
    """Make a folder for ``nnUNetv2_predict_from_modelfolder`` that predicts the same as the trained model.

    Args:
        model: The trained model.
        folds: Trained folds to export, numbers or ``"all"``.
        output: Folder to make. Its checkpoints are named ``checkpoint_final.pth``, as prediction expects.
        network: Teacher to export: ``"a"`` predicts in the original, ``"b"`` is the teacher of the second network.
        stock_trainer: Trainer of nnU-Net that builds the network for prediction.
        checkpoint_name: File name of the checkpoint to take from each fold.

    Returns:
        Absolute path of ``output``.

    Raises:
        FileNotFoundError: There is no such model or checkpoint.
        FileExistsError: ``output`` exists and is not an empty folder.
        ValueError: The model has no second network, nnU-Net has no such trainer, or that trainer builds a different
            network.

    Examples:
        >>> export_model(ModelFolder(4, "3d_fullres"), folds=[0], output="model")  # doctest: +SKIP
        PosixPath('/home/me/model')
    """
    trainer_class = _find_stock_trainer(stock_trainer)
    target = Path(output).resolve()
    checkpoints = {fold: _find_checkpoint(model, fold, checkpoint_name) for fold in folds}
    with new_folder(target, f"exporting to {target}") as incomplete:
        _export_json_files(model, incomplete, network, next(iter(checkpoints.values())))
        for fold, checkpoint in checkpoints.items():
            _export_fold(checkpoint, incomplete / f"fold_{fold}", network, trainer_class)
    return target


def has_second_network(checkpoint_file: Path) -> bool:
    """Return True if a checkpoint holds a second network, which is exported as ``"b"``."""
    # Mapped, not read: of the weights only the names are needed.
    return "b" in _teachers(_read(checkpoint_file, mapped=True))


def _teachers(checkpoint: dict[str, Any]) -> dict[str, dict[str, torch.Tensor]]:
    """Return the weights of the teachers by name; none if a trainer of nnU-Net wrote the checkpoint.

    Networks that are no U-Nets of the plans, which nnU-Net therefore cannot build, are left out.
    """
    teachers = checkpoint[KEY].get("teachers", {})
    return {name: weights for name, weights in teachers.items() if any(key.startswith("encoder.") for key in weights)}


def _read(checkpoint_file: Path, mapped: bool = False) -> dict[str, Any]:
    """Read a checkpoint, and check what this package adds to that of nnU-Net.

    Raises:
        ValueError: It is damaged.
    """
    checkpoint = read_checkpoint(checkpoint_file, mapped)
    ours = checkpoint.setdefault(KEY, {})
    teachers = ours.get("teachers", {}) if isinstance(ours, dict) else None
    if not isinstance(teachers, dict) or not all(isinstance(weights, dict) for weights in teachers.values()):
        raise ValueError(f"{checkpoint_file} is damaged: its {KEY} holds no networks; export another with -chk")
    return checkpoint


def _find_stock_trainer(name: str) -> Any:
    package = Path(nnunetv2.__path__[0])
    folder = package / "training" / "nnUNetTrainer"
    trainer = recursive_find_python_class(str(folder), name, "nnunetv2.training.nnUNetTrainer", str(package))
    is_stock = isinstance(trainer, type) and issubclass(trainer, nnUNetTrainer)
    if not is_stock or not trainer.__module__.startswith("nnunetv2."):
        raise ValueError(f"{name} is none of nnU-Net's own trainers; use --as nnUNetTrainer, which fits most models")
    return trainer


def _find_checkpoint(model: ModelFolder, fold: int | str, checkpoint_name: str) -> Path:
    if not re.fullmatch(r"all|0|[1-9][0-9]*", str(fold)):
        raise ValueError(f"{fold} is not a fold; give numbers or all, such as: -f 0 1 2")
    folder = model.path()
    checkpoint = folder / f"fold_{fold}" / checkpoint_name
    if not checkpoint.is_file():
        others = sorted(path.name for path in checkpoint.parent.glob("checkpoint_*.pth") if path != checkpoint)
        alternative = f", or export another checkpoint with -chk {' or '.join(others)}" if others else ""
        raise FileNotFoundError(
            f"There is no such training in {checkpoint.parent} (no {checkpoint_name}); train it first: "
            f"{model.train_command(fold)}{alternative}"
        )
    if missing := [name for name in JSON_FILES if not (folder / name).is_file()]:
        raise FileNotFoundError(f"There is no {missing[0]} in {folder}; put it back, from where the model was trained")
    return checkpoint


def _export_json_files(model: ModelFolder, folder: Path, network: str, checkpoint: Path) -> None:
    for name in (*JSON_FILES, FINGERPRINT):
        if name in JSON_FILES or (model.path() / name).is_file():
            shutil.copyfile(model.path() / name, folder / name)
    if network == "b" and not _are_twins(checkpoint):
        # Stock nnU-Net builds the network from the plans, and network B has another architecture.
        plans = _plans_of_peer(read_json_object(folder / "plans.json"), model.configuration)
        (folder / "plans.json").write_text(json.dumps(plans, indent=4))


def _are_twins(checkpoint_file: Path) -> bool:
    """Return True if the second network has the architecture of the plans, as the first."""
    checkpoint = _read(checkpoint_file)
    weights = _teachers(checkpoint).get("b", {})
    return weights.keys() == checkpoint["network_weights"].keys()


def _plans_of_peer(plans: dict[str, Any], configuration: str) -> dict[str, Any]:
    """Return the plans with the architecture of network B."""
    manager = PlansManager(plans).get_configuration(configuration)
    class_name, kwargs = peer_architecture(manager.network_arch_class_name, manager.network_arch_init_kwargs)
    architecture = {
        "network_class_name": class_name,
        "arch_kwargs": kwargs,
        "_kw_requires_import": list(manager.network_arch_init_kwargs_req_import),
    }
    changed = {**plans["configurations"][configuration], "architecture": architecture}
    return {**plans, "configurations": {**plans["configurations"], configuration: changed}}


def _export_fold(checkpoint_file: Path, fold_folder: Path, network: str, trainer_class: Any) -> None:
    """Write what stock nnU-Net needs of a checkpoint, and under our key where it comes from."""
    checkpoint = _read(checkpoint_file)
    plans, dataset_json = (read_json_object(fold_folder.parent / name) for name in JSON_FILES)
    weights = _select_weights(checkpoint, network, checkpoint_file)
    _check_weights(weights, trainer_class, plans, checkpoint["init_args"].get("configuration"), dataset_json)
    ours = checkpoint[KEY]
    exported = {
        "network_weights": weights,
        "trainer_name": trainer_class.__name__,
        "init_args": {**checkpoint["init_args"], "plans": plans, "dataset_json": dataset_json},
        "inference_allowed_mirroring_axes": checkpoint.get("inference_allowed_mirroring_axes"),
        KEY: {
            "version": ours.get("version"),
            "trainer": checkpoint["trainer_name"],
            "network": network,
            "checkpoint": checkpoint_file.name,
            "config": ours.get("config"),
        },
    }
    fold_folder.mkdir()
    try:
        torch.save(exported, fold_folder / FINAL)
    except RuntimeError as error:  # as which torch reports a full disk
        raise OSError(
            f"Cannot write {fold_folder / FINAL} ({' '.join(str(error).split())}), most often because the disk is "
            "full; make room and run the same command again"
        ) from error


def _select_weights(checkpoint: dict[str, Any], network: str, checkpoint_file: Path) -> dict[str, torch.Tensor]:
    if network == "a":
        return checkpoint["network_weights"]
    teachers = _teachers(checkpoint)
    if network not in teachers:
        raise ValueError(
            f"{checkpoint['trainer_name']}, which wrote {checkpoint_file}, has no second network that nnU-Net "
            "can build; export the first one: --network a"
        )
    return teachers[network]


def _check_weights(
    weights: dict[str, torch.Tensor], trainer_class: Any, plans: dict, configuration: Any, dataset_json: dict
) -> None:
    """Compare the weights with the network that the stock trainer builds from the plans."""
    try:
        manager = PlansManager(plans)
        configuration_manager = manager.get_configuration(configuration)
        input_channels = determine_num_input_channels(manager, configuration_manager, dataset_json)
        heads = manager.get_label_manager(dataset_json).num_segmentation_heads
        with torch.device("meta"):  # shapes alone, without memory for the weights
            network = trainer_class.build_network_architecture(
                manager, configuration_manager, input_channels, heads, enable_deep_supervision=False
            )
    except Exception as error:  # trainers refuse plans that they cannot use with any type of error
        raise ValueError(
            f"{trainer_class.__name__} cannot build a network from these plans ({error!r}); restore plans.json and "
            "dataset.json of the model, or name another trainer of nnU-Net with --as"
        ) from error
    expected = {name: tensor.shape for name, tensor in network.state_dict().items()}
    if expected != {name: tensor.shape for name, tensor in weights.items()}:
        raise ValueError(
            f"{trainer_class.__name__} builds a different network than the one that was trained; name with --as the "
            "trainer of nnU-Net that builds it, usually nnUNetTrainer"
        )
