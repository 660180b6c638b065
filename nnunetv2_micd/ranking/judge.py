"""Asks the committee about each image, and keeps what it says until the ranking is complete."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from batchgenerators.utilities.file_and_folder_operations import load_pickle
from nnunetv2.inference.export_prediction import export_prediction_from_logits
from torch import Tensor
from tqdm import tqdm

from nnunetv2_micd.data.image_defects import whole
from nnunetv2_micd.ranking.assess import Assessor, DisputedSlice
from nnunetv2_micd.ranking.committee import Committee, Opinion
from nnunetv2_micd.training.loader import UnlabeledImages
from nnunetv2_micd.utils.files import atomic, read_json_object


class Judge:
    """Asks the committee about images.

    Args:
        committee: The networks.
        checkpoint: File that they come from.
        images: The images.
        kept: Folder for what is found out about each image, which a later process need not find out again; a file for
            each image.
    """

    def __init__(self, committee: Committee, checkpoint: Path, images: UnlabeledImages, kept: Path):
        self.committee = committee
        self._checkpoint, self._images, self._kept = checkpoint, images, kept
        self._assessor = Assessor(committee)

    def judge_all(self) -> tuple[list[dict[str, Any]], Tensor]:
        """Predict all images; return the figures and the features of each.

        Raises:
            ValueError: An image cannot be predicted.
        """
        cases = tqdm(self._images.identifiers, desc="Predicting", unit="image", disable=None)
        findings = [self._judge(case) for case in cases]
        return [finding["row"] for finding in findings], torch.tensor([finding["features"] for finding in findings])

    def segment_all(self, cases: Sequence[str], folder: Path) -> list[DisputedSlice]:
        """Write the segmentation of each case into a folder; return the slice of each with most uncertainty.

        Raises:
            ValueError: An image cannot be predicted.
        """
        return [self._segment(case, folder) for case in tqdm(cases, desc="Segmenting", unit="image", disable=None)]

    def _judge(self, case: str) -> dict[str, Any]:
        """Return what is found out about an image, and keep it."""
        kept = self._kept / f"{case}.json"
        files = [self._checkpoint, *(Path(self._images.folders[case], case + ending) for ending in (".b2nd", ".pkl"))]
        states = [f"{file} {(state := file.stat()).st_size} {state.st_mtime_ns}" for file in files]
        finding: dict[str, Any]
        with suppress(OSError, ValueError):  # none is kept yet, or a power failure has left half of one
            finding = read_json_object(kept)
            if finding.keys() == {"of", "row", "features"} and finding["of"] == states:
                return finding
        with _errors_of(case):
            opinion = self._ask(case)
            finding = {"of": states, "row": self._assessor.row(case, opinion), "features": opinion.features.tolist()}
        self._kept.mkdir(parents=True, exist_ok=True)
        with atomic(kept) as temporary:
            temporary.write_text(json.dumps(finding))
        return finding

    def _segment(self, case: str, folder: Path) -> DisputedSlice:
        with _errors_of(case):
            opinion = self._ask(case)
            self._write(case, opinion, folder)
            return self._assessor.most_disputed_slice(case, self._load(case), opinion)

    def _load(self, case: str) -> Tensor:
        return torch.from_numpy(self._images.read_image(case))

    def _ask(self, case: str) -> Opinion:
        return self.committee.ask(self._load(case))

    def _write(self, case: str, opinion: Opinion, folder: Path) -> None:
        predictor = self.committee.predictor
        target = str(folder / case)
        with whole(target + predictor.dataset_json["file_ending"]):
            export_prediction_from_logits(
                opinion.logits,
                load_properties(self._images.folders[case], case),
                predictor.configuration_manager,
                predictor.plans_manager,
                predictor.dataset_json,
                target,
            )


def load_properties(folder: str, case: str) -> dict[str, Any]:
    """Return what nnU-Net knows of the geometry of a preprocessed image.

    Raises:
        OSError: The file cannot be read.
        ValueError: The file is damaged.
    """
    file = os.path.join(folder, f"{case}.pkl")
    try:
        properties: dict[str, Any] = load_pickle(file)
        _ = properties["spacing"]
    except OSError:
        raise
    except Exception as error:  # a damaged pickle raises any type of error
        raise ValueError(
            f"{file} is damaged ({type(error).__name__}); delete it and its .b2nd file, and preprocess its image again"
        ) from None
    return properties


@contextmanager
def _errors_of(case: str) -> Iterator[None]:
    """Name the image in an error of its prediction, of which nnU-Net's functions and the readers raise any type."""
    try:
        yield
    except (OSError, MemoryError):  # of the machine
        raise
    except torch.OutOfMemoryError as error:  # of the GPU
        raise MemoryError(" ".join(str(error).split())) from error
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(
            f"{case} cannot be predicted ({reason}); mend or remove it and run the same command again, the images that "
            "are done are kept"
        ) from error
