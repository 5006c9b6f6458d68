"""Frames by form, and the order of forms."""

import numpy as np
from reporting.builders import HOLDOUT, NO_HOLDOUT, frame

from adapter_unlearn.reporting import form_names, frames


def test_wide_keeps_every_row_even_under_equal_ids():
    table = frames.wide(frame({"base": [0.9, 0.8], "stacked": [0.1, 0.2]}, ["same", "same"]))
    assert len(table) == 2
    assert table["memorization_accuracy", "stacked"].tolist() == [0.1, 0.2]


def test_forms_have_one_order():
    assert form_names.ordered(["odd", "requantized", "base", "stacked"]) == ["base", "stacked", "requantized", "odd"]
    assert form_names.after(["stacked", "base"]) == ["stacked"]


def test_the_band_is_that_of_the_base():
    assert np.allclose(frames.holdout_band(HOLDOUT), (0.11, 0.29))
    assert frames.holdout_band(NO_HOLDOUT) is None
