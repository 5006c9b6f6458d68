"""What the other modules use of runs/: what may be written where, folders, manifests and fingerprints."""

from adapter_unlearn.runs.contents import ARITHMETIC, COMPARISON, EVALUATION, MANIFEST, RUNS, SCHEMA_VERSION, SCORES
from adapter_unlearn.runs.folder import new_folder, renewed, reporting_disk_errors, temporary, write_new_file
from adapter_unlearn.runs.identity import fingerprint, identities, provenance
from adapter_unlearn.runs.json_files import write_json, write_json_lines
from adapter_unlearn.runs.output import check_apart, check_output, check_renewable, check_writable

__all__ = [
    "ARITHMETIC", "COMPARISON", "EVALUATION", "MANIFEST", "RUNS", "SCHEMA_VERSION", "SCORES",
    "check_apart", "check_output", "check_renewable", "check_writable", "fingerprint", "identities", "new_folder",
    "provenance", "renewed", "reporting_disk_errors", "temporary", "write_json", "write_json_lines", "write_new_file",
]  # fmt: skip
