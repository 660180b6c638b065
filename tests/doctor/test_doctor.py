"""A sound installation and dataset have no finding; each defect has one, with its level and what to do."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import TinyDataset

import nnunetv2_micd
from nnunetv2_micd import TRAINER_FOLDER
from nnunetv2_micd.cli.main import main
from nnunetv2_micd.data.dataset import Dataset
from nnunetv2_micd.doctor import installation
from nnunetv2_micd.doctor.dataset import check_dataset
from nnunetv2_micd.doctor.diagnose import diagnose
from nnunetv2_micd.doctor.finding import Finding, format_findings


@pytest.fixture(autouse=True)
def sound_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nnunetv2_micd, "EXT_TRAINER_BEFORE_IMPORT", TRAINER_FOLDER)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def find(subject: str, *arguments: str | None) -> list[Finding]:
    """Return the findings on a subject."""
    return [finding for finding in diagnose(*arguments) if finding.subject == subject]


def texts(findings: list[Finding]) -> list[str]:
    return [f"{finding.level}: {finding.text}" for finding in findings]


def levels(*arguments: str | None) -> dict[str, str]:
    return {finding.subject: finding.level for finding in diagnose(*arguments)}


def test_sound_dataset(dataset: TinyDataset, capsys: pytest.CaptureFixture) -> None:
    before = sorted(dataset.root.rglob("*"))
    main(["doctor", "-d", "901"])
    lines = capsys.readouterr().out.splitlines()
    start = next(i for i, line in enumerate(lines) if "planned" in line)
    expected = [f"ok       {dataset.name}         planned: nnUNetPlans with 2d, 3d_fullres"]
    for name in ("2d", "3d_fullres"):
        expected += [
            f"ok       {name:21}  6 labeled cases preprocessed",
            f"ok       {name:21}  4 images in imagesUn, 4 preprocessed",
            f"ok       {name:21}  about 3.0 GiB of GPU memory for a training of MICD; self-training should take less",
            f"ok       {name:21}  fold 0: 3 labeled, 4 unlabeled, 2 validation",
            f"ok       {name:21}  fold 1: 1 labeled, 7 unlabeled, 2 validation",
        ]
    advice = next(i for i, line in enumerate(lines) if line.startswith("ok       advice"))
    assert [line.split() for line in lines[start:advice]] == [line.split() for line in expected]
    assert "with 5 labeled and 4 unlabeled images: " in lines[advice]
    assert lines[-2:] == ["", "no problems, 1 warning"]
    assert len({line.index(text) for line, text in ((lines[0], "3."), (lines[start], "planned"))}) == 1  # aligned
    assert sorted(dataset.root.rglob("*")) == before


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (1, "warning: one labeled case makes no folds"),
        (
            3,
            "ok: none yet: preprocess makes 3 folds, each with one case to test; without it, nnU-Net's own trainers "
            "have no folds for so few",
        ),
        (6, "ok: none yet: the first training makes nnU-Net's five folds"),
    ],
)
def test_folds_that_are_not_there_yet(number: int, expected: str, dataset: TinyDataset) -> None:
    dataset.splits_file.unlink()
    for case in dataset.labeled[number:]:
        (dataset.labeled_folder() / f"{case}.b2nd").unlink()
    assert texts(find("splits", "901", "3d_fullres")) == [expected]


def test_folds_of_the_configuration_that_is_preprocessed(dataset: TinyDataset) -> None:
    dataset.splits_file.unlink()
    shutil.rmtree(dataset.labeled_folder("2d"))
    for case in dataset.labeled[1:]:
        (dataset.labeled_folder() / f"{case}.b2nd").unlink()
    assert texts(find("splits", "901")) == ["warning: one labeled case makes no folds"]


def test_a_dataset_without_unlabeled_images_can_be_trained_on(dataset: TinyDataset) -> None:
    shutil.rmtree(dataset.images)
    for configuration in ("2d", "3d_fullres"):
        shutil.rmtree(dataset.unlabeled_folder(configuration))
    dataset.splits_file.unlink()
    assert any(text.startswith("warning: fold all: There are no unl") for text in texts(find("3d_fullres", "901")))
    assert "problem" not in {finding.level for finding in check_dataset("901", None, "nnUNetPlans")}


def test_labels_that_no_fold_names(dataset: TinyDataset) -> None:
    """Labels that were added by hand after the folds were made."""
    entries = json.loads(dataset.splits_file.read_text())
    without = [{key: [case for case in cases if case != "case_2"] for key, cases in fold.items()} for fold in entries]
    dataset.splits_file.write_text(json.dumps([entry | {"seed": 0} for entry in without]))  # as of a benchmark
    found = [text for text in texts(find("3d_fullres", "901")) if "no fold" in text]
    assert found == [
        "warning: no fold in splits_final.json names these labeled cases, so only fold all trains on them (case_2)"
    ]


def test_commands_name_the_plans(dataset: TinyDataset) -> None:
    plans = json.loads((dataset.preprocessed / "nnUNetPlans.json").read_text())
    assert Dataset.find("901").plan_command == "nnUNetv2_plan_and_preprocess --clean -d 901"
    assert Dataset.find("901").preprocess_command == "nnUNetv2_micd preprocess -d 901"
    plans |= {"plans_name": "nnUNetResEncUNetMPlans", "experiment_planner_used": "nnUNetPlannerResEncM"}
    (dataset.preprocessed / "nnUNetResEncUNetMPlans.json").write_text(json.dumps(plans))
    other = Dataset.find("901", "nnUNetResEncUNetMPlans")
    assert other.plan_command == ("nnUNetv2_plan_and_preprocess --clean -d 901 -pl nnUNetPlannerResEncM")
    assert other.preprocess_command == "nnUNetv2_micd preprocess -d 901 -p nnUNetResEncUNetMPlans"
    plans["plans_name"] = "nnUNetResEncUNetPlans_40G"  # by options that no plans record
    (dataset.preprocessed / "nnUNetResEncUNetPlans_40G.json").write_text(json.dumps(plans))
    assert Dataset.find("901", "nnUNetResEncUNetPlans_40G").plan_command == (
        "nnUNetv2_plan_and_preprocess --clean -d 901 (and the options that made nnUNetResEncUNetPlans_40G)"
    )


def test_splits_without_folds(dataset: TinyDataset) -> None:
    dataset.splits_file.write_text("[]")
    assert texts(find("splits", "901", "3d_fullres")) == ["problem: splits_final.json has no folds"]


def test_folds_of_groups(dataset: TinyDataset) -> None:
    groups = {case: f"patient_{number // 2}" for number, case in enumerate(dataset.labeled)}
    (dataset.raw / "groups.json").write_text(json.dumps(groups))
    entries = json.loads(dataset.splits_file.read_text())
    entries[0] = {"train": dataset.labeled[:3], "val": dataset.labeled[3:]}
    entries[1] = {"train": dataset.labeled, "val": dataset.labeled}  # no group is divided
    dataset.splits_file.write_text(json.dumps(entries))
    [text] = texts(find("splits", "901", "3d_fullres"))
    assert text.startswith("warning: fold 0: groups have cases in training and in validation (patient_1)")
    dataset.splits_file.unlink()
    assert texts(find("splits", "901", "3d_fullres")) == [
        "ok: none yet: preprocess makes 3 folds, each with one group to test; without it, nnU-Net's own trainers would "
        "divide groups"
    ]
    many = {case: str(max(number, 1)) for number, case in enumerate(dataset.labeled)}
    (dataset.raw / "groups.json").write_text(json.dumps(many))
    assert texts(find("splits", "901", "3d_fullres")) == [
        "ok: none yet: preprocess makes folds of the 5 groups; without it, nnU-Net's own trainers would divide groups"
    ]
    (dataset.raw / "groups.json").write_text('{"case_0": "a"}')
    assert "gives these cases no group" in texts(find("splits", "901", "3d_fullres"))[0]


def test_one_configuration(dataset: TinyDataset) -> None:
    assert not find("2d", "901", "3d_fullres")
    assert len(find("3d_fullres", "901", "3d_fullres")) == 5
    assert texts(find(dataset.name, "901", "3d")) == [
        "problem: nnUNetPlans has no configuration 3d, only 2d, 3d_fullres"
    ]
    with pytest.raises(ValueError, match="add -d"):
        diagnose(configuration="2d")


@pytest.mark.parametrize(
    ("before", "level", "remedy"),
    [
        ("", "problem", 'export nnUNet_extTrainer="$(nnUNetv2_micd path)"'),
        ("/mine", "problem", f'export nnUNet_extTrainer="$(nnUNetv2_micd path){os.pathsep}/mine"'),
        (f"/gone{os.pathsep}{TRAINER_FOLDER}/", "warning", "correct the variable"),
        (TRAINER_FOLDER, "ok", ""),
    ],
)
def test_variable_of_the_shell(
    before: str, level: str, remedy: str, dataset: TinyDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nnunetv2_micd, "EXT_TRAINER_BEFORE_IMPORT", before)
    (finding,) = find("nnUNet_extTrainer")
    assert (finding.level, finding.remedy) == (level, remedy)
    assert ("trainers" in levels()) == (level != "problem")


def test_command_sees_the_variable_of_its_shell(dataset: TinyDataset) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "nnUNet_extTrainer"}
    command = [sys.executable, "-m", "nnunetv2_micd", "doctor"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 1
    assert "\n1 problem, " in run.stdout
    assert "problem  nnUNet_extTrainer" in run.stdout


def test_trainers_of_others(dataset: TinyDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    file = tmp_path / "mine" / "copied_trainers.py"
    file.write_text(
        "from nnunetv2_micd.methods.micd import nnUNetTrainerMICD as Base\nclass nnUNetTrainerMICD(Base): pass\n"
    )
    monkeypatch.setenv("nnUNet_extTrainer", os.pathsep.join([str(file.parent), TRAINER_FOLDER]))
    assert texts(find("trainers")) == ["problem: nnU-Net finds another nnUNetTrainerMICD first, in copied_trainers"]
    file.write_text("import no_such_module")
    assert texts(find("trainers"))[0].startswith("problem: nnU-Net fails to search for trainers: ModuleNotFoundError")


@pytest.mark.parametrize(
    ("package", "version", "level"),
    [
        ("nnunetv2", "2.8.0", "problem"),
        ("nnunetv2", "2.8.1", "ok"),
        ("nnunetv2", "2.8.10.post1", "ok"),
        ("nnunetv2", "2.9", "problem"),
        ("nnunetv2", "2.9.0rc1", "problem"),
        ("nnunetv2", None, "problem"),
        ("torch", "2.5.1+cu121", "problem"),
        ("torch", "2.6.0", "ok"),
        ("torch", "2.9.1+cu128", "warning"),
        ("torch", "2.10.0", "ok"),
        ("torch", None, "problem"),
    ],
)
def test_versions(package: str, version: str | None, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "installed_version", lambda name: version if name == package else "2.8.1")
    assert levels()[{"nnunetv2": "nnU-Net", "torch": "PyTorch"}[package]] == level


def test_supported_versions_are_those_of_the_package() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert f'"{installation.NNUNET}"' in text
    assert f'"{installation.TORCH}"' in text


def test_broken_installation_still_gets_a_report(dataset: TinyDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nnunetv2.utilities.find_objects", None)
    findings = diagnose("901")
    assert findings[-1].subject == "import"
    assert findings[-1].level == "problem"


def test_folders(dataset: TinyDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    names = "nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"
    assert [levels()[name] for name in names] == ["ok", "ok", "ok"]
    with monkeypatch.context() as context:
        context.setattr(os, "access", lambda *_: False)
        assert [levels()[name] for name in names] == ["ok", "warning", "problem"]
    with monkeypatch.context() as context:
        context.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1e9))
        assert [levels()[name] for name in names] == ["ok", "ok", "warning"]
    for name in names:
        monkeypatch.setenv(name, str(dataset.root / "gone"))
    assert [levels()[name] for name in names] == ["warning", "problem", "problem"]
    for name in names:
        monkeypatch.delenv(name)
    assert [levels()[name] for name in names] == ["warning", "problem", "problem"]
    assert levels("901")["dataset 901"] == "problem"


def test_gpu(dataset: TinyDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    (finding,) = find("GPU")
    assert (finding.level, "-device cpu" in finding.remedy) == ("warning", True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    device = SimpleNamespace(name="Some GPU", total_memory=24 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: device)
    assert texts(find("GPU 0")) == ["ok: Some GPU, 24 GiB"]


def without_splits(dataset: TinyDataset) -> None:
    dataset.splits_file.unlink()


def without_unlabeled(dataset: TinyDataset) -> None:
    shutil.rmtree(dataset.images)
    shutil.rmtree(dataset.unlabeled_folder())


def preprocessed_by_other_plans(dataset: TinyDataset) -> None:
    plans = json.loads(dataset.plans_file.read_text())
    plans["configurations"]["3d_fullres"]["spacing"] = [2, 2, 2]
    dataset.plans_file.write_text(json.dumps(plans))


def one_unlabeled_image_more(dataset: TinyDataset) -> None:
    shutil.copy(dataset.images / "image_0_0000.nii.gz", dataset.images / "new_0000.nii.gz")


def unlabeled_case_that_validates(dataset: TinyDataset) -> None:
    for ending in (".b2nd", ".pkl"):
        shutil.copy(dataset.labeled_folder() / f"case_3{ending}", dataset.unlabeled_folder())


def not_preprocessed(dataset: TinyDataset) -> None:
    shutil.rmtree(dataset.labeled_folder())


def lost_case(dataset: TinyDataset) -> None:
    (dataset.labeled_folder() / "case_0.b2nd").unlink()


def lost_unused_case(dataset: TinyDataset) -> None:
    splits = [{"train": ["case_0"], "val": ["case_3"]}]
    dataset.splits_file.write_text(json.dumps(splits))
    (dataset.labeled_folder() / "case_5.b2nd").unlink()


def lost_segmentation(dataset: TinyDataset) -> None:
    (dataset.labeled_folder() / "case_0_seg.b2nd").unlink()
    (dataset.labeled_folder() / "case_1.pkl").write_bytes(b"")


def other_network(dataset: TinyDataset) -> None:
    plans = json.loads(dataset.plans_file.read_text())
    plans["configurations"]["3d_fullres"]["architecture"]["network_class_name"] = "somewhere.Transformer"
    dataset.plans_file.write_text(json.dumps(plans))


def network_of_two_stages(dataset: TinyDataset) -> None:
    plans = json.loads(dataset.plans_file.read_text())
    plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["n_stages"] = 2
    dataset.plans_file.write_text(json.dumps(plans))


def no_training_case(dataset: TinyDataset) -> None:
    dataset.splits_file.write_text(json.dumps([{"train": [], "val": ["case_3"]}]))


def trained_on_validation_cases(dataset: TinyDataset) -> None:
    splits = [{"train": ["case_0", "case_3"], "val": ["case_3"]}]
    dataset.splits_file.write_text(json.dumps(splits))


@pytest.mark.parametrize(
    ("change", "level", "text", "remedy"),
    [
        (lost_segmentation, "problem", "labeled cases in", "nnUNetv2_preprocess"),
        (without_splits, "ok", "fold all: 6 labeled, 4 unlabeled, 0 validation", ""),
        (without_unlabeled, "warning", "fold 0: There are no unlabeled images", ""),  # fold 1 has some
        (preprocessed_by_other_plans, "problem", "folds 0, 1: The unlabeled images in", ""),
        (one_unlabeled_image_more, "warning", "folds 0, 1: Images in imagesUn are not preprocessed", ""),
        (unlabeled_case_that_validates, "problem", "folds 0, 1: Unlabeled images are also labeled cases", ""),
        (not_preprocessed, "problem", "not preprocessed", "nnUNetv2_preprocess -d 901 -c 3d_fullres -plans_name"),
        (lost_case, "problem", "folds 0, 1: splits_final.json names cases that are not preprocessed (case_0)", "corr"),
        (lost_unused_case, "warning", "5 labeled cases preprocessed, but 6 in dataset.json", "nnUNetv2_preprocess"),
        (other_network, "problem", "The plans ask for the network 'somewhere.Transformer'", ""),
        (network_of_two_stages, "problem", "The network of the plans has 2 stages", ""),
        (no_training_case, "problem", "fold 0: no labeled training case", "add some"),
        (trained_on_validation_cases, "warning", "fold 0: training cases are validation cases, too (case_3)", "corr"),
    ],
)
def test_defects_of_a_dataset(
    change: Callable[[TinyDataset], None], level: str, text: str, remedy: str, dataset: TinyDataset
) -> None:
    change(dataset)
    findings = find("3d_fullres", "901", "3d_fullres")
    assert [finding.level for finding in findings if finding.text.startswith(text)] == [level]
    assert next(finding.remedy for finding in findings if finding.text.startswith(text)).startswith(remedy)
    assert any(finding.level == "problem" for finding in findings) == (level == "problem")


def test_images_in_another_orientation(dataset: TinyDataset) -> None:
    for file in dataset.labeled_folder().glob("*.pkl"):
        properties = pickle.loads(file.read_bytes())
        properties["sitk_stuff"]["direction"] = (0, 1, 0, 1, 0, 0, 0, 0, 1)
        file.write_bytes(pickle.dumps(properties))
    [finding] = [one for one in find(dataset.name, "901", "3d_fullres") if one.level == "warning"]
    assert finding.text.startswith("unlabeled images in another orientation than every labeled one (image_0, image_1")
    assert finding.remedy.startswith("convert them, or set")


def test_a_mask_that_the_ignore_label_enlarges(dataset: TinyDataset) -> None:
    plans = json.loads(dataset.plans_file.read_text())
    plans["configurations"]["3d_fullres"]["use_mask_for_norm"] = [True]
    dataset.plans_file.write_text(json.dumps(plans))
    text = "takes voxels with the ignore label for inside"
    assert not [finding for finding in find("3d_fullres", "901", "3d_fullres") if text in finding.text]
    description = json.loads((dataset.preprocessed / "dataset.json").read_text())
    description["labels"]["ignore"] = 3
    (dataset.preprocessed / "dataset.json").write_text(json.dumps(description))
    [finding] = [finding for finding in find("3d_fullres", "901", "3d_fullres") if text in finding.text]
    assert finding.level == "warning"


def test_one_fit_configuration_is_enough(dataset: TinyDataset, capsys: pytest.CaptureFixture) -> None:
    not_preprocessed(dataset)
    assert texts(find("3d_fullres", "901")) == ["warning: not preprocessed"]
    main(["doctor", "-d", "901"])
    with pytest.raises(SystemExit) as stop:
        main(["doctor", "-d", "901", "-c", "3d_fullres"])
    assert stop.value.code == 1
    shutil.rmtree(dataset.labeled_folder("2d"))
    assert texts(find("2d", "901")) == ["problem: not preprocessed"]


@pytest.mark.parametrize("content", ["no json", '{"train": []}', '[{"train": ["case_0"]}]', '["case_0"]'])
def test_broken_splits(content: str, dataset: TinyDataset) -> None:
    dataset.splits_file.write_text(content)
    assert texts(find("dataset 901", "901"))[0].startswith(f"problem: {dataset.splits_file} is not a list of")


def test_unknown_dataset_and_plans(dataset: TinyDataset) -> None:
    assert levels("902")["dataset 902"] == "problem"
    assert texts(find("dataset 901", "901", None, "Other"))[0].startswith("problem: There are no plans Other.json")


def test_report_is_aligned_and_counts() -> None:
    report = format_findings([Finding("ok", "a", "fine"), Finding("problem", "longer", "bad", "do this")])
    assert report.splitlines() == [
        "ok       a       fine",
        "problem  longer  bad",
        "                 -> do this",
        "",
        "1 problem, no warnings",
    ]
