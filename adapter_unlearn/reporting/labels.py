"""Place the labels of points in a figure without overlaps. Geometry only, in pixels."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

_STEPS = (0.0, 10.0, 22.0, 36.0, 52.0)
_SIDES = ((1, 0), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1), (0, 1), (0, -1))
Box = tuple[float, float, float, float]


def place(points: np.ndarray, sizes: np.ndarray, frame: Box, gap: float, lines: Sequence[np.ndarray] = ()) -> list[Box]:
    """Choose a box for the label of every point, as near to it as possible.

    Candidates lie beside the point at growing distances. The first candidate inside the frame that covers no dot, no
    line and no other label is taken; if there is none, the one that covers least.

    Args:
        points: shape (n, 2).
        sizes: width and height of the labels, shape (n, 2).
        frame: left, bottom, right, top of the drawing area.
        gap: distance from a dot's centre to its label; also a dot's width.
        lines: horizontal and vertical lines in the drawing, each as corners of shape (m, 2).

    Returns:
        Left, bottom, right, top of each label, in the order of the points.
    """
    dots = [(x - gap / 2, y - gap / 2, x + gap / 2, y + gap / 2) for x, y in points]
    drawn = [_around(a, b, gap / 4) for corners in lines for a, b in pairwise(corners)]
    placed: dict[int, Box] = {}
    for i in np.lexsort((points[:, 0], -points[:, 1])):  # from the top: the worst points get the best places
        others = [*placed.values(), *(dot for j, dot in enumerate(dots) if j != i), *drawn]
        candidates = _boxes(points[i], sizes[i], gap)
        costs = [sum(_overlap(box, other) for other in others) + 10 * _outside(box, frame) for box in candidates]
        placed[int(i)] = candidates[int(np.argmin(costs))]
    return [placed[i] for i in range(len(points))]


def _around(a: np.ndarray, b: np.ndarray, margin: float) -> Box:
    return min(a[0], b[0]) - margin, min(a[1], b[1]) - margin, max(a[0], b[0]) + margin, max(a[1], b[1]) + margin


def _boxes(point: np.ndarray, size: np.ndarray, gap: float) -> list[Box]:
    (x, y), (width, height) = point, size
    boxes = []
    for step in _STEPS:
        for right, up in _SIDES:
            left = x + right * (gap + step) - (0 if right > 0 else width if right < 0 else width / 2)
            # level with the point beside it; above or below it at an angle
            lift = up * (step + (gap / 2 if right else gap))
            bottom = y + lift - (0 if up > 0 else height if up < 0 else height / 2)
            boxes.append((left, bottom, left + width, bottom + height))
    return boxes


def _overlap(a: Box, b: Box) -> float:
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(wide, 0.0) * max(high, 0.0)


def _outside(box: Box, frame: Box) -> float:
    area = (box[2] - box[0]) * (box[3] - box[1])
    return area - _overlap(box, frame)


def nearest(point: Sequence[float], box: Box) -> tuple[float, float]:
    """The point of a box that is nearest to a given point; a leader line to the label ends there."""
    return min(max(point[0], box[0]), box[2]), min(max(point[1], box[1]), box[3])
