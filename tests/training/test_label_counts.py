from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers import BOTH, IGNORE, REGIONS
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunetv2_micd.training.label_counts import count_labels

# Two cases; -1 lies outside of the nonzero mask and is background, 3 is the ignore label where there is one.
SEGMENTATIONS = {"first": np.array([[[-1, 0], [0, 1]]]), "second": np.array([[[0, 2], [2, 3]], [[1, 2], [3, 3]]])}
CASES = SimpleNamespace(
    identifiers=list(SEGMENTATIONS), load_case=lambda identifier: (None, SEGMENTATIONS[identifier], None, {})
)


@pytest.mark.parametrize(
    ("description", "expected"),
    [
        (IGNORE, [4, 2, 3]),
        (BOTH, [5, 3]),  # of the regions {1, 2} and {2}
        ({"labels": {"background": 0, "first": 1, "second": 2, "third": 3}}, [4, 2, 3, 3]),
        ({**REGIONS, "labels": {**REGIONS["labels"], "third": 3}, "regions_class_order": [1, 2, 3]}, [5, 3, 3]),
    ],
    ids=["ignore", "regions and ignore", "classes", "regions"],
)
def test_counts_by_hand(description: dict[str, Any], expected: list[int]) -> None:
    manager = LabelManager(description["labels"], description.get("regions_class_order"))
    counts, num_voxels = count_labels(CASES, manager)
    assert counts.tolist() == expected
    annotated = 9 if manager.has_ignore_label else 12
    assert num_voxels == (annotated if manager.has_regions else None)
