"""What a benchmark compares."""

from collections.abc import Sequence
from dataclasses import dataclass

from nnunetv2_micd.benchmark.trainers import OWN_LENGTH, Length
from nnunetv2_micd.training.registry import STOCK


@dataclass(frozen=True)
class Grid:
    """Everything that a benchmark compares: each trainer is trained with each budget and each seed.

    Attributes:
        dataset: Name or number of the dataset.
        configuration: Name of the configuration, such as ``3d_fullres``.
        trainers: Names of the trainers; the baseline is added.
        budgets: Numbers of labeled cases such as ``"6"``, ``"10%"`` or ``"all"``, or ``"f0"`` for the cases of fold 0.
        seeds: Seeds; each draws other labeled cases, unless a fold names them.
        plans: Name of the plans.
        val_fraction: Share of the cases for validation.
        length: Training length that replaces the trainers' own.
        test: Folders of test images and of their labels; by default the validation cases are the test cases.
        transductive: True to allow test images among the unlabeled training images.
        baseline: Trainer that learns from the labels alone. All others are compared with it.
        longer: Further trainings of the baseline and of trainers that need no unlabeled image, so many times as long,
            for a comparison at equal time.
        mean_of_both: Whether trainers with two networks predict with their mean as well.
        tuned: Whether to train each trainer also with the weight that a tuning has chosen, see `plan.plan_tuning`.

    Examples:
        >>> grid = Grid("4", "3d_fullres", ["nnUNetTrainerMICD"], budgets=["6", "10%"], seeds=[0, 1, 2])
        >>> grid.baseline
        'nnUNetTrainer'
    """

    dataset: str
    configuration: str
    trainers: Sequence[str]
    budgets: Sequence[str]
    seeds: Sequence[int]
    plans: str = "nnUNetPlans"
    val_fraction: float = 0.2
    length: Length = OWN_LENGTH
    test: tuple[str, str] | None = None
    transductive: bool = False
    baseline: str = STOCK
    longer: Sequence[int] = ()
    mean_of_both: bool = False
    tuned: bool = False
