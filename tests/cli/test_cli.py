import subprocess
import sys

import pytest

from nnunetv2_micd import TRAINER_FOLDER
from nnunetv2_micd.cli.main import main
from nnunetv2_micd.ext_trainers import nnunetv2_micd_trainers as exported


def test_path_prints_the_folder_only_and_imports_little():
    code = (
        "import sys; from nnunetv2_micd.cli.main import main; main(['path']); "
        "sys.exit(str({'torch', 'nnunetv2', 'numpy'} & set(sys.modules) or ''))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.stdout, result.stderr.strip()) == (TRAINER_FOLDER + "\n", "")


def test_list_says_what_each_trainer_is(capsys):
    main(["list"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == exported.__all__
    assert all(line.endswith(".") and len(line.split()) > 2 for line in lines)
    start = lines[exported.__all__.index("nnUNetTrainerMICD")].index("MICD: two different networks")
    assert all(line[start - 2 : start] == "  " and line[start] != " " for line in lines)


def test_split_prints_the_folds_and_the_commands(dataset, capsys):
    main(["split", "-d", "901", "-n", "40%", "--seeds", "0", "7", "--val", "0.34"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[:3]] == [
        ["fold", "seed", "labeled", "unlabeled", "val"],
        ["2", "0", "2", "2", "2"],
        ["3", "7", "2", "2", "2"],
    ]
    assert lines[-1] == "nnUNetv2_train 901 3d_fullres 3 -tr nnUNetTrainerMICD"


def test_preprocess_lists_failures_and_exits_with_1(dataset, capsys):
    (dataset.images / "bad_0000.nii.gz").write_text("no image")
    with pytest.raises(SystemExit) as stop:
        main(["preprocess", "-d", dataset.name, "-c", "2d", "3d_fullres", "-np", "1"])
    assert stop.value.code == "error: 2 images could not be preprocessed"
    printed = capsys.readouterr()
    assert "2d: 0 images preprocessed, 4 were done before, 1 failed" in printed.out
    assert "3d_fullres, bad: RuntimeError" in printed.err


def test_preprocess_passes_its_options_on(monkeypatch):
    calls = []
    monkeypatch.setattr(
        "nnunetv2_micd.data.preprocessing.preprocess_unlabeled", lambda *given: calls.append(given) or []
    )
    main(["preprocess", "-d", "4", "-c", "2d", "3d_fullres", "-p", "Other", "-i", "a", "b", "-np", "3", "--overwrite"])
    assert calls == [("4", ["2d", "3d_fullres"], "Other", ["a", "b"], 3, True)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("split -d 901 -n 99", "error: 99 labeled cases leave none unlabeled"),
        ("preprocess -d 902", "error: There must be one dataset with the number 902"),
        ("preprocess -d 901 -np 0", "error: The number of processes must be at least 1, not 0"),
        ("doctor -c 2d", "error: The configuration 2d can only be checked together with a dataset"),
        ("export -d 901 -c 2d -f 0 -o new", "error: There is no such training in "),
    ],
)
def test_user_errors_are_one_line(dataset, arguments, message):
    with pytest.raises(SystemExit) as stop:
        main(arguments.split())
    assert str(stop.value.code).startswith(message)
    assert "\n" not in str(stop.value.code)


def test_an_error_is_no_traceback(dataset):
    result = subprocess.run(
        [sys.executable, "-m", "nnunetv2_micd", "split", "-d", "902", "-n", "2"], capture_output=True, text=True
    )
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in result.stderr
