"What a command imports: packages that take seconds are left out where they are not used"

import subprocess
import sys

HEAVY = "timm torchvision torchio wandb pandas matplotlib IPython scipy.stats sympy numba llvmlite nibabel"


def test_registration_without_a_network_imports_no_network_and_no_pictures():
    code = f"import sys, xvr.cli, xvr.batch, xvr.initialisers, xvr.inspector, xvr.simulation; print(*(m for m in {HEAVY.split()} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "\n", done.stdout + done.stderr
