"""Progress of training: a bar with |S|, memorization and outliers, and the experiment tracker's log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adapter_unlearn import progress

if TYPE_CHECKING:
    from accelerate import Accelerator


class Progress:
    """A bar on the first process, one step per epoch. Its estimate counts epochs alone, no preparation."""

    def __init__(self, method: str, epochs: int, accelerator: Accelerator):
        self.accelerator = accelerator
        silent = progress.is_silent() or not accelerator.is_main_process
        self.bar = progress.bar(method, epochs, "epoch", leave=True, delay=0, disable=silent)

    def __enter__(self) -> Progress:
        return self

    def skip(self, epochs: int) -> None:
        """Count epochs that were trained before this process."""
        self.bar.n = self.bar.initial = epochs
        self.bar.refresh()

    def start(self) -> None:
        """Leave out the time since the last epoch, or since the bar was made."""
        self.bar.unpause()

    def update(self, record: dict[str, Any]) -> None:
        """Show the record of an epoch and log its numbers to the tracker."""
        if record["epoch"]:
            self.bar.set_postfix_str(
                f"|S| {record['n_selected']}, MA mean {record['memorization_accuracy_mean']:.2f} "
                f"max {record['memorization_accuracy_max']:.2f}, outliers {record['outliers_high']} high "
                f"{record['outliers_low_new']} new low",
                refresh=False,
            )
            self.bar.update()
        numbers = {key: value for key, value in record.items() if isinstance(value, int | float)}
        self.accelerator.log(numbers, step=record["epoch"])

    def __exit__(self, *_: object) -> None:
        self.bar.close()
        for tracker in self.accelerator.trackers:
            tracker.finish()
