"""A picture of predictions beside their images and, where there are any, their labels."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_micd.data.dataset import has_colors
from nnunetv2_micd.data.image_defects import AGAIN
from nnunetv2_micd.data.raw_images import group_images
from nnunetv2_micd.utils.figures import LEGEND_COLUMNS, default_style, label_legend, outline, to_picture
from nnunetv2_micd.utils.files import atomic, read_json_object, shorten

WIDTH = 2.6
"""Width of an image in inches."""


@dataclass(frozen=True)
class _Case:
    """Slices of a case: image, labels by column, Dice by column, and the aspect ratio of its pixels."""

    name: str
    image: np.ndarray
    labels: dict[str, np.ndarray]
    dice: dict[str, float]
    aspect: float


def draw_predictions(
    images: str | os.PathLike[str],
    predictions: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    truth: str | os.PathLike[str] | None = None,
    number: int = 4,
) -> Path:
    """Draw some cases, a row each: the slice with the most foreground, outlined in the colors of the labels.

    With labels the cases range from the worst to the best of the first predictions, without from the first to the last
    by name.

    Args:
        images: Folder of the images, named ``CASE_0000``.
        predictions: Folders that ``nnUNetv2_predict`` has written, of the same dataset; a column each.
        output: File of the picture, such as ``picture.png``.
        truth: Folder of the labels; None if there are none.
        number: Number of cases.

    Returns:
        Path of the picture.

    Raises:
        ValueError: The folders do not fit each other.
        OSError: A file is missing or cannot be written.
    """
    if number < 1:
        raise ValueError(f"The number of cases must be at least 1, not {number}")
    folders = [Path(folder) for folder in predictions]
    description, plans = (_read_settings(folders[0], name) for name in ("dataset.json", "plans.json"))
    manager = PlansManager(plans)
    try:
        reader: Any = manager.image_reader_writer_class()
        ending, labels = str(description["file_ending"]), dict(description["labels"])
        is_colored = has_colors(manager, description)
    except Exception as error:  # nnU-Net does not check its files, so damage shows as any type of error
        raise ValueError(
            f"plans.json or dataset.json of {folders[0]} is not as nnU-Net writes it ({error!r}); predict again"
        ) from None
    sources = {_unique(folder.name, folders, folder): folder for folder in folders}
    if truth is not None:
        sources = {"truth": Path(truth), **sources}
    files = group_images(images, ending)
    cases = [case for case in files if all((folder / f"{case}{ending}").is_file() for folder in sources.values())]
    if not cases:
        others = shorten([str(folder) for folder in sources.values()])
        raise ValueError(
            f"No image in {images} has a file of the same name in {others}; name folders of the same cases, and "
            f"the images CASE_0000{ending}"
        )
    values = {name: value for name, value in labels.items() if isinstance(value, int) and value > 0}
    ignore_label = values.pop("ignore", None)
    names = {value: name for name, value in values.items()}
    segmentations = _Segmentations(reader, sources, ending, ignore_label, is_colored)
    if truth is not None:
        first = list(sources)[1]
        cases = sorted(cases, key=lambda case: segmentations.dice(segmentations.read(case))[first])
    chosen = [cases[index] for index in dict.fromkeys(np.linspace(0, len(cases) - 1, number).round().astype(int))]
    drawn = [_read(case, files[case], segmentations) for case in chosen]
    with default_style(), atomic(output) as temporary:
        _draw(drawn, list(sources), names).savefig(temporary, dpi=120, format=Path(output).suffix[1:] or "png")
    return Path(output)


def _read_settings(folder: Path, name: str) -> dict[str, Any]:
    """Read a file that nnU-Net keeps with its predictions or, for a validation, in the folder of the model."""
    for place in (folder, *folder.resolve().parents[:2]):
        if (place / name).is_file():
            return read_json_object(place / name)
    raise FileNotFoundError(f"There is no {name} in {folder}; name a folder that nnUNetv2_predict has written")


def _unique(name: str, folders: Sequence[Path], folder: Path) -> str:
    is_unique = name != "truth" and sum(other.name == name for other in folders) == 1
    if is_unique:
        return name
    return str(folder) if str(folder) != "truth" else str(folder.resolve())


@dataclass(frozen=True)
class _Segmentations:
    """Labels and predictions of the cases, by column."""

    reader: Any
    folders: Mapping[str, Path]
    ending: str
    ignore_label: int | None
    has_colors: bool

    def read(self, case: str) -> dict[str, np.ndarray]:
        """Return the segmentations of a case; voxels that nobody annotated are background in all of them."""
        labels = {}
        for name, folder in self.folders.items():
            file = folder / f"{case}{self.ending}"
            with _readable(str(file)):
                labels[name] = self.reader.read_seg(str(file))[0][0]
        first, *others = labels
        for other in others:
            if labels[other].shape != labels[first].shape:
                raise ValueError(
                    f"{case} has another size in {self.folders[other]} than in {self.folders[first]}; they are of "
                    "different images"
                )
        if self.ignore_label is not None and "truth" in labels:
            ignored = labels["truth"] == self.ignore_label
            labels = {name: np.where(ignored, 0, one) for name, one in labels.items()}
        return labels

    def dice(self, labels: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Return the Dice of each prediction; none without a truth."""
        return {name: _dice(labels["truth"], labels[name]) for name in labels if "truth" in labels and name != "truth"}


