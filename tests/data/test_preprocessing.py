import errno
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import blosc2
import numpy as np
import pytest
import SimpleITK as sitk
from helpers import make_volume, write_image

from nnunetv2_micd.data import preprocessing, preprocessing_job
from nnunetv2_micd.data.dataset import Dataset
from nnunetv2_micd.data.preprocessed import list_preprocessed
from nnunetv2_micd.data.preprocessing import Failure, Part, preprocess_unlabeled
from nnunetv2_micd.data.unlabeled import find_unlabeled_cases
from nnunetv2_micd.utils.locks import hold_lock


def load(folder, case):
    return blosc2.open(str(folder / f"{case}.b2nd"), mode="r")[...]


def snapshot(folder):
    """Return the time of each file but the record of the sources, which each run writes."""
    return {file.name: file.stat().st_mtime_ns for file in folder.iterdir() if file.name != "sources.json"}


def run(dataset, **options):
    return preprocess_unlabeled(Dataset.find(dataset.id), ["3d_fullres"], num_processes=1, **options)


def add_image(dataset, case, seed=0):
    write_image(dataset.images / f"{case}_0000.nii.gz", make_volume(seed, (20, 22, 26))[0])


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_preprocesses_as_nnunet_does_the_labeled_cases(dataset, configuration):
    for case in dataset.labeled:
        shutil.copy(dataset.raw / "imagesTr" / f"{case}_0000.nii.gz", dataset.images / f"copy_of_{case}_0000.nii.gz")
    labeled, unlabeled = dataset.labeled_folder(configuration), dataset.unlabeled_folder(configuration)
    before = snapshot(labeled)
    assert preprocess_unlabeled(Dataset.find(dataset.name), [configuration], num_processes=1) == []
    for case in dataset.labeled:
        np.testing.assert_array_equal(load(unlabeled, f"copy_of_{case}"), load(labeled, case))
    properties = pickle.loads((unlabeled / "copy_of_case_0.pkl").read_bytes())
    assert "class_locations" not in properties
    assert snapshot(labeled) == before
    copies = [f"copy_of_{case}" for case in dataset.labeled]
    names = {f"{case}{ending}" for case in (*dataset.unlabeled, *copies) for ending in (".b2nd", ".pkl")}
    assert snapshot(unlabeled).keys() == names | {"unlabeled.json"}


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_files_are_those_that_nnunet_writes_without_a_segmentation(dataset, tmp_path, configuration):
    planned = Dataset.find(dataset.id)
    manager = planned.configuration(configuration)
    preprocessor = manager.preprocessor_class(verbose=False)
    for case in dataset.unlabeled:
        files = [str(dataset.images / f"{case}_0000.nii.gz")]
        preprocessor.run_case_save(str(tmp_path / case), files, None, planned.plans, manager, planned.dataset_json)
        folder = dataset.unlabeled_folder(configuration)
        assert (folder / f"{case}.pkl").read_bytes() == (tmp_path / f"{case}.pkl").read_bytes()
        # the files themselves may differ: the threads that compress a chunk write its blocks in any order
        ours, nnunets = (blosc2.open(str(path / f"{case}.b2nd"), mode="r") for path in (folder, tmp_path))
        assert ours[...].tobytes() == nnunets[...].tobytes()
        for name in ("shape", "dtype", "chunks", "blocks"):
            assert getattr(ours, name) == getattr(nnunets, name)
        for name in ("codec", "clevel", "filters", "typesize"):
            assert getattr(ours.cparams, name) == getattr(nnunets.cparams, name)


def test_never_reads_a_label(dataset, monkeypatch):
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    def fail(*_):
        raise AssertionError("a label was read")

    monkeypatch.setattr(SimpleITKIO, "read_seg", fail)
    for folder in (dataset.raw / "labelsTr", dataset.raw / "imagesTr", dataset.preprocessed / "gt_segmentations"):
        shutil.rmtree(folder)
    for file in dataset.labeled_folder().glob("*_seg.b2nd"):
        file.unlink()
    assert run(dataset, overwrite=True) == []


