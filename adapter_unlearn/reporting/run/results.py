"""The results of a run or an evaluation: what report, card, figures and tables are made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adapter_unlearn.reporting import facts, form_names
from adapter_unlearn.reporting.formatting import number
from adapter_unlearn.reporting.frames import Band, holdout_band

if TYPE_CHECKING:  # evaluation.report imports torch, which reporting does without
    from adapter_unlearn.evaluation.report import Report
    from adapter_unlearn.evaluation.summary import Summary


@dataclass(frozen=True)
class RunResults:
    """A report with its manifest.

    Attributes:
        report: what was measured.
        manifest: of the run or the evaluation; may lack any key.
        train_log: one record per epoch; empty for an evaluation.
        scales: one record per scale that was measured; empty without a search.
    """

    report: Report
    manifest: dict[str, Any]
    train_log: Sequence[dict[str, Any]] = ()
    scales: Sequence[dict[str, Any]] = ()

    @property
    def summary(self) -> Summary:
        """The aggregates of all forms."""
        return self.report.summary

    @property
    def forms(self) -> list[str]:
        """All forms, in the order of display."""
        return form_names.ordered(self.summary.forms)

    @property
    def after(self) -> list[str]:
        """All forms but the base."""
        return form_names.after(self.forms)

    @property
    def band(self) -> Band:
        """The range of memorization accuracy of never-seen text."""
        return holdout_band(self.report.holdout)

    @property
    def kept_epoch(self) -> int | None:
        """The epoch whose adapter was kept."""
        kept = number((self.manifest.get("outcome") or {}).get("kept_epoch"))
        return None if kept is None else int(kept)

    @property
    def chosen_scale(self) -> float | None:
        """The scale of the final adapter."""
        return facts.chosen_scale(self.manifest)
