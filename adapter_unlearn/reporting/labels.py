"""Where the names of points go in a picture: near them, and over nothing else. Geometry only, in pixels."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

_STEPS = (0.0, 10.0, 22.0, 36.0, 52.0)
_SIDES = ((1, 0), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1), (0, 1), (0, -1))
Box = tuple[float, float, float, float]


def place(points: np.ndarray, sizes: np.ndarray, frame: Box, gap: float, lines: Sequence[np.ndarray] = ()) -> list[Box]:
    """A box for the label of every point, as near as there is room.

    The boxes tried are beside the point, first touching the gap, then further off; the first one is taken that lies in
    the frame and on no dot, no line and no other label. Where none does, the one that covers least.

    Args:
        points: shape (n, 2).
        sizes: of the labels, shape (n, 2).
        frame: left, bottom, right, top of the picture's area.
        gap: from a dot's centre to its label, and a dot's width.
        lines: drawn ones, upright and level only: corners of shape (m, 2) each.

    Returns:
        Left, bottom, right, top of each label, in the order of the points.
    """
    dots = [(x - gap / 2, y - gap / 2, x + gap / 2, y + gap / 2) for x, y in points]
    drawn = [_around(a, b, gap / 4) for corners in lines for a, b in pairwise(corners)]
    placed: dict[int, Box] = {}
    for i in np.lexsort((points[:, 0], -points[:, 1])):  # from above, for labels of the worst are looked for first
        others = [*placed.values(), *(dot for j, dot in enumerate(dots) if j != i), *drawn]
        tried = _boxes(points[i], sizes[i], gap)
        costs = [sum(_overlap(box, other) for other in others) + 10 * _outside(box, frame) for box in tried]
        placed[int(i)] = tried[int(np.argmin(costs))]
    return [placed[i] for i in range(len(points))]


def _around(a: np.ndarray, b: np.ndarray, room: float) -> Box:
    return min(a[0], b[0]) - room, min(a[1], b[1]) - room, max(a[0], b[0]) + room, max(a[1], b[1]) + room


def _boxes(point: np.ndarray, size: np.ndarray, gap: float) -> list[Box]:
    (x, y), (width, height) = point, size
    found = []
    for step in _STEPS:
        for right, up in _SIDES:
            left = x + right * (gap + step) - (0 if right > 0 else width if right < 0 else width / 2)
            # a label beside its point stands level with it, one at an angle above or below
            lift = up * (step + (gap / 2 if right else gap))
            bottom = y + lift - (0 if up > 0 else height if up < 0 else height / 2)
            found.append((left, bottom, left + width, bottom + height))
    return found


def _overlap(a: Box, b: Box) -> float:
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(wide, 0.0) * max(high, 0.0)


def _outside(box: Box, frame: Box) -> float:
    area = (box[2] - box[0]) * (box[3] - box[1])
    return area - _overlap(box, frame)


def nearest(point: Sequence[float], box: Box) -> tuple[float, float]:
    """The place in a box that is nearest to a point: where a line from the point to its label ends."""
    return min(max(point[0], box[0]), box[2]), min(max(point[1], box[1]), box[3])
