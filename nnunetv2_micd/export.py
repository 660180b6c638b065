"""Exports trained networks as a model folder of stock nnU-Net, which predicts with it where this package is not."""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import nnunetv2
import torch
from nnunetv2.paths import nnUNet_results
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.file_path_utilities import convert_trainer_plans_config_to_identifier
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_micd.data.folders import dataset_id, find_dataset
from nnunetv2_micd.training.checkpoints import KEY
from nnunetv2_micd.training.networks import peer_architecture

FINAL = "checkpoint_final.pth"
JSON_FILES = ("plans.json", "dataset.json", "dataset_fingerprint.json")


@dataclass(frozen=True)
class Training:
    """What names a training on nnU-Net's command line.

    Attributes:
        dataset: name or number of the dataset.
        configuration: such as ``3d_fullres``.
        trainer: name of the trainer's class.
        plans: name of the plans.
    """

    dataset: str | int
    configuration: str
    trainer: str = "nnUNetTrainerMICD"
    plans: str = "nnUNetPlans"

    def find_folder(self) -> Path:
        """Return the folder in ``nnUNet_results``, in which nothing is looked for yet.

        Raises:
            ValueError: ``nnUNet_results`` is not set, or there is no such dataset.
        """
        if not nnUNet_results.get():
            raise ValueError("The environment variable nnUNet_results is not set; the trained models lie there")
        identifier = convert_trainer_plans_config_to_identifier(self.trainer, self.plans, self.configuration)
        return Path(nnUNet_results, find_dataset(self.dataset), identifier)

    def command(self, fold: int | str) -> str:
        """Return the command that trains a fold."""
        dataset = dataset_id(find_dataset(self.dataset))
        plans = "" if self.plans == "nnUNetPlans" else f" -p {self.plans}"
        return f"nnUNetv2_train {dataset} {self.configuration} {fold} -tr {self.trainer}{plans}"


def export_model(
    training: Training,
    folds: Sequence[int | str],
    output: str | os.PathLike[str],
    network: Literal["a", "b"] = "a",
    stock_trainer: str = "nnUNetTrainer",
    checkpoint_name: str = FINAL,
) -> Path:
    """Make a model folder for ``nnUNetv2_predict_from_modelfolder``, whose predictions are those of the original.

    Args:
        training: what was trained.
        folds: the trained folds to export, numbers or ``"all"``.
        output: the folder to make; its checkpoints are called ``checkpoint_final.pth``, as prediction expects.
        network: which teacher; ``"a"`` is the one that predicts in the original, ``"b"`` that of the second network.
        stock_trainer: the trainer of nnU-Net that prediction shall build the network with.
        checkpoint_name: the checkpoint of each fold to take.

    Returns:
        The absolute path of ``output``.

    Raises:
        FileNotFoundError: there is no such training or checkpoint.
        FileExistsError: ``output`` exists and is not an empty folder.
        ValueError: the trainer has no second network, or nnU-Net no such trainer, or it builds another network.
    """
    trainer_class = _find_stock_trainer(stock_trainer)
    target = Path(output).resolve()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target} exists and is not an empty folder; name another with -o")
    source = training.find_folder()
    checkpoints = {fold: _find_checkpoint(training, source, fold, checkpoint_name) for fold in folds}
    temporary = target.with_name(f".{target.name}.{os.getpid()}")  # seen under its name only once it is whole
    try:
        temporary.mkdir(parents=True)
        for name in JSON_FILES:
            shutil.copyfile(source / name, temporary / name)
        if network == "b" and not _are_twins(next(iter(checkpoints.values()))):
            plans = _plans_of_peer(_read_json(source / "plans.json"), training.configuration)
            (temporary / "plans.json").write_text(json.dumps(plans, indent=4))
        for fold, file in checkpoints.items():
            _export_fold(file, temporary, fold, network, trainer_class)
        if target.exists():
            target.rmdir()  # on Windows a folder is not replaced, not even an empty one
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _find_stock_trainer(name: str) -> Any:
    base = Path(nnunetv2.__path__[0])
    folder = base / "training" / "nnUNetTrainer"
    found = recursive_find_python_class(str(folder), name, "nnunetv2.training.nnUNetTrainer", str(base))
    if not (isinstance(found, type) and issubclass(found, nnUNetTrainer) and found.__module__.startswith("nnunetv2.")):
        raise ValueError(f"{name} is none of nnU-Net's own trainers; use --as nnUNetTrainer, as nearly all models can")
    return found


