"""Share work among the processes of a launch and collect the results. No other module does this."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from accelerate import Accelerator

T = TypeVar("T")


def share_of(items: list[T], accelerator: Accelerator | None) -> list[T]:
    """This process's share of the items: every n-th item on n processes."""
    return items if accelerator is None else items[accelerator.process_index :: accelerator.num_processes]


def gathered(by_index: Mapping[int, T], accelerator: Accelerator | None) -> dict[int, T]:
    """The entries of all processes, on every process."""
    if accelerator is None or accelerator.num_processes == 1:
        return dict(by_index)
    from accelerate.utils import gather_object

    return dict(gather_object(list(by_index.items())))


def broadcast(value: Any, accelerator: Accelerator) -> Any:
    """The first process's value, on every process."""
    if accelerator.num_processes == 1:
        return value
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([value])[0]
