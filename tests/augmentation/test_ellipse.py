"""Ellipses of known masks, and reflections whose result is known."""

import warnings

import numpy as np
import pytest
import torch

from nnunetv2_micd.augmentation.ellipse import Ellipse, Reflection, fit_ellipse, outline


def make_ellipse(center: tuple[float, float], radii: tuple[float, float], degrees: float) -> Ellipse:
    """Return an ellipse whose shorter axis has this angle to the rows."""
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return Ellipse(np.array(center), np.array(radii), np.array([[cosine, sine], [-sine, cosine]]))


def points_on(ellipse: Ellipse, angles: np.ndarray) -> np.ndarray:
    return ellipse.center + np.stack((np.cos(angles), np.sin(angles)), 1) * ellipse.radii @ ellipse.axes


@pytest.mark.parametrize("degrees", [0, 30, 90, 170])
@pytest.mark.parametrize("angles", [np.linspace(0, 6, 40), np.linspace(0, 2, 10)], ids=["whole", "arc"])
def test_fit_finds_the_ellipse_of_its_points(degrees: float, angles: np.ndarray) -> None:
    ellipse = make_ellipse((200.0, 310.0), (40.0, 90.0), degrees)
    fitted = fit_ellipse(points_on(ellipse, angles))
    np.testing.assert_allclose(fitted.center, ellipse.center, rtol=1e-5)
    np.testing.assert_allclose(fitted.radii, ellipse.radii, rtol=1e-5)
    np.testing.assert_allclose(np.abs((fitted.axes * ellipse.axes).sum(1)), 1, rtol=1e-6)  # either direction


def test_fit_is_that_of_scikit_image() -> None:
    measure = pytest.importorskip("skimage.measure")
    noise = np.random.default_rng(0).normal(0, 2, (60, 2))
    points = points_on(make_ellipse((50.0, 60.0), (20.0, 35.0), 25), np.linspace(0, 6, 60)) + noise
    ours = fit_ellipse(points)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of newer versions, which have another way
        model = measure.EllipseModel()
        try:
            assert model.estimate(points)
        except TypeError:  # scikit-image 0.26 and NumPy 2.5, whose eigenvalues are complex numbers
            pytest.skip("scikit-image does not know this version of NumPy")
        *center, first, second, _ = model.params
    np.testing.assert_allclose(ours.center, center, rtol=1e-6)
    np.testing.assert_allclose(ours.radii, sorted((first, second)), rtol=1e-6)


@pytest.mark.parametrize(
    "points",
    [
        np.argwhere(np.eye(4)),
        np.argwhere(np.eye(30)),
        np.stack((np.arange(20), 2.3 * np.arange(20) + 1), 1),
        np.stack((np.arange(20), np.zeros(20)), 1),
        np.stack((np.arange(20), np.arange(20) ** 2), 1),
        np.zeros((0, 2)),
    ],
    ids=["too few", "diagonal", "line", "row", "parabola", "none"],
)
def test_no_ellipse(points: np.ndarray) -> None:
    assert fit_ellipse(points) is None


def test_squared_distance_by_hand() -> None:
    distance = make_ellipse((2.0, 3.0), (1.0, 2.0), 90).squared_distance((5, 7))  # shorter along the columns
    assert distance[2, 3] == 0
    assert distance[2, 4] == distance[2, 2] == pytest.approx(1)
    assert distance[0, 3] == distance[4, 3] == pytest.approx(1)
    assert distance[1, 5] == pytest.approx(0.25 + 4)


def test_outline_is_that_of_the_largest_component_without_its_holes_and_cuts() -> None:
    mask = np.array(
        [
            [0, 0, 0, 0, 0, 0, 1],
            [1, 1, 1, 1, 0, 0, 1],
            [1, 1, 0, 1, 0, 0, 0],
            [1, 1, 1, 1, 0, 0, 0],
            [1, 1, 1, 1, 0, 0, 0],
        ]
    )
    expected = {(1, 0), (1, 1), (1, 2), (1, 3), (2, 3), (3, 3), (4, 3)}  # neither the hole nor the left and lower edge
    assert set(map(tuple, outline(mask.astype(bool)))) == expected
    assert outline(np.zeros((3, 3), bool)).shape == (0, 2)


def test_ellipse_of_a_mask_that_the_image_cuts_off() -> None:
    ellipse = make_ellipse((30.0, 10.0), (18.0, 25.0), 35)
    fitted = fit_ellipse(outline(ellipse.squared_distance((64, 64)) <= 1))
    np.testing.assert_allclose(fitted.center, ellipse.center, atol=1)
    np.testing.assert_allclose(fitted.radii, ellipse.radii, atol=1.5)


def test_reflection_by_hand() -> None:
    """Across a column, a row and a diagonal; from outside of the image comes nothing."""
    images = torch.arange(9.0).view(1, 1, 3, 3).expand(3, 2, 3, 3)
    point = torch.tensor([[1.0, 1.0], [0.5, 0.0], [0.0, 0.0]])
    normal = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.5**0.5, -(0.5**0.5)]])
    reflection = Reflection(point, normal, (3, 3))
    column, row, diagonal = reflection(images)[:, 0].int().tolist()
    assert column == [[2, 1, 0], [5, 4, 3], [8, 7, 6]]
    assert row == [[3, 4, 5], [0, 1, 2], [6, 7, 8]]
    assert diagonal == [[0, 3, 6], [1, 4, 7], [2, 5, 8]]
    assert reflection.side[0, 0].tolist() == [[True, False, False]] * 3
    assert reflection.side[1, 0].tolist() == [[True] * 3, [False] * 3, [False] * 3]
    assert reflection.side[2, 0].tolist() == [[False, True, True], [False, False, True], [False] * 3]


def test_gradient_flows_through_a_reflection() -> None:
    image = torch.zeros(1, 1, 1, 4, dtype=torch.float16, requires_grad=True)
    reflected = Reflection(torch.tensor([[0.0, 1.5]]), torch.tensor([[0.0, 1.0]]), (1, 4))(image)
    assert reflected.dtype == torch.float32
    reflected[..., 0].sum().backward()
    assert image.grad.flatten().tolist() == [0, 0, 0, 1]
