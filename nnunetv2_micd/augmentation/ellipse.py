"""Ellipses that fit the outline of a mask, and reflections of images across an axis, in two dimensions.

Places are in voxels and in the order of the axes of an array: row, column. The ellipse is fitted in NumPy, on the CPU;
the reflection works on any device.
"""

from collections.abc import Sequence
from typing import NamedTuple

import cc3d
import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import binary_erosion, binary_fill_holes
from torch import Tensor

MIN_POINTS = 5
"""Number of points that determine an ellipse."""

DEGENERATE = 1e-4
"""Value of ``4 a c - b^2``, of quadratic coefficients of unit length, below which a conic counts as no ellipse: one of
its axes is then about 200 times as long as the other."""


class Ellipse(NamedTuple):
    """An ellipse in the plane of an image.

    Attributes:
        center: ``(2,)``.
        radii: Semi-axes ``(2,)``, the shorter first.
        axes: Unit vectors along them ``(2, 2)``, a row for each.

    Examples:
        >>> ellipse = Ellipse(center=np.array([0.0, 2.0]), radii=np.array([1.0, 2.0]), axes=np.eye(2))
        >>> ellipse.squared_distance((2, 4))
        array([[1.  , 0.25, 0.  , 0.25],
               [2.  , 1.25, 1.  , 1.25]])
    """

    center: np.ndarray
    radii: np.ndarray
    axes: np.ndarray

    def squared_distance(self, shape: Sequence[int]) -> np.ndarray:
        """Return ``(u / a)^2 + (v / b)^2`` of each voxel, in the frame of the ellipse: 1 on it, 0 in its center.

        Args:
            shape: Size of the image in voxels.

        Returns:
            ``(*shape)``, float64.
        """
        row, column = (np.arange(size) - start for size, start in zip(shape, self.center, strict=True))
        along_row, along_column = (self.axes / self.radii[:, None]).T[..., None, None]
        return ((row[:, None] * along_row + column * along_column) ** 2).sum(0)


def outline(mask: np.ndarray) -> np.ndarray:
    """Return the outer voxels of the largest component of a mask; voxels that touch at a corner are connected.

    Holes have no outline. Neither has the edge of the image, where an object is cut off and not at its end.

    Args:
        mask: ``(rows, columns)``, bool.

    Returns:
        Places ``(N, 2)``; none for an empty mask.

    Examples:
        >>> outline(np.array([[True, True, False, True]]))  # the larger component ends beside its second voxel
        array([[0, 1]])
    """
    filled = binary_fill_holes(cc3d.largest_k(mask, k=1, connectivity=8) > 0)
    return np.argwhere(filled & ~binary_erosion(filled, border_value=1))


def fit_ellipse(points: np.ndarray) -> Ellipse | None:
    """Fit an ellipse to points, in the sense of algebraic least squares.

    Fitzgibbon, Pilu & Fisher, "Direct least square fitting of ellipses", PAMI 1999, in the stable form of Halir &
    Flusser, 1998, which is also the one of scikit-image.

    Args:
        points: ``(N, 2)``.

    Returns:
        The ellipse, or None where the points determine none, for example on a line.

    Examples:
        >>> ellipse = fit_ellipse(np.array([[0, 4], [4, 4], [2, 1], [2, 7], [2 + 3**0.5, 5.5]]))
        >>> ellipse.center.round(6), ellipse.radii.round(6)
        (array([2., 4.]), array([2., 3.]))
    """
    if len(points) < MIN_POINTS:
        return None
    try:
        ellipse = _fit(points.astype(float))
    except np.linalg.LinAlgError:
        return None
    return ellipse if np.isfinite(ellipse.radii).all() else None


def _fit(points: np.ndarray) -> Ellipse:
    # Centered and scaled points keep the matrices well-conditioned.
    middle, scale = points.mean(0), points.std()
    x, y = ((points - middle) / scale).T
    quadratic, linear = np.stack((x * x, x * y, y * y), 1), np.stack((x, y, np.ones_like(x)), 1)
    to_linear = -np.linalg.solve(linear.T @ linear, linear.T @ quadratic)
    reduced = quadratic.T @ quadratic + quadratic.T @ linear @ to_linear
    # The constraint 4 a c - b^2 = 1, which only ellipses fulfill, makes it an eigenvalue problem.
    vectors = np.linalg.eig(np.stack((reduced[2] / 2, -reduced[1], reduced[0] / 2)))[1].real
    a, b, c = vectors[:, (4 * vectors[0] * vectors[2] - vectors[1] ** 2).argmax()]
    if 4 * a * c - b**2 < DEGENERATE:
        raise np.linalg.LinAlgError("The points lie on a line, a parabola or a hyperbola.")
    form, slope, offset = np.array([[2 * a, b], [b, 2 * c]]), *np.split(to_linear @ (a, b, c), [2])
    center = np.linalg.solve(form, -slope)
    curvature, axes = np.linalg.eigh(-form / (2 * offset + slope @ center))
    if not (curvature > 0).all():
        raise np.linalg.LinAlgError("The curve has no point.")
    order = [1, 0]  # the largest curvature is that of the shorter axis
    return Ellipse(middle + scale * center, scale / np.sqrt(curvature[order]), axes.T[order])


class Reflection:
    """Reflection of images across one line each: to the nearest voxel, and none where that lies outside of the image.

    Args:
        point: A point of each line ``(B, 2)``.
        normal: Unit vector perpendicular to each line ``(B, 2)``, on the same device.
        spatial: Size of the images in voxels.

    Attributes:
        side: ``(B, 1, *spatial)``, bool: voxels on that side of the line from which the normal points away.

    Examples:
        >>> reflection = Reflection(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, 1.0]]), (1, 4))
        >>> reflection(torch.tensor([[[[1.0, 2.0, 3.0, 4.0]]]]))  # the fourth column would come from outside
        tensor([[[[3., 2., 1., 4.]]]])
        >>> reflection.side
        tensor([[[[ True, False, False, False]]]])
    """

    def __init__(self, point: Tensor, normal: Tensor, spatial: Sequence[int]):
        height, width = spatial
        row = torch.arange(height, device=point.device).view(-1, 1)
        column = torch.arange(width, device=point.device)
        (row_0, column_0), (along_row, along_column) = (vector.T[..., None, None] for vector in (point, normal))
        distance = (row - row_0) * along_row + (column - column_0) * along_column
        self.side = distance[:, None] < 0
        from_row, from_column = row - 2 * distance * along_row, column - 2 * distance * along_column
        inside = (from_row > -0.5) & (from_row < height - 0.5) & (from_column > -0.5) & (from_column < width - 0.5)
        from_row, from_column = torch.where(inside, from_row, row), torch.where(inside, from_column, column)
        # grid_sample wants the column first, from -1 to 1.
        self._grid = torch.stack((from_column / max(width - 1, 1), from_row / max(height - 1, 1)), -1) * 2 - 1

    def __call__(self, images: Tensor) -> Tensor:
        """Return the reflected images ``(B, channels, *spatial)``, float32; gradient flows back to them."""
        return F.grid_sample(images.float(), self._grid, mode="nearest", padding_mode="border", align_corners=True)