def test_skips_what_is_done_unless_told_to_overwrite(dataset, capsys):
    folder = dataset.unlabeled_folder()
    before = snapshot(folder)
    (folder / "image_1.b2nd").unlink()
    run(dataset)
    after = snapshot(folder)
    assert {name for name in after if after[name] != before[name]} == {"image_1.b2nd", "image_1.pkl"}
    assert "1 image preprocessed, 3 were done before, 0 failed" in capsys.readouterr().out
    extra = dataset.root / "extra"
    write_image(extra / "image_1_0000.nii.gz", make_volume(5, (9, 9, 9))[0])
    run(dataset, folders=[str(extra)], overwrite=True)
    overwritten = snapshot(folder)
    assert overwritten["image_1.b2nd"] != after["image_1.b2nd"]
    assert overwritten["image_0.b2nd"] == after["image_0.b2nd"]


def test_chooses_the_configurations_that_are_preprocessed(dataset):
    shutil.rmtree(dataset.labeled_folder("2d"))
    for configuration in ("2d", "3d_fullres"):
        shutil.rmtree(dataset.unlabeled_folder(configuration))
    plans = json.loads(dataset.plans_file.read_text())
    plans["configurations"]["3d_bs4"] = {"inherits_from": "3d_fullres", "batch_size": 4}  # has the same data
    dataset.plans_file.write_text(json.dumps(plans))
    assert preprocess_unlabeled(Dataset.find(dataset.id), num_processes=1) == []
    assert len(list(dataset.unlabeled_folder().glob("*.b2nd"))) == 4
    assert not dataset.unlabeled_folder("2d").exists()
    plans["configurations"] = {"3d_lowres": {"inherits_from": "2d", "data_identifier": "nnUNetPlans_3d_lowres"}} | {
        "2d": plans["configurations"]["2d"]
    }
    dataset.plans_file.write_text(json.dumps(plans))
    with pytest.raises(FileNotFoundError, match="nnUNetv2_preprocess -d 901 -plans_name nnUNetPlans"):
        preprocess_unlabeled(Dataset.find(dataset.id), num_processes=1)


def test_other_plans_are_refused_until_told_to_overwrite(dataset):
    before = load(dataset.unlabeled_folder(), "image_0")
    plans = json.loads(dataset.plans_file.read_text())
    plans["configurations"]["3d_fullres"]["normalization_schemes"] = ["RescaleTo01Normalization"]
    dataset.plans_file.write_text(json.dumps(plans))
    with pytest.raises(ValueError, match=r"preprocessed with other plans.* add --overwrite"):
        run(dataset)
    np.testing.assert_array_equal(load(dataset.unlabeled_folder(), "image_0"), before)
    (dataset.images / "image_3_0000.nii.gz").unlink()
    assert run(dataset, overwrite=True) == []
    assert load(dataset.unlabeled_folder(), "image_0").max() <= 1
    assert not (dataset.unlabeled_folder() / "image_3.b2nd").exists()  # it could not be made with these plans
    assert run(dataset) == []


def test_several_channels_and_folders(dataset):
    for file in (dataset.preprocessed / "dataset.json", dataset.plans_file):
        content = json.loads(file.read_text())
        if "channel_names" in content:
            content["modality"] = {"0": "MRI", "1": "MRI"}  # as older datasets name it
            del content["channel_names"]
        else:
            for configuration in content["configurations"].values():
                configuration.update(normalization_schemes=["ZScoreNormalization"] * 2, use_mask_for_norm=[False] * 2)
            content["foreground_intensity_properties_per_channel"]["1"] = {}
        file.write_text(json.dumps(content))
    folders = [dataset.root / "one", dataset.root / "two"]
    for folder, case, channels in (
        (folders[0], "both", (0, 1)),
        (folders[0], "first", (0,)),
        (folders[1], "gap_0000", (0, 2)),
        (folders[1], "three", (0, 1, 2)),
    ):
        for channel in channels:
            write_image(folder / f"{case}_{channel:04d}.nii.gz", make_volume(channel, (20, 22, 24))[0])
    assert run(dataset, folders=[str(folder) for folder in folders], overwrite=True) == [
        Failure(
            "first", "3d_fullres", "has the channels 0000, but needs 0000, 0001; export it with these, or remove it"
        ),
        Failure(
            "gap_0000",
            "3d_fullres",
            "has the channels 0000, 0002, but needs 0000, 0001; export it with these, or remove it",
        ),
        Failure(
            "three",
            "3d_fullres",
            "has the channels 0000, 0001, 0002, but needs 0000, 0001; export it with these, or remove it",
        ),
    ]
    assert load(dataset.unlabeled_folder(), "both").shape == (2, 20, 22, 24)


