"Registration and training on a device that is not there, in a process of its own"

import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils import backend_registration

there = Path(__file__).with_name("pretended_device.py")


@pytest.mark.skipif(not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"), reason="this PyTorch cannot register a device in Python")
def test_on_a_pretended_device():
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", there], capture_output=True, text=True, env=os.environ, timeout=600)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout + done.stderr
