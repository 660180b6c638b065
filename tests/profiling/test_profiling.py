"""What a step costs: the stopwatch, the passes of each method, the table."""

import csv
import json
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from weakref import ref

import pytest
import torch
from helpers import METHODS, TinyDataset, make_trainer
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_micd.cli.main import main
from nnunetv2_micd.data.dataset import Dataset
from nnunetv2_micd.methods.bcp import nnUNetTrainerBCP, nnUNetTrainerBCP_half
from nnunetv2_micd.methods.c3s3 import nnUNetTrainerC3S3
from nnunetv2_micd.methods.cad import nnUNetTrainerCAD
from nnunetv2_micd.methods.cps import nnUNetTrainerCPS
from nnunetv2_micd.methods.dhc import nnUNetTrainerDHC
from nnunetv2_micd.methods.filter_match import nnUNetTrainerFilterMatch
from nnunetv2_micd.methods.m3hl import nnUNetTrainerM3HL
from nnunetv2_micd.methods.mandn import nnUNetTrainerMandN
from nnunetv2_micd.methods.mcf import nnUNetTrainerMCF
from nnunetv2_micd.methods.mean_teacher import nnUNetTrainerMeanTeacher
from nnunetv2_micd.methods.medl import nnUNetTrainerMEDL
from nnunetv2_micd.methods.micd import nnUNetTrainerMICD
from nnunetv2_micd.methods.micd_paper import nnUNetTrainerMICD_paper
from nnunetv2_micd.methods.micd_variants import nnUNetTrainerMICD_SupervisedOnly
from nnunetv2_micd.methods.pseudo_labels.trainer import nnUNetTrainerPseudoLabels
from nnunetv2_micd.methods.self_training import nnUNetTrainerSelfTraining
from nnunetv2_micd.methods.spcl import nnUNetTrainerSPCL, nnUNetTrainerSPCL_pretrained
from nnunetv2_micd.methods.transmedseg import nnUNetTrainerTransMedSeg
from nnunetv2_micd.methods.uamt import nnUNetTrainerUAMT
from nnunetv2_micd.methods.unimatch import nnUNetTrainerUniMatch
from nnunetv2_micd.profiling import measure, steps, stopwatch
from nnunetv2_micd.profiling.batches import make_batch
from nnunetv2_micd.profiling.measure import Cost, PeakMemory, ProfileSetup, profile
from nnunetv2_micd.profiling.passes import count_passes
from nnunetv2_micd.profiling.report import format_table, make_table, waiting_seconds, write_profile
from nnunetv2_micd.profiling.steps import PARTS, StepProfile, profile_steps
from nnunetv2_micd.profiling.stopwatch import Stopwatch


def test_inner_parts_do_not_count_for_outer_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 3.0, 7.0, 10.0, 15.0])
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: next(clock))
    watch = Stopwatch(torch.device("cpu"))
    with watch.part("outer"), watch.part("inner"):  # 0 to 1 and 3 to 7, 1 to 3
        pass
    watch.timed(lambda: None, "inner")()  # 10 to 15
    assert watch.take() == {"outer": 5, "inner": 7}
    assert watch.take() == {}


PASSES: dict[type, dict[tuple[str, bool], float]] = {
    nnUNetTrainerBCP: {("student a", True): 2, ("teacher a", False): 1},
    nnUNetTrainerBCP_half: {("student a", True): 1, ("teacher a", False): 0.5},
    nnUNetTrainerCAD: {("student a", True): 4, ("student b", True): 4}
    | {("teacher a", False): 1, ("teacher b", False): 1},
    nnUNetTrainerC3S3: {("student a", True): 3, ("student b", True): 3},
    nnUNetTrainerCPS: {("student a", True): 2, ("student b", True): 2},
    nnUNetTrainerDHC: {("student a", True): 2, ("student b", True): 2},
    nnUNetTrainerFilterMatch: {("student a", True): 2, ("teacher a", False): 1},
    nnUNetTrainerM3HL: {("student a", True): 2, ("teacher a", False): 1},
    # an epoch of B, with labeled images only while the learning rate is the initial one
    nnUNetTrainerMandN: {("student a", True): 1, ("student b", True): 1},
    nnUNetTrainerMCF: {("student a", True): 2, ("student b", True): 2},
    nnUNetTrainerMEDL: {("student a", True): 2, ("student b", True): 2},
    nnUNetTrainerMeanTeacher: {("student a", True): 2, ("teacher a", False): 1},
    nnUNetTrainerPseudoLabels: {("student a", True): 2},
    nnUNetTrainerSelfTraining: {("student a", True): 1, ("teacher a", False): 0.5},
    nnUNetTrainerTransMedSeg: {("student a", True): 2, ("teacher a", False): 1},
    # the encoder alone over twice as many images
    nnUNetTrainerSPCL: {("student a", True): 2},
    nnUNetTrainerSPCL_pretrained: {("student a", True): 2},
    nnUNetTrainerUAMT: {("student a", True): 2, ("teacher a", False): 9},
    # the encoder of the weak view is the one of the view with dropped features
    nnUNetTrainerUniMatch: {("student a", False): 0.5, ("student a", True): 4},
}
for method in METHODS:
    if issubclass(method, nnUNetTrainerMICD):
        of_students, of_teachers = 2, 1 if method.config.cmd_weight else 0
        if method is nnUNetTrainerMICD_SupervisedOnly:
            of_students, of_teachers = 1, 0
        if method is nnUNetTrainerMICD_paper:  # twice as many images, which the students see masked and clean
            of_students, of_teachers = 5, 2
        passes = {(f"student {name}", True): of_students for name in "ab"}
        PASSES[method] = passes | ({(f"teacher {name}", False): of_teachers for name in "ab"} if of_teachers else {})


