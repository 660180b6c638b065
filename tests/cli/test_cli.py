import errno
import inspect
import os
import subprocess
import sys
import warnings
from types import ModuleType

import pytest
from helpers import TinyDataset

from nnunetv2_micd import TRAINER_FOLDER, __version__
from nnunetv2_micd.benchmark import CONTROLS
from nnunetv2_micd.cli import list_trainers
from nnunetv2_micd.cli.main import COMMANDS, errors_in_one_sentence, main, make_parser
from nnunetv2_micd.data.preprocessing import Part
from nnunetv2_micd.ext_trainers import nnunetv2_micd_trainers as exported

Capture = pytest.CaptureFixture[str]
TUNE = "tune -d 901 -c 2d -tr nnUNetTrainerMICD -n 2 -device cpu"


def test_path_prints_the_folder_only() -> None:
    result = subprocess.run([sys.executable, "-m", "nnunetv2_micd", "path"], capture_output=True, text=True)
    assert (result.stdout, result.stderr.strip()) == (TRAINER_FOLDER + "\n", "")


def test_version(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert (stop.value.code, capsys.readouterr().out) == (0, f"nnunetv2_micd {__version__}\n")


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.__name__)
def test_every_command_has_help(command: ModuleType, capsys: Capture) -> None:
    name = command.__name__.rpartition(".")[2].removesuffix("_trainers")
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    assert f"usage: nnUNetv2_micd {name} " in capsys.readouterr().out


def test_the_example_of_every_help_is_a_command() -> None:
    parser = make_parser()
    (commands,) = (action.choices for action in parser._actions if isinstance(action.choices, dict))
    examples = {name: command.epilog for name, command in commands.items() if command.epilog}
    assert commands.keys() - examples.keys() == {"path", "list"}  # which have no options
    for name, example in examples.items():
        start, program, *words = example.split()
        assert (start, program, words[0]) == ("Example:", "nnUNetv2_micd", name)
        parser.parse_args(words)


def test_list_says_what_each_trainer_is(capsys: Capture) -> None:
    main(["list"])
    groups: dict[str, dict[str, str]] = {}
    title = ""
    for line in capsys.readouterr().out.splitlines():
        if line.startswith("  "):
            name, sentence = line.split(maxsplit=1)
            groups[title][name] = sentence
            assert line.index(sentence) == 2 + max(map(len, exported.__all__)) + 2
        else:
            title = line
            groups[title] = {}
    assert list(groups) == [f"{title}:" for title in list_trainers.GROUPS.values()]
    recommended, variants, methods, reconstructions, controls = groups.values()
    assert sorted(name for group in groups.values() for name in group) == sorted(exported.__all__)
    assert all(sentence.endswith(".") for group in groups.values() for sentence in group.values())
    assert list(recommended) == ["nnUNetTrainerSelfTraining"]
    assert variants["nnUNetTrainerMICD"].startswith("MICD: two different networks")
    assert {"nnUNetTrainerMICD_paper", "nnUNetTrainerMICD_50epochs"} <= set(variants)
    assert {"nnUNetTrainerMeanTeacher", "nnUNetTrainerM3HL"} <= set(methods)
    assert "nnUNetTrainerTransMedSeg" in reconstructions
    assert set(controls) == {
        "nnUNetTrainerEMA",
        "nnUNetTrainerBCP_LabeledOnly",
        "nnUNetTrainerBCP_half_LabeledOnly",
        "nnUNetTrainerMICD_SupervisedOnly",
        "nnUNetTrainerSelfTraining_LabeledOnly",
    }


def test_list_reads_from_the_sources_what_python_knows_of_the_classes() -> None:
    summaries = {}
    for name in exported.__all__:
        summary = (inspect.getdoc(getattr(exported, name)) or "").partition("\n\n")[0]
        summaries[name] = " ".join(summary.split())
    assert list_trainers.read_summaries() == summaries


