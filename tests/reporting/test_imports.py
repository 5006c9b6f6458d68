"""Reporting starts without torch and without pyplot."""

import subprocess
import sys


def test_reporting_needs_no_torch():
    code = "import sys; from adapter_unlearn.reporting import comparison, interference, run, terminal; "
    code += "assert 'torch' not in sys.modules and 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
