"""Compare the metrics of both packages: write the tables as JSON and print docs/openunlearning.md.

    python benchmarks/openunlearning/compare.py --ours ours.json --theirs theirs.json \\
        --output benchmarks/results/openunlearning.json > docs/openunlearning.md

If values differ where the definitions are the same, the script exits with an error and writes nothing.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

TOLERANCE = 2e-5
"""Largest difference that float32 rounding explains. Logits have errors of 1e-6; Min-K%++ divides by small numbers."""

ZLIB_TOLERANCE = TOLERANCE / 100
"""zlib divides the loss by the number of bytes of a text, about 100."""

ONE_PAIR = 1 / (32 * 64)
"""Difference in AUC if one forget and one holdout sequence swap ranks."""

FORMS = {"text": "text", "prompt": "prompt + text"}
BOTH = tuple(FORMS)
AS_IS, APPENDED = "same tokens", "theirs gets one token more"


class Side(NamedTuple):
    """One comparison of our metric with theirs, in both forms of the data."""

    what: str
    ours: str
    variant: str
    theirs: str
    agrees_in: tuple[str, ...] = ()  # forms in which the definitions are the same
    shown_in: tuple[str, ...] = BOTH


def _last_left_out(name: str, label: str = "", ours: str = "") -> list[Side]:
    """Compare a metric of theirs that leaves out the last token: on the same tokens, and with one token appended."""
    return [
        Side(f"{label}{AS_IS}", ours or name, "as_is", name),
        Side(f"{label}{APPENDED}", ours or name, "token_appended", name, BOTH),
    ]


def _in_float64(name: str, label: str) -> Side:
    return Side(f"{label}the same, theirs from float64 logits", name, "token_appended_float64", name, BOTH)


TABLES: dict[str, tuple[list[Side], str]] = {
    "Extraction strength": (
        [
            *_last_left_out("extraction_strength", ours="extraction_strength_openunlearning"),
            Side(f"`extraction_strength`, {APPENDED}", "extraction_strength", "token_appended", "extraction_strength"),
        ],
        "`extraction_strength_openunlearning` uses OpenUnlearning's definition. On the same tokens OpenUnlearning "
        "scores one token less, because it treats the last token as an end token. Our own `extraction_strength` "
        "differs where not even the last token is recited: it is 0 there, while OpenUnlearning gives 1/L. This is "
        "the only difference in the third pair of rows. OpenUnlearning reports the mean over sequences and no AUC.",
    ),
    "Exact memorization": (
        _last_left_out("exact_memorization"),
        "OpenUnlearning scores the tokens that have labels. Ours is therefore computed with the prompt as prefix, or "
        "with a prefix of one token where there is no prompt. On the same tokens OpenUnlearning leaves out the last "
        "one.",
    ),
    "LOSS": (
        [
            Side(AS_IS, "loss", "as_is", "loss", BOTH),
            Side("the same, theirs from float64 logits", "loss", "as_is_float64", "loss", BOTH),
        ],
        "Both use the mean over all labels, including the last token. The remaining difference is rounding in "
        "OpenUnlearning's function: a cross-entropy over a transposed float32 tensor is about 6e-6 too low in every "
        "sequence. With the same logits as float64 (second pair of rows) the difference disappears.",
    ),
    "Min-K%": (
        [*_last_left_out("min_k", "k = 0.2, "), *_last_left_out("min_k_40", "k = 0.4, ")],
        "OpenUnlearning's score is the negative of ours, so that it has the direction of the loss; differences are "
        "taken after changing the sign. On the same tokens OpenUnlearning leaves out the last one. That token can be "
        "among the least likely ones, and it can change how many tokens are averaged. The default of its code is "
        "k = 0.2, as for `min_k`; the settings of its benchmarks use 0.4.",
    ),
    "Min-K%++": (
        [
            *_last_left_out("min_k_plus_plus", "k = 0.2, "),
            _in_float64("min_k_plus_plus", "k = 0.2, "),
            *_last_left_out("min_k_plus_plus_40", "k = 0.4, "),
            _in_float64("min_k_plus_plus_40", "k = 0.4, "),
        ],
        "Sign, last token and k are as for Min-K%. Both limit the standard deviation to at least 0.001 "
        "(OpenUnlearning limits the variance to 0.000001). The remaining difference is rounding, amplified by the "
        "division by small deviations: OpenUnlearning computes the variance as mean square minus squared mean in "
        "float32, ours from the differences to the mean. With float64 logits OpenUnlearning's values come closer to "
        "ours.",
    ),
    "zlib": (
        [
            Side(AS_IS, "zlib", "as_is", "zlib", ("prompt",)),
            Side(
                "the same, ours without the first token's text", "zlib_without_first_token", "as_is", "zlib",
                ("text",), ("text",),
            ),
        ],
        "The loss is that of the section LOSS. OpenUnlearning compresses the text of the tokens that have labels. "
        "The first token of a sequence never has a label, so without a prompt (and without a BOS token) the text of "
        "the first token is missing; ours includes it. With a prompt both compress what follows the prompt. "
        "OpenUnlearning's decoding also removes spaces before punctuation if the tokenizer is configured so, as it "
        "was here (the default of transformers 4.45.1). Ours never does. The texts have no such spaces.",
    ),
}  # fmt: skip

OPENING = """# Comparison with OpenUnlearning

