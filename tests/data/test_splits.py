import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
from helpers import make_trainer
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.crossval_split import generate_crossval_split

from nnunetv2_micd.benchmark.folds import budget_entry, tuning_entry
from nnunetv2_micd.data.budgets import add_budget_splits
from nnunetv2_micd.data.dataset import Dataset
from nnunetv2_micd.data.groups import load_groups
from nnunetv2_micd.data.preprocessing import preprocess_unlabeled
from nnunetv2_micd.data.splits import default_splits, load_splits, lock_splits
from nnunetv2_micd.methods.mean_teacher import nnUNetTrainerMeanTeacher
from nnunetv2_micd.utils.locks import hold_lock


@pytest.fixture
def read(dataset):
    return lambda: json.loads(dataset.splits_file.read_text())


def test_default_entries_are_those_of_nnunet(dataset, read):
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    dataset.splits_file.unlink()
    add_budget_splits(dataset.name, "2")
    ours = read()
    dataset.splits_file.unlink()
    trainer = SimpleNamespace(
        dataset_class=nnUNetDatasetBlosc2,
        fold=0,
        preprocessed_dataset_folder=str(dataset.labeled_folder()),
        preprocessed_dataset_folder_base=str(dataset.preprocessed),
        folder_with_segs_from_previous_stage=None,
        print_to_log_file=lambda *_: None,
    )
    nnUNetTrainer.do_split(trainer)
    assert ours[:5] == read()
    assert len(ours) == 6


@pytest.mark.parametrize("number", [5, 6, 9, 10, 23, 101])
def test_default_entries_of_any_number_of_cases(number):
    cases = [f"case_{i:03d}" for i in range(number)]
    assert default_splits(cases) == generate_crossval_split(cases, seed=12345, n_splits=5)


def test_entries_are_appended_and_not_twice(dataset, read):
    before = read()
    first = add_budget_splits(dataset.name, "2", seeds=[0, 1])
    assert [(fold, seed) for fold, seed, _ in first] == [(2, 0), (3, 1)]
    after = read()
    assert after == [*before, first[0][2], first[1][2]]
    modified = dataset.splits_file.stat().st_mtime_ns
    assert add_budget_splits(dataset.name, "2", seeds=[1]) == [first[1]]
    assert read() == after
    assert dataset.splits_file.stat().st_mtime_ns == modified


def test_budgets_nest_and_share_the_validation_cases(dataset):
    splits = [add_budget_splits(dataset.name, count, [seed])[0][2] for count in ("1", "3") for seed in range(4)]
    assert len({tuple(entry["val"]) for entry in splits}) == 1
    for entry in splits:
        assert sorted(entry["train"] + entry["val"] + entry["unlabeled"]) == list(dataset.labeled)
    for small, large in zip(splits[:4], splits[4:], strict=True):
        assert set(small["train"]) < set(large["train"])
    assert len({tuple(entry["train"]) for entry in splits[:4]}) > 1


@pytest.mark.parametrize(
    ("count", "fraction", "sizes"),
    [("2", 0.2, (2, 3, 1)), ("40%", 0.2, (2, 3, 1)), ("1%", 0.5, (1, 2, 3)), ("50.0%", 0.34, (2, 2, 2))],
)
def test_counts(dataset, count, fraction, sizes):
    entry = add_budget_splits(dataset.name, count, val_fraction=fraction)[0][2]
    assert (len(entry["train"]), len(entry["unlabeled"]), len(entry["val"])) == sizes


@pytest.mark.parametrize("count", ["0", "-1", "0%", "-5%", "two", "2.5", "%", "nan%", "inf%", ""])
def test_counts_that_are_no_numbers(dataset, count, read):
    before = read()
    with pytest.raises(ValueError, match=f'must be like "6" or "10%", not "{count}"'):
        add_budget_splits(dataset.name, count)
    assert read() == before


@pytest.mark.parametrize("count", ["5", "6", "100%"])
def test_budgets_that_leave_nothing_unlabeled(dataset, count):
    with pytest.raises(
        ValueError, match=f"{count} labeled cases leave none whose labels could be hidden: .* there are 5"
    ):
        add_budget_splits(dataset.name, count)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_validation_fractions_outside_0_to_1(dataset, fraction):
    with pytest.raises(ValueError, match=f"between 0 and 1, not {fraction}"):
        add_budget_splits(dataset.name, "2", val_fraction=fraction)


