"What was assumed about a CT and its X-rays is printed by every command that reads them: once, in 80 columns"

import json
import re
import threading

import nibabel
import numpy as np
import pydicom
import pytest
from click.testing import CliRunner

from xvr import cli
from xvr.batch import Files, register_files
from xvr.conventions import Notes
from xvr.initialisers import from_dicom
from xvr.optimisers import GaussNewton
from xvr.picker import _Server
from xvr.volume import read_volume
from xvr.xray import read_xray

CT, SIDE = "note: ct.nii.gz: its header states no axes", "column 0 assumed to be the patient's left; give"
START = ["--rot", 10, 5, 0, "--xyz", 0, -800, 0]


@pytest.fixture(scope="module")
def unsure(case, tmp_path_factory):
    "The CT without codes for its axes, and three X-rays that do not state which side is left"
    folder = tmp_path_factory.mktemp("unsure")
    image = nibabel.load(case.ct)
    values = np.maximum(np.asanyarray(image.dataobj), -1000)
    bent = nibabel.Nifti1Image(values, image.affine)
    bent.set_sform(image.affine, 0)
    bent.set_qform(image.affine, 0)
    nibabel.save(bent, folder / "ct.nii.gz")
    nibabel.save(nibabel.Nifti1Image(values, image.affine), folder / "clean.nii.gz")
    (folder / "xrays").mkdir()
    for n in range(3):
        tags = pydicom.dcmread(case.xrays[0])
        del tags.PatientOrientation
        tags.save_as(folder / f"xrays/{n}.dcm")
    return folder


def printed(*words):
    "What a command prints, its lines and the same unwrapped"
    done = CliRunner().invoke(cli.xvr, [*map(str, words)], prog_name="xvr")
    assert done.exit_code == 0, done.stderr
    notes = re.findall(r"^note:.*(?:\n    .*)*", done.stdout, re.M)
    assert all(len(line) <= 80 for note in notes for line in note.splitlines())
    return " ".join(done.stdout.split())


def test_register(unsure, tmp_path):
    words = ["register", "fixed", unsure / "xrays", "-v", unsure / "ct.nii.gz", "-o", tmp_path / "out", *START]
    text = printed(*words, "--init_only")
    assert text.count(CT) == 1 and text.count(f"note: 3 X-rays: no PatientOrientation (0020,0020): {SIDE}") == 1
    assert "give --reverse_x_axis if it is the right" in text and text.count("note:") == 2
    for n in range(3):
        notes = json.loads((tmp_path / f"out/{n}/result.json").read_text())["settings"]["notes"]
        assert len(notes) == 2 and "give `reverse_x_axis`" in notes[1]
    assert "note" not in printed(*words, "--init_only", "--verbose", 0, "--resume")


def test_a_failed_registration_still_prints_its_notes(unsure, tmp_path):
    words = ["register", "fixed", unsure / "xrays/0.dcm", "-v", unsure / "ct.nii.gz", "-o", tmp_path / "out"]
    done = CliRunner().invoke(cli.xvr, [*map(str, words), "--rot", "0", "0", "0", "--xyz", "0", "800", "0"])
    assert done.exit_code == 1 and CT in done.stdout and "note: 0.dcm: no PatientOrientation" in done.stdout


def test_clean_files_print_none(unsure, case, tmp_path):
    text = printed("register", "dicom", case.xrays[0], "-v", unsure / "clean.nii.gz", "-o", tmp_path, "--init_only")
    assert "note" not in text and "note" not in printed("info", unsure / "clean.nii.gz", case.xrays[0])