def _find_checkpoint(training: Training, source: Path, fold: int | str, checkpoint_name: str) -> Path:
    if fold != "all" and not str(fold).isdecimal():
        raise ValueError(f"{fold} is no fold; name numbers or all, such as: -f 0 1 2")
    file = source / f"fold_{fold}" / checkpoint_name
    missing = [path for path in (file, *(source / name for name in JSON_FILES)) if not path.is_file()]
    if missing:
        others = sorted(path.name for path in file.parent.glob("checkpoint_*.pth") if path != file)
        instead = f", or export another checkpoint with -chk {others[0]}" if others else ""
        raise FileNotFoundError(
            f"There is no such training in {file.parent} (no {missing[0].name}); train it first: "
            f"{training.command(fold)}{instead}"
        )
    return file


def _are_twins(file: Path) -> bool:
    """Whether both networks are that of the plans."""
    checkpoint = torch.load(file, map_location="cpu", weights_only=False)
    weights = checkpoint.get(KEY, {}).get("teachers", {}).get("b", {})
    return weights.keys() == checkpoint["network_weights"].keys()


def _plans_of_peer(plans: dict[str, Any], configuration: str) -> dict[str, Any]:
    """Return the plans with the architecture of network B, from which stock nnU-Net builds it."""
    manager = PlansManager(plans).get_configuration(configuration)
    class_name, kwargs = peer_architecture(manager.network_arch_class_name, manager.network_arch_init_kwargs)
    architecture = {
        "network_class_name": class_name,
        "arch_kwargs": kwargs,
        "_kw_requires_import": list(manager.network_arch_init_kwargs_req_import),
    }
    changed = {**plans["configurations"][configuration], "architecture": architecture}
    return {**plans, "configurations": {**plans["configurations"], configuration: changed}}


def _export_fold(file: Path, folder: Path, fold: int | str, network: str, trainer_class: Any) -> None:
    checkpoint = torch.load(file, map_location="cpu", weights_only=False)
    plans, dataset_json = (_read_json(folder / name) for name in JSON_FILES[:2])
    weights = _select_weights(checkpoint, network, file)
    configuration = checkpoint["init_args"]["configuration"]
    _check_weights(weights, trainer_class, plans, configuration, dataset_json)
    (folder / f"fold_{fold}").mkdir()
    ours = checkpoint.get(KEY, {})
    exported = {
        "network_weights": weights,
        "trainer_name": trainer_class.__name__,
        "init_args": {**checkpoint["init_args"], "plans": plans, "dataset_json": dataset_json},
        "inference_allowed_mirroring_axes": checkpoint.get("inference_allowed_mirroring_axes"),
        KEY: {
            "version": ours.get("version"),
            "trainer": checkpoint["trainer_name"],
            "network": network,
            "checkpoint": file.name,
            "config": ours.get("config"),
        },
    }
    torch.save(exported, folder / f"fold_{fold}" / FINAL)


def _select_weights(checkpoint: dict[str, Any], network: str, file: Path) -> dict[str, torch.Tensor]:
    if network == "a":
        return checkpoint["network_weights"]
    teachers = checkpoint.get(KEY, {}).get("teachers", {})
    if network not in teachers:
        raise ValueError(
            f"{checkpoint['trainer_name']}, which wrote {file}, has no second network; export its only one: --network a"
        )
    return teachers[network]


def _check_weights(
    weights: dict[str, torch.Tensor], trainer_class: Any, plans: dict, configuration: str, dataset_json: dict
) -> None:
    """Let the stock trainer build its network, without memory for it, and compare what it needs with the weights."""
    manager = PlansManager(plans)
    configuration_manager = manager.get_configuration(configuration)
    input_channels = determine_num_input_channels(manager, configuration_manager, dataset_json)
    heads = manager.get_label_manager(dataset_json).num_segmentation_heads
    try:
        with torch.device("meta"):
            network = trainer_class.build_network_architecture(
                manager, configuration_manager, input_channels, heads, enable_deep_supervision=False
            )
    except Exception as error:  # some trainers take only some plans, and say so in their own ways
        raise ValueError(f"{trainer_class.__name__} cannot build a network from these plans: {error!r}") from error
    expected = {name: tensor.shape for name, tensor in network.state_dict().items()}
    if expected != {name: tensor.shape for name, tensor in weights.items()}:
        raise ValueError(
            f"{trainer_class.__name__} builds another network than the one that was trained; name with --as the "
            "trainer of nnU-Net that builds it, usually nnUNetTrainer"
        )


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())
