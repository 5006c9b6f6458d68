"""`renewed` replaces the files of a folder, the mark last."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapter_unlearn.runs import run_folder


def test_renewed_puts_its_mark_last(tmp_path):
    out = tmp_path / "out"
    with run_folder.renewed(out, "mark") as staging:
        (staging / "mark").write_text("1")
        (staging / "figures").mkdir()
        (staging / "figures" / "a.png").write_text("1")
    (out / "runs").mkdir()
    seen = []
    replace_file = Path.replace

    def watched(self, target):
        seen.append((self.name, (out / "mark").exists()))
        return replace_file(self, target)

    with pytest.MonkeyPatch.context() as patch, run_folder.renewed(out, "mark") as staging:
        patch.setattr(Path, "replace", watched)
        for name in ("mark", "new"):
            (staging / name).write_text("2")
        (staging / "figures").mkdir()
    assert seen[-1] == ("mark", False) and {name for name, _ in seen} == {"mark", "new", "figures"}
    assert sorted(path.name for path in out.iterdir()) == ["figures", "mark", "new", "runs"]
    assert not list((out / "figures").iterdir()), "the old figures are gone"