@contextmanager
def _readable(files: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # readers raise various types for damaged files
        raise ValueError(f"{files} cannot be read ({' '.join(str(error).split())}); {AGAIN}") from None


def _dice(truth: np.ndarray, prediction: np.ndarray) -> float:
    """Return the mean Dice of the labels that are in either."""
    scores = []
    for label in sorted({*np.unique(truth), *np.unique(prediction)} - {0}):
        first, second = truth == label, prediction == label
        scores.append(2 * (first & second).sum() / (first.sum() + second.sum()))
    return float(np.mean(scores)) if scores else 1.0


def _read(case: str, files: Sequence[str], segmentations: _Segmentations) -> _Case:
    labels = segmentations.read(case)
    with _readable(shorten(files)):
        image, properties = segmentations.reader.read_images(list(files))
    first = next(iter(labels))
    if labels[first].shape != image.shape[1:]:
        raise ValueError(
            f"{case} in {segmentations.folders[first]} has another size than its image; they are of different images"
        )
    spacing = properties["spacing"]
    # nnU-Net gives two-dimensional images a first axis of length one, with a spacing that means nothing.
    across = 0 if image.shape[1] == 1 else int(np.argmax(spacing))
    foreground = next(iter(labels.values())) > 0
    position = int(np.argmax(foreground.sum(axis=tuple(axis for axis in range(3) if axis != across))))
    rest = [length for axis, length in enumerate(spacing) if axis != across]
    slices = np.take(image, position, axis=1 + across)
    picture = to_picture(slices, segmentations.has_colors)
    cut = {name: np.take(one, position, axis=across) for name, one in labels.items()}
    return _Case(case, picture, cut, segmentations.dice(labels), rest[0] / rest[1])


def _draw(cases: Sequence[_Case], columns: Sequence[str], names: Mapping[int, str]) -> Figure:
    # As high as the images are: rows of a fixed height would leave gaps between flat ones.
    heights = [min(WIDTH * case.aspect * case.image.shape[0] / case.image.shape[1], 2 * WIDTH) for case in cases]
    legend = 0.5 + 0.25 * (len(names) // LEGEND_COLUMNS)
    size = (WIDTH * (1 + len(columns)), sum(heights) + 0.3 * len(cases) + legend)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(cases), 1 + len(columns), squeeze=False, height_ratios=heights)
    for number, (row, case) in enumerate(zip(grid, cases, strict=True)):
        row[0].set_ylabel(case.name, fontsize=8)
        for axes, column in zip(row, [None, *columns], strict=True):
            axes.imshow(case.image, cmap="gray", aspect=case.aspect)
            axes.set(xticks=[], yticks=[])
            if column is not None:
                outline(axes, case.labels[column])
            title = (column or "image") if number == 0 else ""
            score = f"Dice {100 * case.dice[column]:.0f} %" if column in case.dice else ""
            axes.set_title("\n".join(filter(None, (title, score))), fontsize=9)
    label_legend(figure, names, (one for case in cases for one in case.labels.values()))
    return figure