@pytest.mark.parametrize("scheme", ["ZScoreNormalization", "CTNormalization", "NoNormalization"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_one_nan_or_inf_voxel_is_found(dataset, scheme, value):
    plans = json.loads(dataset.plans_file.read_text())
    plans["configurations"]["3d_fullres"]["normalization_schemes"] = [scheme]
    dataset.plans_file.write_text(json.dumps(plans))
    description = json.loads((dataset.preprocessed / "dataset.json").read_text())
    description["file_ending"] = ".nrrd"  # of NIfTI files SimpleITK reads NaN and Inf as 0, so nnU-Net never sees them
    (dataset.preprocessed / "dataset.json").write_text(json.dumps(description))
    for file in dataset.images.iterdir():
        file.unlink()
    image = make_volume(0, (20, 22, 24))[0]
    write_image(dataset.images / "good_0000.nrrd", image)
    image[3, 4, 5] = value
    write_image(dataset.images / "bad_0000.nrrd", image)
    failures = run(dataset, overwrite=True)
    assert (dataset.unlabeled_folder() / "good.b2nd").exists()
    if (scheme, value) == ("CTNormalization", np.inf):  # which is clipped to the plans' range, like any bright voxel
        assert failures == []
    else:
        assert failures == [
            Failure("bad", "3d_fullres", "contains NaN or Inf values; copy or export it again, or remove it")
        ]
        assert not list(dataset.unlabeled_folder().glob("bad*"))


def test_files_that_cannot_be_read_do_not_stop_the_others(dataset):
    add_image(dataset, "good")
    whole = (dataset.images / "good_0000.nii.gz").read_bytes()
    for case, content in (("cut", whole[: len(whole) // 2]), ("empty", b""), ("text", b"no image"), ("ok", whole)):
        (dataset.images / f"{case}_0000.nii.gz").write_bytes(content)
    (dataset.images / "link_0000.nii.gz").symlink_to("nowhere.nii.gz")
    write_image(dataset.images / "flat_0000.nii.gz", np.zeros((2, 8, 9, 10), np.float32), (1, 1, 1, 1))
    failures = {failure.case: failure.reason for failure in run(dataset)}
    assert failures.keys() == {"cut", "empty", "flat", "link", "text"}
    assert failures["cut"].endswith("cut_0000.nii.gz is cut off or damaged; copy or export it again, or remove it")
    assert all("\n" not in reason and reason for reason in failures.values())
    assert np.isfinite(load(dataset.unlabeled_folder(), "ok")).all()


def test_the_last_images_have_got_labels(dataset, capsys):
    run(dataset)
    for case in dataset.unlabeled:
        (dataset.images / f"{case}_0000.nii.gz").unlink()
    with pytest.raises(FileNotFoundError, match="is empty; put the unlabeled images there"):
        run(dataset)
    labeled = dataset.labeled_folder()
    for case in dataset.unlabeled:
        shutil.copy(labeled / "case_0.b2nd", labeled / f"{case}.b2nd")
    assert run(dataset) == []
    assert "as they have labels: image_0, image_1" in capsys.readouterr().out
    assert not list(dataset.unlabeled_folder().glob("*.b2nd"))


def test_leftovers_of_a_killed_run_are_removed(dataset):
    folder = dataset.unlabeled_folder()
    incomplete = folder / ".incomplete" / "tmp123"
    incomplete.mkdir(parents=True)
    shutil.copy(folder / "image_0.b2nd", incomplete / "half.b2nd")
    (folder / "image_2.b2nd").unlink()
    (folder / "image_1.pkl").unlink()  # killed after the .b2nd was moved and before the .pkl
    assert run(dataset) == []
    assert not incomplete.parent.exists()
    assert load(folder, "image_2").shape == (1, 24, 25, 30)
    assert (folder / "image_1.pkl").is_file()


@pytest.mark.parametrize("moved", [0, 1])
def test_a_replaced_image_is_not_done_before_both_of_its_files_are_new(dataset, monkeypatch, moved):
    add_image(dataset, "image_0", seed=777)
    replace, done = os.replace, []

    def replace_some(source, target):
        if Path(target).name in ("image_0.b2nd", "image_0.pkl"):
            if len(done) == moved:
                raise OSError(errno.ESTALE, "Stale file handle")
            done.append(target)
        replace(source, target)

    folder = dataset.unlabeled_folder()
    before = load(folder, "image_0")
    with monkeypatch.context() as broken:
        broken.setattr(os, "replace", replace_some)
        with pytest.raises(OSError, match="Stale"):
            run(dataset)
    with pytest.warns(UserWarning, match="image_0"):
        find_unlabeled_cases(Dataset.find(dataset.name), "3d_fullres", {"train": [], "val": [], "unlabeled": []})
    assert run(dataset) == []
    after = load(folder, "image_0")
    assert before.shape != after.shape or not np.array_equal(before, after)


@pytest.mark.slow
def test_killed_and_started_again(dataset):
    expected = load(dataset.unlabeled_folder(), "image_2")
    for i in range(40):
        add_image(dataset, f"more_{i}", seed=i)
    shutil.rmtree(dataset.unlabeled_folder())
    command = [sys.executable, "-m", "nnunetv2_micd", "preprocess", "-d", "901", "-c", "3d_fullres", "-np", "2"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        while not list(dataset.unlabeled_folder().glob("*.b2nd")) and process.poll() is None:
            time.sleep(0.01)
        process.kill()
        process.stderr.read()  # ends when the workers have ended too
    assert run(dataset) == []
    folder = dataset.unlabeled_folder()
    assert len(list(folder.glob("*.b2nd"))) == len(list(folder.glob("*.pkl"))) == 44
    assert all(np.isfinite(load(folder, f"more_{i}")).all() for i in range(40))
    np.testing.assert_array_equal(load(folder, "image_2"), expected)
    assert not (folder / ".incomplete").exists()


def be_killed_by_image_1(job):
    if job.case == "image_1":
        preprocessing_job._write_case = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    return preprocessing_job.preprocess_case(job)


def test_the_image_that_kills_a_worker_is_named_and_tried_last(dataset, monkeypatch, capsys):
    shutil.rmtree(dataset.unlabeled_folder())
    monkeypatch.setattr(preprocessing, "preprocess_case", be_killed_by_image_1)
    with pytest.raises(ChildProcessError, match=r"most often because the memory was full.*\(-np\).* too: .*image_1"):
        preprocess_unlabeled(Dataset.find(dataset.id), ["3d_fullres"], num_processes=2)
    folder = dataset.unlabeled_folder()
    for file in folder.glob("*.b2nd"):  # the other worker may have done them
        file.unlink()
    for case in ("image_2", "image_3"):
        shutil.rmtree(folder / ".incomplete" / case, ignore_errors=True)
    (folder / ".incomplete" / "image_0").mkdir(exist_ok=True)  # as if it had killed a run before
    tried = []

    def end(job):
        tried.append(job.case)
        raise KeyboardInterrupt

    monkeypatch.setattr(preprocessing, "preprocess_case", end)
    with pytest.raises(KeyboardInterrupt):
        run(dataset)
    assert tried == ["image_2"]

    def remember(job):
        tried.append(job.case)
        return preprocessing_job.preprocess_case(job)

    monkeypatch.setattr(preprocessing, "preprocess_case", remember)
    capsys.readouterr()
    assert run(dataset) == []
    assert tried[1:] == ["image_2", "image_3", "image_0", "image_1"]  # the run in between has forgotten none
    assert "an earlier run was killed while it worked on them: image_0, image_1" in capsys.readouterr().out
    assert not (folder / ".incomplete").exists()


def be_killed(_):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_is_killed_as_it_starts(dataset, monkeypatch):
    monkeypatch.setattr(preprocessing, "preprocess_case", be_killed)
    with pytest.raises(ChildProcessError, match=r"\(-np\), the images that are done are kept$"):
        preprocess_unlabeled(Dataset.find(dataset.id), ["3d_fullres"], num_processes=2, overwrite=True)


def test_memory_that_is_full_while_an_image_is_written_stops_no_other(dataset, monkeypatch):
    save = preprocessing_job._save

    def fail(data, properties, blocks, chunks, target):
        if target.endswith("image_1"):
            raise MemoryError("Unable to allocate 8 GiB")
        save(data, properties, blocks, chunks, target)

    monkeypatch.setattr(preprocessing_job, "_save", fail)
    [failure] = run(dataset, overwrite=True)
    assert failure.case == "image_1"
    assert failure.reason.startswith("cannot be preprocessed (MemoryError: Unable to allocate 8 GiB); run the same")
    assert list_preprocessed(dataset.unlabeled_folder()) == ["image_0", "image_2", "image_3"]


def test_images_in_another_orientation_are_named(dataset, capsys):
    image = sitk.GetImageFromArray(make_volume(0, (20, 22, 26))[0])
    image.SetDirection((-1, 0, 0, 0, 1, 0, 0, 0, 1))
    sitk.WriteImage(image, str(dataset.images / "flipped_0000.nii.gz"))
    for _ in range(2):  # also when it is done
        assert run(dataset) == []
        warning = "Warning: unlabeled images in another orientation than every labeled one (flipped), which SimpleITKIO"
        assert warning in capsys.readouterr().err
    plans = json.loads(dataset.plans_file.read_text())
    plans["image_reader_writer"] = "SimpleITKIOWithReorient"
    dataset.plans_file.write_text(json.dumps(plans))
    assert run(dataset, overwrite=True) == []
    assert "orientation" not in capsys.readouterr().err


@pytest.mark.parametrize("limit", [2_000, 40_000])
def test_a_full_disk_stops_with_one_sentence(dataset, limit):
    resource = pytest.importorskip("resource")
    folder = dataset.unlabeled_folder()
    before = load(folder, "image_3")
    for case in ("image_0", "image_1", "image_2"):
        (folder / f"{case}.b2nd").unlink()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))  # a write beyond it fails as on a full disk
    try:
        with pytest.raises(OSError, match=f"Cannot write to {folder} .*disk is full.*same command again"):
            run(dataset)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(file.name for file in folder.glob("*.b2nd")) == ["image_3.b2nd"]
    assert run(dataset) == []
    np.testing.assert_array_equal(load(folder, "image_3"), before)


def test_errors_name_what_to_do(dataset, monkeypatch, capsys):
    def fails(error, message, name=None, plans="nnUNetPlans", **options):
        with pytest.raises(error, match=message) as caught:
            preprocess_unlabeled(Dataset.find(name or dataset.id, plans), **{"num_processes": 1, **options})
        assert "\n" not in str(caught.value)

    fails(ValueError, "no configuration 4d; they have 2d, 3d_fullres", configurations=["2d", "4d"])
    fails(FileNotFoundError, r"no plans Other\.json .*name one of nnUNetPlans with -p", plans="Other")
    fails(FileNotFoundError, "Dataset77_X is not planned .*nnUNetv2_plan_and_preprocess -d 77", name="Dataset77_X")
    fails(ValueError, "There is no dataset with the number 902", name="902")
    fails(ValueError, "Hippocampus is neither the number", name="Hippocampus")
    fails(ValueError, "at least 1, not 0", num_processes=0)
    shutil.copytree(dataset.raw, dataset.raw.with_name("Dataset901_Copy"))
    fails(ValueError, "Several datasets have the number 901: Dataset901_Copy, Dataset901_Tiny")

    folder = dataset.root / "other"
    options = {"name": dataset.name, "folders": [str(folder)]}
    fails(FileNotFoundError, f"no folder {folder}; .* -i", **options)
    folder.mkdir()
    (folder / ".hidden_0000.nii.gz").touch()
    fails(FileNotFoundError, f"folder {folder} is empty", **options)
    (folder / "a_0000.nii").touch()
    fails(ValueError, r"are \.nii\.gz files, but those in .* are others, such as .*\.nii; convert them", **options)
    (folder / "a.nii.gz").touch()
    fails(ValueError, r"is named CASE_0000\.nii\.gz, such as a\.nii\.gz; add the channel", **options)
    shutil.copy(dataset.images / "image_0_0000.nii.gz", folder)
    fails(ValueError, r"in several folders \(image_0\)", **{**options, "folders": [str(dataset.images), str(folder)]})
    capsys.readouterr()
    (folder / "notes.txt").touch()
    failures = preprocess_unlabeled(Dataset.find(dataset.name), num_processes=1, folders=[str(folder)])
    assert [(failure.case, failure.configuration) for failure in failures] == [
        (str(folder / name), "images") for name in ("a.nii.gz", "a_0000.nii")
    ]
    assert "Warning: not used, as they are no images: notes.txt in" in capsys.readouterr().err
    add_image(dataset, "case_3")
    fails(ValueError, r"among the labeled cases of Dataset901_Tiny too \(case_3\)", name=dataset.name)
    shutil.rmtree(dataset.images)
    fails(FileNotFoundError, f"no folder {dataset.images}", name=dataset.name)

    for variable in ("raw", "preprocessed"):
        monkeypatch.setenv(f"nnUNet_{variable}", "/nowhere")
        fails(FileNotFoundError, f"nnUNet_{variable} names the folder /nowhere", name=dataset.name)
        monkeypatch.delenv(f"nnUNet_{variable}")
        fails(ValueError, f"nnUNet_{variable} is not set", name=dataset.name)


def test_a_second_command_waits_for_the_first_and_finds_its_work_done(dataset):
    shutil.rmtree(dataset.unlabeled_folder())
    dataset.unlabeled_folder().mkdir()
    command = [sys.executable, "-m", "nnunetv2_micd", "preprocess", "-d", "901", "-c", "3d_fullres", "-np", "1"]
    folder = dataset.unlabeled_folder()
    with hold_lock(folder.with_name(f".{folder.name}.preprocessing.lock"), "preprocessing"):
        first = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert "Another process is preprocessing images into" in first.stdout.readline()
    second = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    outputs = [process.communicate()[0] for process in (first, second)]
    assert [process.returncode for process in (first, second)] == [0, 0]
    assert sorted(int(output.partition("3d_fullres: ")[2].split()[0]) for output in outputs) == [0, 4]
    assert not (dataset.unlabeled_folder() / ".incomplete").exists()


def test_parts_share_the_images(dataset):
    shutil.rmtree(dataset.unlabeled_folder())
    done = []
    for part_id in (1, 0):
        assert run(dataset, part=Part(part_id, of=2)) == []
        done.append(set(list_preprocessed(dataset.unlabeled_folder())))
    assert done == [{"image_1", "image_3"}, {"image_0", "image_1", "image_2", "image_3"}]
    before = snapshot(dataset.unlabeled_folder())
    assert run(dataset, part=Part(0, of=2), overwrite=True) == []
    changed = {name for name, time in snapshot(dataset.unlabeled_folder()).items() if before.get(name) != time}
    assert {name.partition(".")[0] for name in changed if name.endswith(".b2nd")} == {"image_0", "image_2"}
    shutil.copy(dataset.images / "image_0_0000.nii.gz", dataset.images / "odd.nii.gz")
    assert [len(run(dataset, part=Part(part_id, of=2))) for part_id in (0, 1)] == [1, 0]
    with pytest.raises(ValueError, match="There is no part 2 of 2; -part_id counts from 0"):
        Part(2, of=2)


def test_parts_run_at_the_same_time(dataset):
    shutil.rmtree(dataset.unlabeled_folder())
    command = [sys.executable, "-m", "nnunetv2_micd", "preprocess", "-d", "901", "-c", "3d_fullres", "-np", "1"]
    jobs = [subprocess.Popen([*command, "-num_parts", "4", "-part_id", str(part)]) for part in range(4)]
    assert [job.wait() for job in jobs] == [0] * 4
    assert list_preprocessed(dataset.unlabeled_folder()) == list(dataset.unlabeled)
    assert not list(dataset.unlabeled_folder().glob(".incomplete*"))