def variant(method: type, **fields: Any) -> type:
    return type("Trainer", (method,), {"config": replace(method.config, **fields)})


VARIANTS: list[tuple[type, dict[tuple[str, bool], float]]] = [
    (
        variant(nnUNetTrainerMICD_paper, mcpc_reading="peer_clean", labeled_consistency=False),
        {("student a", True): 2, ("student b", True): 2, ("student a", False): 1, ("student b", False): 1}
        | {("teacher a", False): 1, ("teacher b", False): 1},
    ),
    (
        variant(nnUNetTrainerMICD, unlabeled_ratio=0.5),
        {("student a", True): 1.5, ("student b", True): 1.5, ("teacher a", False): 0.5, ("teacher b", False): 0.5},
    ),
    (variant(nnUNetTrainerMICD, recompute_peer=False), PASSES[nnUNetTrainerMICD]),
    (
        variant(nnUNetTrainerMeanTeacher, consistency_every=2),
        {("student a", True): 1.5, ("teacher a", False): 0.5},
    ),
]


@pytest.mark.parametrize(
    ("method", "expected"), [*PASSES.items(), *VARIANTS], ids=lambda value: getattr(value, "__name__", "")
)
def test_passes_of_a_step_are_counted(
    method: type, expected: dict[tuple[str, bool], float], dataset: TinyDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    trainer = make_trainer(method, dataset)
    trainer.on_train_start()
    trainer.iteration = 3  # after the pre-training of BCP and SPCL
    if method is nnUNetTrainerPseudoLabels:  # as in its second training
        monkeypatch.setattr(trainer, "dataloader_unlabeled", trainer.dataloader_train)
    counted: Counter = Counter()
    supervised = 0.0
    for kind in count_passes(trainer, next(trainer.dataloader_train)):
        batches = kind.times * kind.images / trainer.batch_size
        counted[f"{'teacher' if kind.teacher else 'student'} {kind.network}", kind.gradient] += batches
        supervised += batches if kind.all_outputs else 0
    assert counted == expected
    with_deep_supervision = {
        nnUNetTrainerBCP: 2,
        nnUNetTrainerFilterMatch: 3,
        nnUNetTrainerPseudoLabels: 2,
    }
    # the parts of the network are called one by one, for which the outputs of low resolution are not counted
    with_deep_supervision |= {nnUNetTrainerM3HL: 0, nnUNetTrainerTransMedSeg: 0}
    assert supervised == with_deep_supervision.get(method, len(trainer.students.keys() & {"a", "b"}))
    assert trainer.iteration == 3


@pytest.mark.parametrize("method", METHODS)
def test_a_step_holds_two_graphs_at_most(method: type, dataset: TinyDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of each network, of labeled or of unlabeled images; MICD and the methods with one network hold one."""
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    trainer = make_trainer(method, dataset)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    trainer.iteration = 3  # after the pre-training of BCP and SPCL
    if method is nnUNetTrainerPseudoLabels:
        monkeypatch.setattr(trainer, "dataloader_unlabeled", trainer.dataloader_train)  # as in its second training
    graphs: list[ref[torch.UntypedStorage]] = []
    held = []

    def watch(module: Any, inputs: tuple, output: Any) -> None:
        if torch.is_grad_enabled():
            held.append(sum(graph() is not None for graph in graphs))
            graphs.append(ref(output[0].untyped_storage()))  # the next layer's backward pass needs it

    for name in trainer.students.keys() & {"a", "b"}:  # projectors are small
        student: Any = trainer.students[name]
        getattr(student, "encoder", student).register_forward_hook(watch)  # a 2D network beside a 3D one has none
    trainer.train_step(next(trainer.dataloader_train))
    # MICD as printed learns from a clean and a masked pass of the same network at once
    two = method in (nnUNetTrainerCPS, nnUNetTrainerDHC, nnUNetTrainerMCF, nnUNetTrainerMEDL, nnUNetTrainerMICD_paper)
    assert max(held) == (1 if two else 0)


def setup(dataset: TinyDataset, fold: int | None = None) -> ProfileSetup:
    return ProfileSetup(Dataset.find(dataset.name), "3d_fullres", "cpu", fold)


def test_profile_needs_no_data(dataset: TinyDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "measure_in_process", measure.measure_memory)
    before = sorted(dataset.root.rglob("*"))
    stock, micd = profile(setup(dataset), ["nnUNetTrainerMICD", "nnUNetTrainer"], rounds=1)
    assert [stock.profile.trainer, micd.profile.trainer] == ["nnUNetTrainer", "nnUNetTrainerMICD"]
    for cost in (stock, micd):
        assert cost.profile.step == pytest.approx(sum(cost.profile.parts.values()))
        assert cost.profile.floor > 0
        assert cost.profile.parts["backward"] > 0
        assert cost.memory.allocated is None
    assert stock.profile.parts["teachers forward"] == stock.profile.parts["moving average"] == 0
    assert all(micd.profile.parts[part] > 0 for part in PARTS)
    assert sorted(dataset.root.rglob("*")) == before


def test_command(
    dataset: TinyDataset, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Any
) -> None:
    monkeypatch.setattr(measure, "measure_in_process", lambda *_: PeakMemory(None, None, 2**30))
    arguments = f"profile -d 901 -c 3d_fullres -f 1 -device cpu --rounds 1 -o {tmp_path}".split()
    main([*arguments, "-tr", "nnUNetTrainerMICD", "nnUNetTrainerBCP", "nnUNetTrainerPseudoLabels"])
    header, _, step, *_ = capsys.readouterr().out.splitlines()
    assert header.split()[3::2] == [f"nnUNetTrainer{name}" for name in ("", "MICD", "BCP", "PseudoLabels")]
    assert step.startswith("| step ms")
    assert (tmp_path / "profile.png").stat().st_size > 5000
    with (tmp_path / "profile.csv").open() as file:
        first, *rows = csv.reader(file)
    assert [row[0] for row in rows][:2] == ["nnUNetTrainer", "nnUNetTrainerMICD"]
    assert float(rows[1][first.index("unlabeled data ms")]) > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("-c 3d_fullres -device cpu --rounds 0", "error: The number of rounds must be at least 1, not 0"),
        ("-c 4d -device cpu", "error: nnUNetPlans of Dataset901_Tiny has no configuration 4d, only 2d, 3d_fullres"),
        ("-c 3d_fullres -device cpu -tr Nothing", "error: There is no trainer Nothing"),
        ("-c 3d_fullres -device cpu -f one", "error: A fold is a number or all, not one"),
        ("-c 3d_fullres -device cpu -tr nnUNetTrainerERSR", "error: ERSR fits ellipses to images of two axes"),
        ("-c 3d_fullres", "error: PyTorch sees no CUDA GPU; add -device cpu"),
    ],
)
def test_wrong_arguments(arguments: str, message: str, dataset: TinyDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "measure_in_process", lambda *_: pytest.fail("measured before the refusal"))
    monkeypatch.setattr(measure.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as stop:
        main(["profile", "-d", "901", *arguments.split()])
    assert str(stop.value.code).startswith(message)


def test_folds_that_a_profile_makes_do_not_divide_groups(dataset: TinyDataset) -> None:
    """Nor does nnU-Net's own trainer, which is measured first, leave others to the trainings."""
    dataset.splits_file.unlink()
    groups = {case: f"patient {number // 2}" for number, case in enumerate(dataset.labeled)}
    (dataset.preprocessed / "groups.json").write_text(json.dumps(groups))
    profile(ProfileSetup(Dataset.find(dataset.id), "2d", "cpu", 0), [], rounds=1)
    for entry in json.loads(dataset.splits_file.read_text()):
        assert not {groups[case] for case in entry["train"]} & {groups[case] for case in entry["val"]}


def test_the_second_stage_of_a_cascade_is_refused(dataset: TinyDataset) -> None:
    plans_file = dataset.preprocessed / "nnUNetPlans.json"
    plans = json.loads(plans_file.read_text())
    plans["configurations"]["second"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_fullres"}
    plans_file.write_text(json.dumps(plans))
    with pytest.raises(ValueError, match=r"second is the second stage of a cascade, .* profile 3d_fullres instead"):
        measure.profile_dataset(dataset.name, "second", device="cpu")


def step_profile(name: str, data: tuple[float, float] = (0.3, 0.2), step: float = 0.1) -> StepProfile:
    return StepProfile(name, data, step, dict.fromkeys(PARTS, step / len(PARTS)), step / 2, [])


@pytest.mark.parametrize(
    ("data", "workers", "expected"),
    [((0.3, 0.2), 0, 0.5), ((0.3, 0.2), 4, 0.05), ((0.3, 0.5), 4, 0.15), ((0.3, 0.0), 2, 0.05), ((0.3, 0.2), 12, 0)],
)
def test_waiting_is_what_workers_do_not_hide(data: tuple[float, float], workers: int, expected: float) -> None:
    assert waiting_seconds(step_profile("any", data), workers) == pytest.approx(expected)


def test_table_compares_with_the_first_trainer(tmp_path: Any) -> None:
    costs = [
        Cost(step_profile("nnUNetTrainer"), PeakMemory(2**30, 2**31, 0)),
        Cost(step_profile("nnUNetTrainerMICD", step=0.45), PeakMemory(3 * 2**29, 2**31, 0)),
    ]
    rows = make_table(costs, workers=0)
    table = [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]
    assert [row["step ms"] for row in table] == ["100.0", "450.0"]
    assert [row["step / nnU-Net"] for row in table] == ["1.00", "4.50"]
    assert [row["step / floor"] for row in table] == ["2.00", "2.00"]
    assert [row["memory / nnU-Net"] for row in table] == ["1.00", "1.50"]
    assert format_table(rows).splitlines()[0] == f"| {'trainer':28} | nnUNetTrainer | nnUNetTrainerMICD |"
    assert write_profile(costs, tmp_path).is_file()


def test_memory_is_not_compared_with_next_to_nothing() -> None:
    costs = [
        Cost(step_profile(name), PeakMemory(None, None, added))
        for name, added in (("nnUNetTrainer", 2**20), ("nnUNetTrainerMICD", 80 * 2**20))
    ]
    rows = make_table(costs, workers=0)
    assert [row[rows[0].index("memory / nnU-Net")] for row in rows[1:]] == ["-", "-"]


def test_random_patches_fit_regions_and_no_deep_supervision(dataset: TinyDataset) -> None:
    trainer = make_trainer(nnUNetTrainerMICD, dataset)
    trainer.enable_deep_supervision = False
    trainer.initialize()
    batch = make_batch(trainer)
    assert (
        batch["target"].shape
        == batch["data"].shape
        == (trainer.batch_size, 1, *trainer.configuration_manager.patch_size)
    )
    trainer.label_manager = SimpleNamespace(has_regions=True, foreground_regions=[(1, 2), (2,)], has_ignore_label=True)
    assert make_batch(trainer)["target"].shape[1] == 3


def test_consistency_in_some_steps_is_measured_as_their_mean(dataset: TinyDataset) -> None:
    times = []
    for every in (1, 3):
        trainer = make_trainer(variant(nnUNetTrainerMICD, consistency_every=every), dataset)
        trainer.initialize()
        first = int(0.9 * trainer.num_epochs * trainer.num_iterations_per_epoch)
        profile = profile_steps([trainer], rounds=1)[0]
        assert trainer.iteration == first + every * (1 + steps.WARM_UP)
        times.append({(kind.network, kind.teacher, kind.all_outputs): kind.times for kind in profile.passes})
    every_step, some_steps = times
    assert every_step["a", True, False] == pytest.approx(3 * some_steps["a", True, False])
    assert every_step["a", False, True] == pytest.approx(some_steps["a", False, True])


def test_a_trainer_of_nnunet_has_one_pass(dataset: TinyDataset) -> None:
    trainer = make_trainer(nnUNetTrainer, dataset)
    trainer.initialize()
    (only,) = count_passes(trainer, make_batch(trainer))
    assert (only.network, only.gradient, only.images, only.times) == ("a", True, trainer.batch_size, 1)