def test_not_preprocessed_yet(dataset):
    for folder in (dataset.labeled_folder("2d"), dataset.labeled_folder()):
        for file in folder.iterdir():
            file.unlink()
    with pytest.raises(
        FileNotFoundError, match=r"no preprocessed cases .* nnUNetv2_preprocess -d 901 -plans_name nnUNetPlans"
    ):
        add_budget_splits(dataset.name, "2")


def test_configurations_with_different_cases(dataset):
    (dataset.labeled_folder("2d") / "case_0.b2nd").unlink()
    with pytest.raises(ValueError, match=r"nnUNetPlans_2d and nnUNetPlans_3d_fullres .* different cases \(5 and 6\)"):
        add_budget_splits(dataset.name, "2")


@pytest.mark.parametrize("number", [2, 3, 4])
def test_each_of_few_cases_is_validated_once(number, dataset, read):
    keep_labeled(dataset, number)
    cases = sorted(dataset.labeled)[:number]
    trainer = make_trainer(nnUNetTrainerMeanTeacher, dataset, fold=number - 1)
    assert trainer.do_split() == (cases[:-1], cases[-1:])
    assert read() == [{"train": [c for c in cases if c != case], "val": [case]} for case in cases]
    assert nnUNetTrainer.do_split(make_trainer(nnUNetTrainer, dataset)) == (cases[1:], cases[:1])


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_few_cases_are_trained_on(number, dataset):
    keep_labeled(dataset, number)
    for fold in ("all", 0):
        trainer = make_trainer(nnUNetTrainerMeanTeacher, dataset, "2d", fold)
        if (number, fold) == (1, 0):
            with pytest.raises(ValueError, match=r"There is 1 labeled case, .*; train with it as fold all"):
                trainer.run_training()
            assert not dataset.splits_file.exists()
        else:
            trainer.run_training()
            assert trainer.iteration == 4


def test_preprocessing_makes_the_folds_of_few_cases(dataset, read, capsys):
    keep_labeled(dataset, 3)
    assert preprocess_unlabeled(Dataset.find(dataset.name), num_processes=1) == []
    assert "splits_final.json: 3 folds of 3 labeled cases" in capsys.readouterr().out
    assert len(read()) == 3


@pytest.mark.parametrize("is_there", [True, False])
def test_nnunet_gets_folds_of_few_cases_without_unlabeled_images(is_there, dataset, read, capsys):
    keep_labeled(dataset, 3)
    shutil.rmtree(dataset.images)
    if is_there:
        dataset.images.mkdir()
    assert preprocess_unlabeled(Dataset.find(dataset.name), num_processes=1) == []
    assert "3 folds of 3 labeled cases" in capsys.readouterr().out
    assert nnUNetTrainer.do_split(make_trainer(nnUNetTrainer, dataset)) == (read()[0]["train"], read()[0]["val"])


@pytest.mark.parametrize("size", [2, 3])  # three groups, two groups
def test_folds_do_not_divide_groups(size, dataset, read):
    write_groups(dataset.raw, {f"case_{i}": f"patient_{i // size}" for i in range(6)})
    dataset.splits_file.unlink()
    trainer = make_trainer(nnUNetTrainerMeanTeacher, dataset)
    assert trainer.do_split() == (list(dataset.labeled[size:]), list(dataset.labeled[:size]))
    assert len(read()) == 6 // size
    assert nnUNetTrainer.do_split(make_trainer(nnUNetTrainer, dataset)) == trainer.do_split()


def test_a_fold_beyond_those_that_will_be_made_is_refused(dataset):
    dataset.splits_file.unlink()
    for fold, message in ((5, "no fold 5, but folds 0 to 4"), (-1, "no fold -1")):
        trainer = make_trainer(nnUNetTrainerMeanTeacher, dataset, fold=fold)
        with pytest.raises(ValueError, match=message):
            trainer.get_tr_and_val_datasets()
    assert not dataset.splits_file.exists()