def test_python_names_parameters(unsure, tmp_path, capsys):
    xrays, options = [unsure / "xrays/0.dcm"], dict(optimizer=GaussNewton())
    register_files(xrays, unsure / "ct.nii.gz", from_dicom(), tmp_path / "out", **options)
    text = " ".join(capsys.readouterr().out.split())
    assert text.count(CT) == 1 and "give `reverse_x_axis` if it is the right" in text
    register_files(xrays, unsure / "ct.nii.gz", from_dicom(), tmp_path / "quiet", files=Files(verbose=0), **options)
    volume, xray = read_volume(unsure / "ct.nii.gz"), read_xray(xrays[0])
    assert capsys.readouterr().out == ""  # reading prints nothing
    assert repr(volume).endswith(", 1 note)") and repr(xray).endswith(", 1 note)")
    text = printed("animate", "-i", tmp_path / "out/0", "-o", tmp_path / "out.gif", "--dpi", 30)
    assert text.startswith("note: 0.dcm: its header states no axes") and "note: 0.dcm: no PatientOrientation" in text


def test_simulate(unsure, tmp_path):
    words = ["simulate", "-v", unsure / "ct.nii.gz", "-o", tmp_path / "out", "--height", 16, "--delx", 24]
    text = printed(*words, "--like", unsure / "xrays/0.dcm")
    assert text.count(CT) == 1 and text.count(f"note: 0.dcm: no PatientOrientation (0020,0020): {SIDE}") == 1


def test_train(unsure, tmp_path):
    ranges = dict(r1=(-9, 9), r2=(-9, 9), r3=(-9, 9), tx=(-9, 9), ty=(-900, -800), tz=(-9, 9))
    words = [word for name, ends in ranges.items() for word in (f"--{name}", *ends)]
    words += ["--sdd", 1020, "--height", 32, "--delx", 12.5, "--n_epochs", 1, "--n_batches_per_epoch", 1]
    words += ["--batch_size", 2, "--model_name", "test_resnet", "--val_views", 0]
    (tmp_path / "cts").mkdir()
    for name in "ab":
        (tmp_path / f"cts/{name}.nii.gz").write_bytes((unsure / "ct.nii.gz").read_bytes())
    text = printed("train", "-i", tmp_path / "cts", "-o", tmp_path / "out", *words)
    assert text.count("note: 2 CTs: its header states no axes") == 1 and text.count("note:") == 1


def test_preregister(unsure, tmp_path):
    words = ["-t", unsure / "ct.nii.gz", "-o", tmp_path, "--spacing", 30]
    text = printed("preregister", "-i", unsure / "ct.nii.gz", *words)
    assert text.count(CT) == 1 and text.count("note:") == 1


def test_pick(unsure, tmp_path, monkeypatch):
    monkeypatch.setattr(_Server, "serve_forever", lambda self: None)
    words = ["-v", unsure / "ct.nii.gz", "-o", tmp_path / "pose.json", "--no_browser"]
    text = printed("pick", unsure / "xrays/0.dcm", *words)
    assert text.count(CT) == 1 and "give --reverse_x_axis if it is the right" in text


def test_evaluate(unsure, case, tmp_path):
    words = ["register", "fixed", unsure / "xrays", "-v", unsure / "ct.nii.gz", "-o", tmp_path / "out", *START]
    printed(*words, "--init_only")
    (tmp_path / "truth").mkdir()
    for n in range(3):
        (tmp_path / f"truth/{n}.json").write_bytes((tmp_path / f"out/{n}/result.json").read_bytes())
    words = ["-t", tmp_path / "truth", "-o", tmp_path / "e", "-v", unsure / "ct.nii.gz"]
    text = printed("evaluate", "-i", tmp_path / "out", *words)
    assert text.count(CT) == 1 and f"note: 3 results: no PatientOrientation (0020,0020): {SIDE}" in text


def test_info(unsure):
    text = printed("info", unsure / "ct.nii.gz", unsure / "xrays/0.dcm")
    assert "note its header states no axes" in text and "give --reverse_x_axis if it is the right" in text


def test_words_of_one_thread_are_not_those_of_another():
    Notes.wording.set(str.upper)
    found = []
    other = threading.Thread(target=lambda: found.append(str(Notes().add("a", ["b"]))))
    other.start()
    other.join()
    Notes.wording.set(str)
    assert found == ["note: a: b"]