def test_split_prints_the_folds_and_the_commands(dataset: TinyDataset, capsys: Capture) -> None:
    main(["split", "-d", "901", "-n", "40%", "--seeds", "0", "7", "--val", "0.34"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[:3]] == [
        ["fold", "seed", "labeled", "unlabeled", "val"],
        ["2", "0", "2", "2", "2"],
        ["3", "7", "2", "2", "2"],
    ]
    assert lines[-1] == "nnUNetv2_train 901 3d_fullres 3 -tr nnUNetTrainerSelfTraining"


def test_split_says_which_seeds_label_the_same_cases(dataset: TinyDataset, capsys: Capture) -> None:
    main(["split", "-d", "901", "-n", "1", "--seeds", *map(str, range(6)), "--val", "0.6"])  # one of two cases
    printed = capsys.readouterr().out
    assert len({line for line in printed.splitlines() if line.startswith("nnUNetv2_train")}) == 2
    assert printed.count("nnUNetv2_train") == 2
    assert printed.count("the cases of seed") == 4


def test_preprocess_lists_failures_and_exits_with_1(dataset: TinyDataset, capsys: Capture) -> None:
    (dataset.images / "bad_0000.nii.gz").write_text("no image")
    with pytest.raises(SystemExit) as stop:
        main(["preprocess", "-d", dataset.name, "-c", "2d", "3d_fullres", "-np", "1"])
    assert stop.value.code == "error: 1 image could not be preprocessed"
    printed = capsys.readouterr()
    assert "2d: 0 images preprocessed, 4 were done before, 1 failed" in printed.out
    assert "3d_fullres, bad: cannot be read (RuntimeError" in printed.err


def test_preprocess_passes_its_options_on(dataset: TinyDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def record(planned: object, **options: object) -> list[object]:
        calls.append((planned.name, planned.plans.plans_name, options))
        return []

    dataset.plans_file.with_name("Other.json").write_text(
        dataset.plans_file.read_text().replace("nnUNetPlans", "Other")
    )
    monkeypatch.setattr("nnunetv2_micd.data.preprocessing.preprocess_unlabeled", record)
    main(
        [
            *("preprocess", "-d", "901", "-c", "2d", "3d_fullres", "-p", "Other", "-i", "a", "b", "-np", "3"),
            *("--overwrite", "-num_parts", "4", "-part_id", "2"),
        ]
    )
    options = {
        "configurations": ["2d", "3d_fullres"],
        "folders": ["a", "b"],
        "num_processes": 3,
        "overwrite": True,
        "part": Part(2, of=4),
    }
    assert calls == [(dataset.name, "Other", options)]


@pytest.mark.parametrize(("option", "trainers"), [("", ["A"]), ("--controls", ["A", "B", "C"])])
def test_controls_are_further_trainers(option: str, trainers: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    grids = []
    monkeypatch.setattr("nnunetv2_micd.benchmark.CONTROLS", ("B", "C"))
    monkeypatch.setattr("nnunetv2_micd.benchmark.run_benchmark", lambda grid, **_: grids.append(grid))
    main(["benchmark", *f"-d 4 -c 2d -n 6 -tr A {option}".split()])
    assert [grid.trainers for grid in grids] == [trainers]


def test_the_help_names_the_controls(capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        main(["benchmark", "--help"])
    assert set(CONTROLS) <= {word.strip(",;") for word in capsys.readouterr().out.split()}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("split -d 901 -n 2 --seeds 0 0 1", "error: A seed is given twice (0 0 1)"),
        ("split -d 901 -n 99", "error: 99 labeled cases leave none whose labels could be hidden"),
        ("preprocess -d 902", "error: There is no dataset with the number 902"),
        ("preprocess -d 901 -np 0", "error: The number of processes must be at least 1, not 0"),
        ("doctor -c 2d", "error: The configuration 2d can only be checked together with a dataset"),
        ("export -d 901 -c 2d -f 0 -o new", "error: There is no such training in "),
        (f"{TUNE} --weights 0", 'error: A weight must be a positive number such as "3" or "1/3", not "0"'),
        (f"{TUNE} --weights abc", 'error: A weight must be a positive number such as "3" or "1/3", not "abc"'),
        (f"{TUNE} --weights 1/3 3", "error: The weights to choose from must be 1, the published one, and others"),
        (f"{TUNE} -tr nnUNetTrainer", "error: nnUNetTrainer uses no unlabeled images"),
        (TUNE.replace("tune", "benchmark") + " --tuned", "error: nnUNetTrainerMICD has not been tuned with 2 labeled"),
    ],
)
def test_user_errors_are_one_line(dataset: TinyDataset, arguments: str, message: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments.split())
    assert str(stop.value.code).startswith(message)
    assert "\n" not in str(stop.value.code)


def test_an_error_is_no_traceback(dataset: TinyDataset) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "nnunetv2_micd", "split", "-d", "902", "-n", "2"], capture_output=True, text=True
    )
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in result.stderr


def test_warnings_of_torch_about_its_future_are_not_shown(capsys: Capture) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        main(["list"])
        for module in ("torch.cuda", "torch", "torchmetrics"):
            warnings.warn_explicit("old", FutureWarning, f"{module}.py", 1, module=module)
        warnings.warn_explicit("wrong", UserWarning, "torch.py", 1, module="torch")
    assert [(warning.filename, warning.category) for warning in caught] == [
        ("torchmetrics.py", FutureWarning),
        ("torch.py", UserWarning),
    ]


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.EACCES, "Permission denied; change the permissions of this file or its folder"),
        (errno.EROFS, "Read-only file system; the place cannot be written to, choose another"),
        (errno.ENOSPC, "No space left on device; make room on the disk"),
    ],
)
def test_errors_of_the_system_say_what_to_do(number: int, remedy: str) -> None:
    with pytest.raises(SystemExit, match=rf"^error: /data/file: {remedy}"), errors_in_one_sentence():
        raise OSError(number, os.strerror(number), "/data/file")
    with pytest.raises(SystemExit, match=r"^error: our own words$"), errors_in_one_sentence():
        raise PermissionError("our own words")
