"""Lay out HC18 (ultrasound of fetal heads) as a raw nnU-Net dataset, shrunk four times and with filled heads.

DOWNLOAD_FOLDER is the unpacked training_set.zip, which contains 000_HC.png and 000_HC_Annotation.png. Most images have
800 x 540 pixels, and the annotation of a head is its outline. There are no published lists of labeled cases:
``nnUNetv2_micd benchmark`` draws them, and the test cases. ``groups.json`` keeps the images of an examination together.
Four images whose outline leaves the image, and so cannot be filled, are left out.
"""

from pathlib import Path

import numpy as np
from layout import Benchmark, Files, check_download, run
from scipy.ndimage import binary_fill_holes
from skimage import io
from skimage.transform import resize_local_mean

SHRINK = 4
OUTLINE_LEAVES_IMAGE = ("186_HC", "346_HC", "628_2HC", "787_HC")


def describe(download: Path) -> Benchmark:
    check_download(download, ["*HC.png", "*HC_Annotation.png"], "HC18")
    cases = sorted({path.stem for path in download.glob("*HC.png")}.difference(OUTLINE_LEAVES_IMAGE))
    return Benchmark(
        name="FetalHead",
        description={
            "channel_names": {"0": "US"},
            "labels": {"background": 0, "head": 1},
            "file_ending": ".png",
        },
        files={case: Files(download / f"{case}.png", download / f"{case}_Annotation.png") for case in cases},
        train=cases,
        val=[],
        test=[],
        labeled={},
        convert_images=convert_image,
        convert_labels=convert_labels,
        groups={case: case.partition("_")[0] for case in cases},
    )


def convert_image(files: Files, path: Path) -> None:
    """Write the image, each pixel a mean of 4 x 4 of the download."""
    io.imsave(path, np.rint(shrink(read(files.image))).astype(np.uint8), check_contrast=False)


def convert_labels(files: Files, path: Path) -> None:
    """Write the filled outline. A pixel is head if at least half of its 4 x 4 pixels are."""
    outline, image = read(files.label) > 0, read(files.image)
    if outline.shape != image.shape:
        raise ValueError(
            f"{files.label} has {outline.shape} pixels, its image {image.shape}; unpack the download again"
        )
    filled = binary_fill_holes(outline)
    if filled.sum() == outline.sum():
        raise ValueError(f"{files.label} has no closed outline; unpack the download again")
    io.imsave(path, (shrink(filled) >= 0.5).astype(np.uint8), check_contrast=False)


def read(path: Path) -> np.ndarray:
    """Return an image as gray values, also where the file has them three times, as colors."""
    try:
        image = io.imread(path)
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); unpack the download again") from None
    return image if image.ndim == 2 else image[..., 0]


def shrink(image: np.ndarray) -> np.ndarray:
    return resize_local_mean(image.astype(np.float64), [round(size / SHRINK) for size in image.shape])


if __name__ == "__main__":
    run(describe, __doc__, 705)
