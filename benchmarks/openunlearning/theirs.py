"""Write OpenUnlearning's side of the comparison: its own functions and collator on the token ids that ours.py wrote.

    python benchmarks/openunlearning/theirs.py --checkout OPEN-UNLEARNING --revision COMMIT \\
        --model adapter_unlearn/assets/model --rows ours.json --output theirs.json

OPEN-UNLEARNING is a checkout of github.com/locuslab/open-unlearning, and COMMIT is its commit, for the record. The
script runs in a separate environment with transformers 4.45.1 and without this package. Of OpenUnlearning's
requirements it needs only those that its metrics import: datasets, hydra-core (omegaconf), rouge-score, scikit-learn
and scipy. The top module of OpenUnlearning's package `evals` would import benchmark harnesses too, so the script
imports its submodules without running it.
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
# Our name -> their metric and its options. k is 0.2 by default and 0.4 in the settings of their benchmarks.
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
    """Load the tokenizer from its file: 4.45.1 lacks the class that its config names. Cleans up spaces by default."""
    names = json.loads((folder / "tokenizer_config.json").read_text())
    tokens = {name: names[name] for name in ("bos_token", "eos_token", "pad_token")}
    return transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **tokens)


def load_model(folder):
    config = json.loads((folder / "config.json").read_text())
    model = transformers.LlamaForCausalLM.from_pretrained(folder, torch_dtype=torch.float32).eval()
    # 4.45.1 ignores the key that later versions use for the rotary base; its default must be the same.
    assert model.config.rope_theta == config["rope_parameters"]["rope_theta"]
    return model


class InFloat64:
    """The model with its float32 logits converted to float64; what is computed from them is exact to 15 digits."""

    def __init__(self, model):
        self.model, self.device = model, model.device

    def __call__(self, **batch):
        return types.SimpleNamespace(logits=self.model(**batch).logits.double())


def items(rows, appended):
    """Items as their loaders make them: the prompt has no labels, and the first token never has one."""
    result = []
    for index, (ids, start) in enumerate(zip(rows["input_ids"], rows["scored_from"])):
        labels = [-100] * start + ids[start:] + appended
        result.append({"input_ids": torch.tensor(ids + appended), "labels": torch.tensor(labels), "index": index})
    return result


def measure(metric, model, data, options):
    """The scores of each set, and the AUC if the metric is a membership metric."""
    options = {"batch_size": BATCH_SIZE, **options}
    if metric.name.startswith("mia_"):
        result = metric.evaluate_metric(model, metric.name, data={"forget": data[0], "holdout": data[1]}, **options)
        by_index = [result["forget"]["value_by_index"], result["holdout"]["value_by_index"]]
        auc = float(result["auc"])
    else:
        by_index = [metric.evaluate_metric(model, metric.name, data=part, **options)["value_by_index"] for part in data]
        auc = None
    scores = [[float(entry["score"]) for entry in values.values()] for values in by_index]
    # Nine digits distinguish any two float32 numbers.
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
    rows = {form: values["rows"] for form, values in json.loads(arguments.rows.read_text())["forms"].items()}
    tokenizer, model = load_tokenizer(arguments.model), load_model(arguments.model)
    collator = collator_class(tokenizer, index="index")

    def measure_all(form, names, appended=(), model=model):
        data = [items(rows[form][part], list(appended)) for part in SETS]
        values = {}
        for name in names:
            metric, options = METRICS[name]
            options = {"collators": collator, "tokenizer": tokenizer, **options}
            values[name] = measure(metrics[metric], model, data, options)
        return values

    end, last_left_out = [tokenizer.eos_token_id], [name for name in METRICS if name not in ("loss", "zlib")]
    pluses = ["min_k_plus_plus", "min_k_plus_plus_40"]
    result = {
        form: {
            "as_is": measure_all(form, METRICS),
            "as_is_float64": measure_all(form, ["loss"], model=InFloat64(model)),
            "token_appended": measure_all(form, last_left_out, end),
            "token_appended_float64": measure_all(form, pluses, end, InFloat64(model)),
        }
        for form in rows
    }
    versions = {"transformers": transformers.__version__, "torch": torch.__version__}
    record = {"revision": arguments.revision, "versions": versions, "forms": result}
    arguments.output.write_text(json.dumps(record) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
