"""The progress bar of a run."""

from types import SimpleNamespace

import pytest

from adapter_unlearn.reporting.progress import Progress


@pytest.mark.parametrize(
    ("first", "disable", "shown"),
    [(True, "", True), (True, "1", False), (False, "", False)],
    ids=["shown", "disabled", "another process"],
)
def test_the_bar_can_be_silenced(monkeypatch, capsys, first, disable, shown):
    monkeypatch.setenv("TQDM_DISABLE", disable)
    accelerator = SimpleNamespace(is_main_process=first, trackers=[], log=lambda *_, **__: None)
    with Progress("sga", 3, accelerator) as progress:
        progress.update({"epoch": 0})
    assert bool(capsys.readouterr().err) is shown