def test_preprocessing_makes_the_folds_of_groups(dataset, capsys):
    write_groups(dataset.raw, {f"case_{i}": f"patient_{i // 2}" for i in range(6)})
    dataset.splits_file.unlink()
    preprocess_unlabeled(Dataset.find(dataset.name), num_processes=1)
    assert "3 folds of 6 labeled cases in 3 groups" in capsys.readouterr().out
    dataset.splits_file.unlink()
    kept = (dataset.preprocessed / "groups.json").read_text()
    write_groups(dataset.raw, {"case_0": "a"})
    with pytest.raises(ValueError, match="gives these cases no group"):
        preprocess_unlabeled(Dataset.find(dataset.name), num_processes=1)
    assert (dataset.preprocessed / "groups.json").read_text() == kept
    write_groups(dataset.raw, {f"case_{i}": f"patient_{i // 3}" for i in range(6)})
    dataset.images.rename(dataset.raw / "elsewhere")
    assert preprocess_unlabeled(Dataset.find(dataset.name), num_processes=1) == []
    printed = capsys.readouterr().out
    assert "2 folds of 6 labeled cases in 2 groups" in printed
    assert "no unlabeled images in" in printed
    with pytest.raises(FileNotFoundError, match="no folder"):
        preprocess_unlabeled(Dataset.find(dataset.name), num_processes=1)


def test_folds_are_of_the_configuration_with_all_labels(dataset, read):
    """Labels were added, and only one configuration was preprocessed again."""
    dataset.splits_file.unlink()
    for case in dataset.labeled[3:]:
        (dataset.labeled_folder("2d") / f"{case}.b2nd").unlink()
    write_groups(dataset.raw, {case: case if i > 1 else "pair" for i, case in enumerate(dataset.labeled)})
    preprocess_unlabeled(Dataset.find(dataset.name), ["3d_fullres"], num_processes=1)
    assert sorted(case for entry in read() for case in entry["val"]) == sorted(dataset.labeled)


def test_five_folds_of_many_groups():
    groups = {f"case_{i:02d}": f"patient_{i // 3}" for i in range(21)}
    folds = default_splits(sorted(groups), groups)
    assert len(folds) == 5
    assert sorted(case for entry in folds for case in entry["val"]) == sorted(groups)
    for entry in folds:
        assert {groups[case] for case in entry["train"]}.isdisjoint(groups[case] for case in entry["val"])
        assert sorted([*entry["train"], *entry["val"]]) == sorted(groups)
    alone = {case: case for case in groups}
    assert default_splits(sorted(groups), alone) == default_splits(sorted(groups))
    with pytest.raises(ValueError, match="There is 1 group of labeled cases"):
        default_splits(["a", "b"], {"a": "one", "b": "one"})


def keep_labeled(dataset, number):
    dataset.splits_file.unlink()
    for case in dataset.labeled[number:]:
        for configuration in ("2d", "3d_fullres"):
            for file in dataset.labeled_folder(configuration).glob(f"{case}*"):
                file.unlink()


def test_a_failed_write_keeps_the_old_file(dataset, monkeypatch, read):
    def fail(*_):
        raise OSError("disk full")

    before = read()
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        add_budget_splits(dataset.name, "2")
    assert read() == before
    assert not list(dataset.preprocessed.glob("splits_final.json.*"))


def test_a_damaged_file_is_named(dataset):
    dataset.splits_file.write_text("[{")
    with pytest.raises(ValueError, match=r"splits_final\.json is not valid JSON"):
        add_budget_splits(dataset.name, "2")


def write_groups(folder, groups):
    (folder / "groups.json").write_text(json.dumps(groups))


def test_groups_are_counted_and_never_divided(dataset, read):
    pairs = {f"case_{i}": f"patient_{i // 2}" for i in range(6)}
    write_groups(dataset.raw, pairs)
    for _, _, entry in add_budget_splits(dataset.name, "1", seeds=[0, 1, 2], val_fraction=0.3):
        assert {len(cases) for cases in entry.values()} == {2}
        assert all(len({pairs[case] for case in cases}) == 1 for cases in entry.values())
    with pytest.raises(ValueError, match=r"groups of cases leave none whose labels could be hidden.* there are 2"):
        add_budget_splits(dataset.name, "2", val_fraction=0.3)


