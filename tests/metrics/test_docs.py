"""The generated page docs/metrics.md."""

from __future__ import annotations

from pathlib import Path

from adapter_unlearn.metrics import METRICS, docs


def test_the_page_of_metrics_is_up_to_date():
    """If not: python -m adapter_unlearn.metrics.docs > docs/metrics.md."""
    written = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert written == docs.page()
    assert all(f"\n| `{name}` | " in written for name in METRICS)
    rows = [line for line in written.splitlines() if line.startswith("| `")]
    assert all(line.replace("\\|", "").count("|") == 8 for line in rows), "a bar in a formula ends its cell"
