"""OpenUnlearning's side: its own functions and collator on the token ids that ours.py wrote.

    python benchmarks/openunlearning/theirs.py --checkout OPEN-UNLEARNING --revision COMMIT \\
        --model adapter_unlearn/assets/model --rows ours.json --output theirs.json

OPEN-UNLEARNING is a checkout of github.com/locuslab/open-unlearning, COMMIT what it is at, for the record. Runs in an
environment of its own (transformers 4.45.1; nothing of this package), which needs of OpenUnlearning's requirements
only what its metrics import: datasets, hydra-core (omegaconf), rouge-score, scikit-learn, scipy. Its package `evals`
is entered below its top module, which would import benchmark harnesses too.
"""

import argparse
import importlib
import json
import logging
import sys
import types
from pathlib import Path

import torch
import transformers

SETS = ("forget", "holdout")
# Name here -> their metric, and what else it is told. k is 0.2 by default and 0.4 in their benchmark's settings.
METRICS = {
    "extraction_strength": ("extraction_strength", {}),
    "exact_memorization": ("exact_memorization", {}),
    "loss": ("mia_loss", {}),
    "min_k": ("mia_min_k", {"k": 0.2}),
    "min_k_40": ("mia_min_k", {"k": 0.4}),
    "min_k_plus_plus": ("mia_min_k_plus_plus", {"k": 0.2}),
    "min_k_plus_plus_40": ("mia_min_k_plus_plus", {"k": 0.4}),
    "zlib": ("mia_zlib", {}),
}
BATCH_SIZE = 8


def load_theirs(checkout):
    """Their metrics by name, and their collator."""
    source = checkout / "src"
    sys.path.insert(0, str(source))
    package = types.ModuleType("evals")
    package.__path__ = [str(source / "evals")]
    sys.modules["evals"] = package
    metrics = importlib.import_module("evals.metrics").METRICS_REGISTRY
    return metrics, importlib.import_module("data.collators").DataCollatorForSupervisedDataset


def load_tokenizer(folder):
    """From the file, because 4.45.1 does not know the class that is named beside it; it cleans up spaces by default."""
    names = json.loads((folder / "tokenizer_config.json").read_text())
    tokens = {name: names[name] for name in ("bos_token", "eos_token", "pad_token")}
    return transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **tokens)


def load_model(folder):
    written = json.loads((folder / "config.json").read_text())
    model = transformers.LlamaForCausalLM.from_pretrained(folder, torch_dtype=torch.float32).eval()
    # 4.45.1 passes over the key in which later versions write the rotary base; its default is the same.
    assert model.config.rope_theta == written["rope_parameters"]["rope_theta"]
    return model


class InFloat64:
    """The model, its float32 logits handed on as float64: what is made of them then is exact to 15 digits."""

    def __init__(self, model):
        self.model, self.device = model, model.device

    def __call__(self, **batch):
        return types.SimpleNamespace(logits=self.model(**batch).logits.double())


def items(rows, appended):
    """Items as their loaders make them: no label on the prompt, and never on the first token."""
    found = []
    for index, (ids, start) in enumerate(zip(rows["input_ids"], rows["scored_from"])):
        labels = [-100] * start + ids[start:] + appended
        found.append({"input_ids": torch.tensor(ids + appended), "labels": torch.tensor(labels), "index": index})
    return found


def measure(metric, model, data, options):
    """Scores of each set, and the AUC where theirs is a membership metric."""
    options = {"batch_size": BATCH_SIZE, **options}
    if metric.name.startswith("mia_"):
        found = metric.evaluate_metric(model, metric.name, data={"forget": data[0], "holdout": data[1]}, **options)
        by_index = [found["forget"]["value_by_index"], found["holdout"]["value_by_index"]]
        auc = float(found["auc"])
    else:
        by_index = [metric.evaluate_metric(model, metric.name, data=part, **options)["value_by_index"] for part in data]
        auc = None
    scores = [[float(entry["score"]) for entry in values.values()] for values in by_index]
    # Nine digits tell any two float32 numbers apart.
    return {name: [float(f"{value:.9g}") for value in part] for name, part in zip(SETS, scores)} | {"auc": auc}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("checkout", "model", "rows", "output"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--revision", required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    metrics, collator_class = load_theirs(arguments.checkout)
    rows = {form: found["rows"] for form, found in json.loads(arguments.rows.read_text())["forms"].items()}
    tokenizer, model = load_tokenizer(arguments.model), load_model(arguments.model)
    collator = collator_class(tokenizer, index="index")

    def measured(form, names, appended=(), model=model):
        data = [items(rows[form][part], list(appended)) for part in SETS]
        found = {}
        for name in names:
            metric, options = METRICS[name]
            options = {"collators": collator, "tokenizer": tokenizer, **options}
            found[name] = measure(metrics[metric], model, data, options)
        return found

    end, last_left_out = [tokenizer.eos_token_id], [name for name in METRICS if name not in ("loss", "zlib")]
    pluses = ["min_k_plus_plus", "min_k_plus_plus_40"]
    result = {
        form: {
            "as_is": measured(form, METRICS),
            "as_is_float64": measured(form, ["loss"], model=InFloat64(model)),
            "token_appended": measured(form, last_left_out, end),
            "token_appended_float64": measured(form, pluses, end, InFloat64(model)),
        }
        for form in rows
    }
    versions = {"transformers": transformers.__version__, "torch": torch.__version__}
    found = {"revision": arguments.revision, "versions": versions, "forms": result}
    arguments.output.write_text(json.dumps(found) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
