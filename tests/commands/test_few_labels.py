"""With one to four labeled cases the whole documented way works, and what cannot says in a sentence what to do."""

import json
import shutil

import pytest
from helpers import MICD, Shell, TinyDataset

pytestmark = pytest.mark.slow


@pytest.fixture
def shell(dataset: TinyDataset) -> Shell:
    return Shell(dataset)


def keep(dataset: TinyDataset, number: int) -> dict:
    """Leave some labeled cases, move the images of the others to imagesUn, and return the plans of what is removed."""
    for case in dataset.labeled[number:]:
        (dataset.raw / "labelsTr" / f"{case}.nii.gz").unlink()
        shutil.move(dataset.raw / "imagesTr" / f"{case}_0000.nii.gz", dataset.images)
    description = json.loads((dataset.raw / "dataset.json").read_text())
    (dataset.raw / "dataset.json").write_text(json.dumps({**description, "numTraining": number}))
    plans = json.loads(dataset.plans_file.read_text())
    shutil.rmtree(dataset.preprocessed)
    return plans


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_documented_way(number: int, configuration: str, shell: Shell) -> None:
    dataset = shell.dataset
    small = keep(dataset, number)
    command = f"nnUNetv2_plan_and_preprocess -d 901 -c {configuration} -np 1 -npfp 1 --verify_dataset_integrity"
    shell(command, nnUNet_n_proc_DA="1")
    planned = json.loads(dataset.plans_file.read_text())
    for name in planned["configurations"]:  # the same data with a network of seconds
        if name in small["configurations"]:
            for key in ("architecture", "patch_size", "batch_size"):
                planned["configurations"][name][key] = small["configurations"][name][key]
    dataset.plans_file.write_text(json.dumps(planned))
    shell(f"nnUNetv2_micd preprocess -d 901 -c {configuration} -np 1")
    advice = shell(f"nnUNetv2_micd doctor -d 901 -c {configuration}")
    assert f"with {number if number == 1 else number - 1} labeled and " in advice

    if number == 1:
        assert "train with fold all instead of 0" in advice
        output = shell.train(f"{configuration} 0", code=1)
        assert output.splitlines()[-1].endswith("train with it as fold all, or label another")
        folds = ["all"]
    else:
        folds = [str(fold) for fold in range(number)]
    shell.train(f"{configuration} all")
    if number > 1:
        shell.train_folds(configuration, number)
        options = f"-c {configuration} -tr {MICD} -f {' '.join(folds)}"
        shell(f"nnUNetv2_find_best_configuration 901 {options} --disable_ensembling -np 1")
    predicted = shell.predict(f"-c {configuration} -f {' '.join(folds)}")
    assert len(list(predicted.glob("*.nii.gz"))) == len(list(dataset.images.iterdir()))

    arguments = f"-d 901 -c {configuration} -tr {MICD} -device cpu --baseline nnUNetTrainer_short -n 1"
    if number < 3:
        for command in ("nnUNetv2_micd split -d 901 -n 1", f"nnUNetv2_micd benchmark {arguments}"):
            assert "error: " in shell(command, code=1).splitlines()[-1]
        if number == 2:  # all labels of a fold, the rest of the images unlabeled
            shell(f"nnUNetv2_micd benchmark {arguments.replace('-n 1', '-n f0')}")
    else:
        shell("nnUNetv2_micd split -d 901 -n 1")
        shell(f"nnUNetv2_micd benchmark {arguments}")
        report = dataset.root / "report"
        shell(f"nnUNetv2_micd report -d 901 -c {configuration} --baseline nnUNetTrainer_short -o {report}")
        assert (report / "report.html").is_file()
