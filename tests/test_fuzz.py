"Damaged files are read, or refused in one line; benchmarks/fuzz.py does the same with a hundred thousand"

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory and time of a process are limited by Linux")


@pytest.fixture(scope="module")
def fuzzer():
    spec = importlib.util.spec_from_file_location("fuzz", Path(__file__).parents[1] / "benchmarks/fuzz.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_damaged_files(fuzzer):
    outcome, failures, memory = fuzzer.fuzz(900, seed=7, batch=450)
    assert not failures and outcome.total() == 900 and memory < 4
    assert all(
        outcome[kind, how]
        for kind in (
            "XA",
            "CT slice",
            ".nii",
            "TIFF",
            "NumPy",
            "NIfTI X-ray",
            "pose",
            "ITK .tfm",
            "segments",
            "NIfTI, version_2",
            "NIfTI, leaned",
            "NIfTI, pair",
            "info XA",
            "existing result",
        )
        for how in ("read", "refused")
    )
    texts = [kind for kind, _ in outcome if kind == "RTK" or kind.startswith("beside")]
    assert all(outcome[kind, "refused"] for kind in texts) and sum(outcome[kind, "read"] for kind in texts) > 5


def test_the_fuzzer_sees_what_goes_wrong(fuzzer, monkeypatch):
    def hang(path):
        while True:
            pass

    def burst(path):
        np.ones(2**30)  # 8 GiB

    def crash(path):
        import ctypes

        ctypes.string_at(0)

    monkeypatch.setattr(fuzzer, "SECONDS", 1)
    for reader, word in [
        (hang, "took over 1 s"),
        (burst, "MemoryError"),
        (crash, "ended the process"),
        (lambda path: 1 / 0, "ZeroDivisionError"),
    ]:
        monkeypatch.setattr(fuzzer, "xray", reader)
        outcome, failures, _ = fuzzer.fuzz(2, batch=2)
        assert len(failures) == 2 and all(word in what for _, _, what in failures)
