from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnunetv2_micd.data.dataset import has_colors
from nnunetv2_micd.utils.figures import to_picture


@pytest.mark.parametrize(
    ("reader", "channels", "expected"),
    [(NaturalImage2DIO, 3, True), (NaturalImage2DIO, 1, False), (SimpleITKIO, 3, False)],
)
def test_only_photographs_have_colors(reader: type, channels: int, expected: bool) -> None:
    plans: Any = SimpleNamespace(image_reader_writer_class=reader)
    assert has_colors(plans, {"channel_names": {str(number): "any" for number in range(channels)}}) == expected


def test_colors_are_drawn_between_0_and_1() -> None:
    channels = np.stack([np.full((2, 4), value) for value in (-1.0, 1.0, 3.0)])
    assert to_picture(channels, has_colors=True)[0, 0].tolist() == [0, 0.5, 1]
    assert to_picture(channels, has_colors=False).shape == (2, 4)