<!-- Made by benchmarks/openunlearning/compare.py; edit that. -->

This page compares our metrics with those of [OpenUnlearning](https://github.com/locuslab/open-unlearning)
(Dorna et al., 2025, arXiv:2506.12618), sequence by sequence.

**Set-up.** OpenUnlearning is at commit `{revision}`. Its metric functions and its
collator are unchanged; they run under transformers {theirs[transformers]} and torch {theirs[torch]} (it pins 2.4.1).
This package runs under transformers {ours[transformers]} and torch {ours[torch]}. Both score the same token ids with
the embedded model in float32 on a CPU: the {forget} texts of the forget set, most of which the model recites, and the
{holdout} texts of the holdout set, which it never saw. The data has two forms: plain texts, where everything after
the first token is scored, and texts whose first 50 tokens (half of a shorter text) are the prompt. Batches have 8 rows
there and 16 here, with padding.

**Result.** Where the definitions are the same, the values are the same: all rows marked "yes" agree to {worst:.0e}
for every sequence, and in every digit of the AUC. Every other difference is explained below.

**Columns.** "n" is the number of sequences. "differ" is how many of them differ by more than {tolerance:.0e}
(zlib: {zlib:.0e}). "AUC" is the AUC of the forget set against the holdout set; 1 means that all texts of the forget
set look more memorized. "theirs" is OpenUnlearning. A dash means that OpenUnlearning does not compute the value.
"""

CLOSING = """
## Differences that are not in the tables

- If a sequence has nothing to score, OpenUnlearning gives 0 for extraction strength, Min-K% and Min-K%++, and leaves
  the sequence out of the mean of exact memorization. Ours is NaN with a note. (From reading its code, not measured.)
- OpenUnlearning's loader for plain texts appends no end token, so the token that is left out is a real one. Its chat
  loader appends an end token.
- Its reference attack compares with another model; ours (`reference_loss_difference`) compares with the same model
  without adapters. Its GradNorm and truth ratio have no counterpart here. None of them was compared.

## Reproduce

```
git clone https://github.com/locuslab/open-unlearning OPEN-UNLEARNING && git -C OPEN-UNLEARNING checkout {revision}
python -m venv OTHER && OTHER/bin/pip install torch==2.13.0 transformers==4.45.1 accelerate==0.34.2 datasets==3.0.1 \\
    hydra-core rouge_score scikit-learn scipy==1.14.1
python benchmarks/openunlearning/ours.py --output ours.json
OTHER/bin/python benchmarks/openunlearning/theirs.py --checkout OPEN-UNLEARNING --revision {revision} \\
    --model adapter_unlearn/assets/model --rows ours.json --output benchmarks/results/openunlearning_theirs.json
python benchmarks/openunlearning/compare.py --ours ours.json --theirs benchmarks/results/openunlearning_theirs.json \\
    --output benchmarks/results/openunlearning.json > docs/openunlearning.md
```

OpenUnlearning's values for every sequence are in benchmarks/results/openunlearning_theirs.json; a test compares ours
with them.
"""


def row(side: Side, form: str, ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """One row of a table."""
    other = theirs[side.variant][side.theirs]
    mine, its = (np.concatenate([s["forget"], s["holdout"]]) for s in (by_name(ours["scores"], side.ours), other))
    sign = -1 if side.theirs.startswith("min_k") else 1  # their Min-K% scores have the opposite sign
    difference = np.abs(sign * mine - its)
    tolerance = ZLIB_TOLERANCE if side.theirs == "zlib" else TOLERANCE
    return {
        "what": side.what,
        "form": form,
        "same_definition": form in side.agrees_in,
        "n": len(mine),
        "differ": int((difference > tolerance).sum()),
        "max_difference": float(difference.max()),
        "mean_ours": float(mine.mean()),
        "mean_theirs": float(its.mean()),
        "auc_ours": ours["auc"][side.ours],
        "auc_theirs": other["auc"],
    }


def by_name(scores: dict[str, dict[str, list[float]]], metric: str) -> dict[str, list[float]]:
    """Set -> one metric's values."""
    return {name: columns[metric] for name, columns in scores.items()}


def compare(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """All tables, with the versions and the numbers of sequences that they are based on."""
    tables = {
        title: [row(side, form, ours["forms"][form], theirs["forms"][form]) for side in sides for form in side.shown_in]
        for title, (sides, _) in TABLES.items()
    }
    counts = {name: len(rows["input_ids"]) for name, rows in ours["forms"]["text"]["rows"].items()}
    versions = {"ours": ours["versions"], "theirs": theirs["versions"]}
    return {"revision": theirs["revision"], "versions": versions, "sequences": counts, "tables": tables}


def disagreements(result: dict[str, Any]) -> list[str]:
    """The rows in which the definitions are the same and the values differ."""
    messages = []
    for title, lines in result["tables"].items():
        for line in lines:
            auc_difference = 0.0 if line["auc_theirs"] is None else abs(line["auc_ours"] - line["auc_theirs"])
            if line["same_definition"] and (line["differ"] or auc_difference > ONE_PAIR):
                where = f"{title}, {line['what']}, {line['form']}"
                messages.append(f"{where}: {line['max_difference']:.2g}, AUC {auc_difference:.2g}")
    return messages


def page(result: dict[str, Any]) -> str:
    """The Markdown page."""
    worst = max(
        line["max_difference"] for lines in result["tables"].values() for line in lines if line["same_definition"]
    )
    facts = {**result["versions"], **result["sequences"], "revision": result["revision"]}
    parts = [OPENING.format(**facts, worst=worst, tolerance=TOLERANCE, zlib=ZLIB_TOLERANCE)]
    heads = ["what", "data", "same definition", "n", "differ", "max difference"]
    heads += [f"{number}, {side}" for number in ("mean", "AUC") for side in ("ours", "theirs")]
    for title, lines in result["tables"].items():
        rows = [heads, ["---"] * len(heads), *map(cells, lines)]
        parts += [f"\n## {title}\n\n{TABLES[title][1]}\n\n", *(f"| {' | '.join(row)} |\n" for row in rows)]
    return "".join(parts) + CLOSING.format(revision=result["revision"])


def cells(line: dict[str, Any]) -> list[str]:
    """The cells of a row as text; a missing AUC is a dash."""
    return [
        line["what"],
        FORMS[line["form"]],
        "yes" if line["same_definition"] else "no",
        str(line["n"]),
        str(line["differ"]),
        f"{line['max_difference']:.1e}",
        f"{line['mean_ours']:.6f}",
        f"{line['mean_theirs']:.6f}",
        f"{line['auc_ours']:.4f}",
        "–" if line["auc_theirs"] is None else f"{line['auc_theirs']:.4f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("ours", "theirs", "output"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    arguments = parser.parse_args()
    result = compare(*(json.loads(path.read_text(encoding="utf-8")) for path in (arguments.ours, arguments.theirs)))
    if messages := disagreements(result):
        parser.exit(1, "\n".join(messages) + "\n")
    arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(page(result), end="")


if __name__ == "__main__":
    main()
