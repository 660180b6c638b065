"""The images that a ranking proposes, and what it leaves for whoever labels them."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
import torch
from helpers import REGIONS, TinyDataset, make_trainer, relabel
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_micd.cli.main import main
from nnunetv2_micd.data.results import ModelFolder
from nnunetv2_micd.methods.micd import nnUNetTrainerMICD
from nnunetv2_micd.methods.self_training import nnUNetTrainerSelfTraining
from nnunetv2_micd.ranking import rank_unlabeled
from nnunetv2_micd.ranking.committee import Committee
from nnunetv2_micd.ranking.rank import next_steps
from nnunetv2_micd.ranking.selection import choose
from nnunetv2_micd.ranking.uncertainty import disagreement, entropy, entropy_by_class, mean_entropy


def test_entropy_counts_voxels_that_may_be_foreground() -> None:
    probabilities = torch.tensor([[0.5, 0.99, 0.25], [0.5, 0.01, 0.75]])
    of_quarter = -(0.25 * np.log2(0.25) + 0.75 * np.log2(0.75))
    assert mean_entropy(probabilities, has_regions=False) == pytest.approx((1 + of_quarter) / 2)
    assert entropy_by_class(probabilities, has_regions=False) == pytest.approx([(1 + of_quarter) / 2])
    assert mean_entropy(torch.tensor([[1.0], [0.0]]), has_regions=False) == 0
    regions = torch.tensor([[0.5, 0.0], [0.25, 0.0]])
    assert entropy(regions, has_regions=True).tolist() == pytest.approx([(1 + of_quarter) / 2, 0])
    assert entropy_by_class(regions, has_regions=True) == pytest.approx([1, of_quarter])
    three = torch.full((3, 1), 1 / 3)
    assert mean_entropy(three, has_regions=False) == pytest.approx(1)


def test_disagreement_is_one_minus_dice_of_the_classes_that_occur() -> None:
    first = torch.tensor([[True, True, False], [False, False, False], [True, False, False]])
    second = torch.tensor([[True, False, False], [False, False, False], [False, False, True]])
    assert disagreement(first, second) == pytest.approx((1 / 3 + 1) / 2)
    assert disagreement(first[1:2], second[1:2]) == 0


def test_chosen_images_are_uncertain_and_unlike_each_other() -> None:
    features = torch.tensor([[0.0, 5.0], [0.0, 5.0], [1.0, 5.0], [9.0, 5.0]])
    uncertainty = [0.9, 0.8, 0.7, 0.0]
    separate = ["a", "b", "c", "d"]
    assert choose(uncertainty, features, 2, separate) == [0, 2]
    assert choose(uncertainty, features, 2, ["a", "b", "a", "b"]) == [0, 3]
    assert choose(uncertainty, features, 2, ["a", "b", "c", "b"], labeled_groups=["a"]) == [1, 2]
    assert choose(uncertainty, features, 1, ["a"] * 4, labeled_groups=["a"]) == [0]  # there are no others
    assert sorted(choose(uncertainty, features, 9, ["a"] * 4)) == [0, 1, 2, 3]
    assert sorted(choose([0.0] * 3, torch.zeros(3, 1), 2, separate[:3])) == [0, 1]


@pytest.fixture
def train(dataset: TinyDataset) -> Callable[..., Any]:
    """Return a function that leaves what a training leaves: every network has weights of its own."""

    def write(trainer_class: type, fold: int | str = 0, configuration: str = "3d_fullres") -> Any:
        trainer = make_trainer(trainer_class, dataset, configuration, fold)
        trainer.on_train_start()
        students, teachers = getattr(trainer, "students", {}), getattr(trainer, "teachers", {})
        for network in [trainer.network, *students.values(), *teachers.values()]:
            with torch.no_grad():
                for parameter in network.parameters():
                    parameter.add_(0.1 * torch.randn_like(parameter))
        trainer.save_checkpoint(os.path.join(trainer.output_folder, "checkpoint_final.pth"))
        return trainer

    return write


CPU = torch.device("cpu")
SELF_TRAINING = "nnUNetTrainerSelfTraining"
MICD = "nnUNetTrainerMICD"


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
@pytest.mark.parametrize("trainer", [nnUNetTrainerMICD, nnUNetTrainerSelfTraining, nnUNetTrainer])
def test_every_kind_of_model_ranks(
    trainer: type, configuration: str, train: Callable, dataset: TinyDataset, tmp_path: Path
) -> None:
    train(trainer, configuration=configuration)
    model = ModelFolder(dataset.id, configuration, trainer.__name__)
    ranking = rank_unlabeled(model, 0, tmp_path / "next", 2, CPU)
    assert ("disagreement of both networks" in ranking.table) == (trainer is nnUNetTrainerMICD)
    assert set(ranking.table["case"]) == set(dataset.unlabeled)
    assert len(ranking.proposals) == 2
    assert ranking.table["uncertainty"].between(0, 1).all()
    assert not ranking.table["uncertainty"][2:].is_monotonic_increasing
    assert len(list((ranking.folder / "segmentations").glob("*.nii.gz"))) == 2
    for case in ranking.proposals:
        segmentation = sitk.ReadImage(str(ranking.folder / "segmentations" / f"{case}.nii.gz"))
        assert segmentation.GetSize() == sitk.ReadImage(str(dataset.images / f"{case}_0000.nii.gz")).GetSize()
    pd.testing.assert_series_equal(pd.read_csv(ranking.folder / "ranking.csv")["case"], ranking.table["case"])
    page = (ranking.folder / "ranking.html").read_text()
    assert page.count("<img") == 2
    assert all(case in page for case in ranking.proposals)


def run_script(script: Path) -> None:
    folders = [str(Path(sys.executable).parent), os.environ["PATH"]]  # of nnUNetv2_micd
    subprocess.run([str(script)], check=True, env={**os.environ, "PATH": os.pathsep.join(folders)})


def test_the_script_makes_labeled_cases_of_the_proposals(
    train: Callable, dataset: TinyDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(nnUNetTrainerSelfTraining)
    output = tmp_path / "what next"
    main(["rank", *f"-d {dataset.id} -c 3d_fullres -f 0 -n 2 -device cpu -o".split(), str(output)])
    proposals = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.endswith(" %")]
    script = (output / "add_labels.sh").read_text()
    head, _, commands = script.partition("nnUNetv2_preprocess -d")
    assert "nnUNetv2_micd preprocess -d 901 -c 2d 3d_fullres" in commands  # as the folds are those of both
    assert "nnUNetv2_train 901 3d_fullres 0 -tr nnUNetTrainerSelfTraining -device cpu" in commands
    (output / "add_labels.sh").write_text(head)
    run_script(output / "add_labels.sh")
    for case in proposals:
        assert (dataset.raw / "imagesTr" / f"{case}_0000.nii.gz").is_file()
        assert (dataset.raw / "labelsTr" / f"{case}.nii.gz").is_file()
        assert not (dataset.images / f"{case}_0000.nii.gz").exists()
    assert f'"numTraining": {len(dataset.labeled) + 2}' in (dataset.raw / "dataset.json").read_text()
    splits = json.loads(dataset.splits_file.read_text())
    assert all(set(proposals) < set(entry["train"]) for entry in splits)
    assert len(splits) == 2


def test_the_script_keeps_the_earlier_checkpoints(
    train: Callable, dataset: TinyDataset, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = Path(train(nnUNetTrainer).output_folder)  # which leaves them in place when it trains again
    model = ModelFolder(dataset.id, "3d_fullres", "nnUNetTrainer")
    script = rank_unlabeled(model, 0, tmp_path / "next", 1, CPU).folder / "add_labels.sh"
    head, _, rest = script.read_text().partition("nnUNetv2_micd label")
    script.write_text(head + rest[rest.index("\nfold=") :].replace("nnUNetv2_train", "echo"))
    for number in (1, 2):
        (folder / "checkpoint_final.pth").write_text(str(number))
        run_script(script)
        assert not (folder / "checkpoint_final.pth").exists()
        kept = f"{folder}/checkpoint_final_earlier_{number}.pth"
        assert f"Kept the earlier checkpoint as {kept}" in capfd.readouterr().out
    run_script(script)  # there is nothing to keep
    texts = {path.name: path.read_text() for path in folder.glob("checkpoint_*")}
    assert texts == {"checkpoint_final_earlier_1.pth": "1", "checkpoint_final_earlier_2.pth": "2"}


def test_any_line_of_the_script_may_be_deleted(train: Callable, dataset: TinyDataset, tmp_path: Path) -> None:
    train(nnUNetTrainerSelfTraining)
    ranking = rank_unlabeled(ModelFolder(dataset.id, "3d_fullres", SELF_TRAINING), 0, tmp_path / "next", 3, CPU)
    first, second, third = ranking.proposals
    script = ranking.folder / "add_labels.sh"
    head, _, _ = script.read_text().partition("nnUNetv2_preprocess -d")
    script.write_text("".join(line for line in head.splitlines(keepends=True) if third not in line))
    run_script(script)
    labeled = {path.name for path in (dataset.raw / "labelsTr").iterdir()}
    assert {f"{first}.nii.gz", f"{second}.nii.gz"} < labeled
    assert f"{third}.nii.gz" not in labeled


def test_regions_and_hidden_labels(train: Callable, dataset: TinyDataset, tmp_path: Path) -> None:
    relabel(dataset, REGIONS)
    train(nnUNetTrainerMICD, fold="all")
    ranking = rank_unlabeled(ModelFolder(dataset.id, "3d_fullres", MICD), "all", tmp_path / "next", 1, CPU)
    assert {"whole", "second"} <= set(ranking.table.columns)
    train(nnUNetTrainerMICD)
    *others, hidden = dataset.labeled
    dataset.splits_file.write_text(json.dumps([{"train": others[1:], "val": others[:1], "unlabeled": [hidden]}]))
    shutil.rmtree(dataset.unlabeled_folder())
    shutil.rmtree(dataset.images)
    ranking = rank_unlabeled(ModelFolder(dataset.id, "3d_fullres", MICD), 0, tmp_path / "hidden", 1, CPU)
    assert ranking.proposals == [hidden]
    assert not (ranking.folder / "add_labels.sh").exists()
    assert "move them from unlabeled to train" in (ranking.folder / "ranking.html").read_text()


def test_refuses_what_it_cannot_rank(train: Callable, dataset: TinyDataset, tmp_path: Path) -> None:
    model = ModelFolder(dataset.id, "3d_fullres", MICD)
    with pytest.raises(FileNotFoundError, match="train it first: nnUNetv2_train 901 3d_fullres 0"):
        rank_unlabeled(model, 0, tmp_path / "next", 1, CPU)
    with pytest.raises(ValueError, match="at least 1, not 0"):
        rank_unlabeled(model, 0, tmp_path / "next", 0, CPU)
    train(nnUNetTrainerMICD)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with pytest.raises(FileExistsError, match="not an empty folder"):
        rank_unlabeled(model, 0, tmp_path / "taken", 1, CPU)
    with pytest.raises(ValueError, match="add -device cpu"):
        rank_unlabeled(model, 0, tmp_path / "next", 1)
    entry = json.loads(dataset.splits_file.read_text())[0]
    train(nnUNetTrainerMICD, fold=1)
    dataset.splits_file.write_text(json.dumps([entry]))
    with pytest.raises(ValueError, match="has no fold 1"):
        rank_unlabeled(model, 1, tmp_path / "next", 1, CPU)
    properties = dataset.unlabeled_folder() / f"{dataset.unlabeled[0]}.pkl"
    content = properties.read_bytes()
    properties.unlink()
    with pytest.raises(ValueError, match=r"not preprocessed to the end .*; run: nnUNetv2_micd preprocess"):
        rank_unlabeled(model, 0, tmp_path / "next", 1, CPU)
    properties.write_bytes(content)
    (dataset.raw / "groups.json").write_text("[]")
    with pytest.raises(ValueError, match="is not of the form"):
        rank_unlabeled(model, 0, tmp_path / "next", 1, CPU)
    plans = json.loads((dataset.preprocessed / "nnUNetPlans.json").read_text())
    plans["configurations"]["3d_fullres"]["spacing"] = [9.0, 9.0, 9.0]
    (dataset.preprocessed / "nnUNetPlans.json").write_text(json.dumps(plans))
    with pytest.raises(ValueError, match="was trained with other plans than those of Dataset901_Tiny now"):
        rank_unlabeled(model, 0, tmp_path / "next", 1, CPU)
    assert not (tmp_path / "next").exists()


def test_what_cannot_be_written_is_said_before_the_first_prediction(
    train: Callable, dataset: TinyDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(nnUNetTrainerSelfTraining)
    monkeypatch.setattr(Committee, "ask", lambda *_: pytest.fail("an image was predicted"))
    model = ModelFolder(dataset.id, "3d_fullres", SELF_TRAINING)
    file = dataset.unlabeled_folder() / f"{dataset.unlabeled[0]}.pkl"
    properties = pickle.loads(file.read_bytes())
    properties["sitk_stuff"]["spacing"] = (1, 1, 1, 1)  # as of an image with all channels in one file
    file.write_bytes(pickle.dumps(properties))
    with pytest.raises(
        ValueError, match=r"4D images \(\w+\); export each channel to a 3D file .*run: nnUNetv2_micd pre"
    ):
        rank_unlabeled(model, 0, tmp_path / "next", 1, CPU)
    file.write_bytes(b"no pickle")
    with pytest.raises(ValueError, match=r".pkl is damaged \(.*\); delete it and its .b2nd file, and preprocess"):
        rank_unlabeled(model, 0, tmp_path / "next", 1, CPU)


def test_a_ranking_goes_on_after_an_image_that_cannot_be_read(
    train: Callable, dataset: TinyDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(nnUNetTrainerMICD)
    shutil.rmtree(dataset.labeled_folder())  # it is not needed
    model = ModelFolder(dataset.id, "3d_fullres", MICD)
    expected = rank_unlabeled(model, 0, tmp_path / "expected", 2, CPU)
    asked: list[int] = []
    ask = Committee.ask
    kept = tmp_path / ".next.unfinished" / f"{dataset.unlabeled[0]}.json"
    kept.parent.mkdir()
    kept.write_text('{"of": [')  # as a power failure leaves it
    monkeypatch.setattr(Committee, "ask", lambda *args: asked.append(1) or ask(*args))
    first, second, *_ = dataset.unlabeled
    file = dataset.unlabeled_folder() / f"{second}.b2nd"
    sound, state = file.read_bytes(), file.stat()
    file.write_bytes(damage_chunks(sound))
    with pytest.raises(
        ValueError, match=f"^{second} cannot be predicted .*; mend or remove it and run the same command"
    ):
        rank_unlabeled(model, 0, tmp_path / "next", 2, CPU)
    assert not (tmp_path / "next").exists()
    assert len(asked) == 1
    file.write_bytes(sound)
    os.utime(file, ns=(state.st_mtime_ns, state.st_mtime_ns))
    monkeypatch.setattr(
        Committee, "ask", lambda *args: interrupt() if len(asked) == 2 else asked.append(1) or ask(*args)
    )
    with pytest.raises(KeyboardInterrupt):
        rank_unlabeled(model, 0, tmp_path / "next", 2, CPU)
    monkeypatch.setattr(Committee, "ask", lambda *args: asked.append(1) or ask(*args))
    (dataset.unlabeled_folder() / f"{first}.b2nd").touch()  # an image that was preprocessed again
    ranking = rank_unlabeled(model, 0, tmp_path / "next", 2, CPU)
    assert len(asked) == 2 + 3 + 2  # of which two for the pictures
    pd.testing.assert_frame_equal(ranking.table, expected.table)
    assert contents(ranking.folder / "segmentations") == contents(expected.folder / "segmentations")
    assert not list(tmp_path.glob(".next*"))


def damage_chunks(content: bytes) -> bytes:
    """Return a preprocessed image whose header is intact, but not what follows it."""
    quarter = len(content) // 4
    return content[:quarter] + bytes(2 * quarter) + content[3 * quarter :]


def interrupt() -> None:
    raise KeyboardInterrupt


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_trainer_that_is_not_found_is_named(train: Callable, dataset: TinyDataset, tmp_path: Path) -> None:
    """As in a shell without the variable that names the folder of somebody's own trainer."""
    trainer = train(type("nnUNetTrainerMine", (nnUNetTrainerSelfTraining,), {}))
    model = ModelFolder(dataset.id, "3d_fullres", "nnUNetTrainerMine")
    with pytest.raises(ValueError, match=r"no trainer nnUNetTrainerMine.*add its folder to nnUNet_extTrainer"):
        rank_unlabeled(model, 0, tmp_path / "next", 1, CPU)
    file = Path(trainer.output_folder) / "checkpoint_final.pth"
    checkpoint = torch.load(file, weights_only=False) | {"trainer_name": SELF_TRAINING}
    checkpoint["network_weights"].popitem()
    torch.save(checkpoint, file)
    with pytest.raises(ValueError, match=r"A network in the checkpoint does not fit the plans .*; train it again"):
        rank_unlabeled(model, 0, tmp_path / "next", 1, CPU)


def test_what_to_do_with_proposals() -> None:
    assert "Look at add_labels.sh" in " ".join(next_steps(["a"], [], []))
    [correct, label] = next_steps([], [], ["a"])
    assert correct.startswith("Correct the proposals")
    assert "nnUNetv2_micd label" in label
    [hidden] = next_steps([], ["a"], [])
    assert "move them from unlabeled to train" in hidden


def test_no_group_that_has_labels_is_proposed(train: Callable, dataset: TinyDataset, tmp_path: Path) -> None:
    """Of the unlabeled images the last one is of a new group, the others of one that validates."""
    *others, new = dataset.unlabeled
    fold = json.loads(dataset.splits_file.read_text())[0]
    (dataset.raw / "groups.json").write_text(json.dumps(dict.fromkeys((*others, *fold["val"]), "old")))
    train(nnUNetTrainerSelfTraining)
    ranking = rank_unlabeled(ModelFolder(dataset.id, "3d_fullres", SELF_TRAINING), 0, tmp_path / "next", 1, CPU)
    assert ranking.proposals == [new]
