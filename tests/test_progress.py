"""Bars of phases: what they count, and when they show."""

from __future__ import annotations

import time

import pytest

from adapter_unlearn import progress
from adapter_unlearn.reporting.progress import Progress


@pytest.fixture
def instant(monkeypatch):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    monkeypatch.setattr(progress, "DELAY", 0.0)


def test_a_phase_is_named_counted_and_vanishes(instant, capsys):
    with progress.phase("measure base"), progress.bar("score", 4, "seq", mininterval=0) as bar:
        bar.update(3)
        shown = capsys.readouterr().err
        assert "measure base: score:  75%" in shown and "3/4" in shown
    assert capsys.readouterr().err.strip("\r\n \x1b[A") == ""


@pytest.mark.parametrize(("name", "value"), [("TQDM_DISABLE", "1"), ("RANK", "1")])
def test_no_bar_where_it_is_not_wanted(instant, monkeypatch, capsys, name, value):
    monkeypatch.setenv(name, value)
    with progress.bar("score", 4, "seq") as bar:
        bar.update(4)
    assert capsys.readouterr().err == ""


def test_a_short_phase_shows_nothing(monkeypatch, capsys):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    with progress.bar("score", 4, "seq") as bar:
        bar.update(4)
    assert capsys.readouterr().err.strip() == ""


class NoTracker:
    trackers = ()
    is_main_process = True

    def log(self, numbers, step):
        pass


def test_the_estimate_of_an_epoch_leaves_preparation_out(instant, monkeypatch):
    """100 seconds of preparation, then epochs of 2 seconds, of which 10 are left."""
    now = [1000.0]
    monkeypatch.setattr(time, "time", lambda: now[0])
    record = {"epoch": 1, "n_selected": 1, "memorization_accuracy_mean": 0.5, "memorization_accuracy_max": 0.5}
    record |= {"outliers_high": 0, "outliers_low_new": 0}
    with Progress("match", 13, NoTracker()) as training:
        training.bar._time = time.time
        now[0] += 100
        training.start()
        for _ in range(3):
            now[0] += 2
            training.update(record)
        rate = training.bar.format_dict["rate"] or training.bar.n / training.bar.format_dict["elapsed"]
        assert (13 - 3) / rate == pytest.approx(20, rel=0.2)
