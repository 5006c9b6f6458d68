"""The page of several adapters and several forget sets."""

from typing import Any

import pandas as pd

from adapter_unlearn.reporting import facts, page
from adapter_unlearn.reporting.formatting import clean, plural
from adapter_unlearn.reporting.images import Picture
from adapter_unlearn.reporting.interference.findings import findings, owners
from adapter_unlearn.reporting.interference.matrix import matrix_of, parts


def render_interference(rows: pd.DataFrame, manifest: dict[str, Any], picture: Picture) -> str:
    """The page; `rows` and `manifest` as for `interference.write`."""
    owner, matrix = owners(manifest), matrix_of(rows)
    return page.render(
        "interference/interference.html.j2",
        manifest,
        headline="Which adapters stop the recitation of which texts",
        subject=f"{clean(facts.base_name(manifest))}, {plural(len(matrix.adapters), 'adapter')},"
        f" {plural(len(matrix.sets), 'forget set')}",
        findings=findings(rows, owner),
        pictures=[picture],
        matrix=matrix,
        recited=parts(matrix)[0],
        accuracy=parts(matrix)[1],
        owner=owner,
        provenance=[
            *((f"adapter for {clean(name)}", clean(adapter)) for name, adapter in owner.items()),
            *facts.provenance({key: value for key, value in manifest.items() if key != "adapters"}),
        ],
        limits=page.limits(adapter=True),
    )
