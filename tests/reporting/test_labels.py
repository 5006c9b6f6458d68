"""Where labels go."""

import numpy as np

from adapter_unlearn.reporting import labels


def test_labels_lie_apart_and_in_the_picture():
    rng = np.random.default_rng(0)
    points = rng.uniform(40, 360, (9, 2))
    points[1], points[2] = points[0] + 3, points[0] - 3
    sizes = np.tile([60.0, 12.0], (9, 1))
    line = np.array([[0.0, 200.0], [400.0, 200.0]])
    boxes = labels.place(points, sizes, (0, 0, 400, 400), 8, [line])
    for i, box in enumerate(boxes):
        assert min(box) >= 0 and max(box) <= 400
        assert not box[1] < 200 < box[3], "on the line"
        for other in boxes[:i]:
            assert box[2] <= other[0] or other[2] <= box[0] or box[3] <= other[1] or other[3] <= box[1]
        for x, y in points:
            assert not (box[0] < x < box[2] and box[1] < y < box[3])