def test_groups_go_with_the_splits(dataset, monkeypatch):
    """Machines for training may have no raw data."""
    groups = {f"case_{i}": f"patient_{i // 2}" for i in range(6)}
    write_groups(dataset.raw, groups)
    add_budget_splits(dataset.name, "1", val_fraction=0.3)
    with monkeypatch.context() as elsewhere:
        elsewhere.delenv("nnUNet_raw")
        assert load_groups(dataset.name) == groups
    changed = {**groups, "case_5": "patient_0"}
    write_groups(dataset.raw, changed)
    assert load_groups(dataset.name) == changed


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '{"case_0": "a"}',
            "gives these cases no group: case_1.*add them, or delete the file in the raw dataset and in",
        ),
        ("[]", 'is not of the form {"case": "group"'),
        ('{"case_0": 1}', 'is not of the form {"case": "group"'),
        ("{", "not valid JSON"),
    ],
)
def test_wrong_groups_are_named(dataset, content, message):
    (dataset.raw / "groups.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        add_budget_splits(dataset.name, "1")


def test_a_benchmark_and_its_tuning_draw_groups(dataset):
    pairs = {f"case_{i}": f"patient_{i // 2}" for i in range(6)}
    write_groups(dataset.raw, pairs)
    found, cases = Dataset.find(dataset.name), sorted(pairs)
    entry = budget_entry(found, cases, "1", seed=0, val_fraction=0.3)
    assert {len(part) for part in entry.values()} == {2}
    everything = budget_entry(found, cases, "all", seed=0, val_fraction=0.3)
    assert sorted(everything["train"]) == sorted([*entry["train"], *entry["unlabeled"]])
    with pytest.raises(ValueError, match="leaves too few for the validation"):  # it needs three groups
        tuning_entry(found, cases, "1", seed=0, val_fraction=0.3)


def test_processes_at_the_same_time_lose_no_fold(dataset, read):
    script = (
        "import sys; from nnunetv2_micd.data.budgets import add_budget_splits\n"
        "seeds = [int(seed) for seed in sys.argv[2:]]\n"
        "for seed in seeds: print(add_budget_splits(sys.argv[1], '2', [seed])[0][0])"
    )
    seeds = [range(0, 10), range(10, 20), range(20, 30)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, dataset.name, *map(str, part)], stdout=subprocess.PIPE, text=True
        )
        for part in seeds
    ]
    promised = [[int(line) for line in process.communicate()[0].split()] for process in processes]
    splits = read()
    for part, folds in zip(seeds, promised, strict=True):
        assert len(folds) == 10
        for seed, fold in zip(part, folds, strict=True):
            assert add_budget_splits(dataset.name, "2", [seed])[0][0] == fold
    assert read() == splits


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"unlabelled": ["case_5"]}, '"unlabelled", which is spelled "unlabeled"'),
        ({"Train": []}, '"Train", which is spelled "train"'),
        ({"train": ["case_0", "case_0"]}, r'"train" of fold 0 .* names cases twice \(case_0\)'),
        ({"unlabeled": ["case_5"] * 3}, r'"unlabeled" of fold 0 .* names cases twice \(case_5\)'),
    ],
)
def test_misspelt_keys_and_repeated_cases_are_named(entry, message, tmp_path):
    file = tmp_path / "splits_final.json"
    file.write_text(json.dumps([{"train": ["case_0"], "val": ["case_3"], "seed": 1, "note": "mine"} | entry]))
    with pytest.raises(ValueError, match=message):
        load_splits(file)


def test_a_link_to_the_folds_stays_one(dataset, read):
    shared = dataset.root / "shared.json"
    dataset.splits_file.rename(shared)
    dataset.splits_file.symlink_to(shared)
    before = len(read())
    add_budget_splits(dataset.name, "2", seeds=(7,))
    assert dataset.splits_file.is_symlink()
    assert len(json.loads(shared.read_text())) == len(read()) == before + 1
    lock_of_all = hold_lock(shared.with_name(".shared.json.lock"), "changing it", wait=0)
    with lock_splits(dataset.splits_file), pytest.raises(BlockingIOError), lock_of_all:
        pass


def test_folds_that_are_there_are_listed_without_a_lock(dataset, monkeypatch):
    """As on a disk that is read-only."""
    made = add_budget_splits(dataset.name, "2", seeds=(0, 1))
    monkeypatch.setattr("nnunetv2_micd.data.budgets.lock_splits", lambda path: pytest.fail("it was locked"))
    assert add_budget_splits(dataset.name, "2", seeds=(0, 1)) == made


def test_groups_of_raw_data_that_may_not_be_entered(dataset, monkeypatch):
    groups = dict.fromkeys(dataset.labeled, "patient")
    (dataset.preprocessed / "groups.json").write_text(json.dumps(groups))

    def is_file(path):
        if dataset.raw in path.parents:
            raise PermissionError(path)
        return os.path.isfile(path)

    monkeypatch.setattr("pathlib.Path.is_file", is_file)
    assert load_groups(dataset.name) == groups
