"Options with three states, unset, on and off, reach the reader"

import json

import numpy as np
import pydicom
import pytest
import torch
from click.testing import CliRunner

from xvr import cli
from xvr.batch import Files, register_files
from xvr.initialisers import Starts, from_dicom
from xvr.optimisers import _shrink
from xvr.xray import Reading, read_xray


@pytest.fixture(scope="module")
def tagged(case, tmp_path_factory):
    "An X-ray whose file says that its pixels are proportional to the beam, and which side is the patient's right"
    path = tmp_path_factory.mktemp("tagged") / "xray.dcm"
    tags = pydicom.dcmread(case.xrays[0])
    tags.PixelIntensityRelationship, tags.PixelIntensityRelationshipSign = "LIN", 1
    tags.PatientOrientation = ["L", "F"]
    tags.save_as(path)
    return path


def seen(case, path, out, **options):
    "The image that a registration compared with, and the settings that it left"
    (result,) = register_files(
        [path],
        case.ct,
        from_dicom(),
        out,
        reading=Reading(**options),
        starts=Starts(init_only=True),
        files=Files(verbose=0),
    )
    return result.images["xray"], json.loads((out / path.stem / "result.json").read_text())["settings"]["reading"]


@pytest.mark.parametrize("option", ["linearize", "reverse_x_axis"])
@pytest.mark.parametrize("state", [None, True, False])
def test_three_states(case, tagged, tmp_path, option, state):
    image, settings = seen(case, tagged, tmp_path / "out", **{option: state})
    expected = read_xray(tagged, Reading(**{option: state}))
    shown, _ = _shrink(expected, expected.detector.resize(image.shape[-2]), image)
    assert torch.allclose(image, shown) and settings[option] is state


def test_what_counts_as_the_logarithm_of_the_beam(tagged):
    read = lambda **options: read_xray(tagged, Reading(**options)).linearized
    others = dict(linearize=False, equalize=True, subtract_background=True)
    assert read() and not any(read(**{name: value}) for name, value in others.items())
    windowed = pydicom.dcmread(tagged)
    windowed.WindowCenter, windowed.WindowWidth = 2000, 4000
    windowed.save_as(tagged.with_name("windowed.dcm"))
    shown = [
        read_xray(tagged.with_name("windowed.dcm"), Reading(as_displayed=as_displayed))
        for as_displayed in (False, True)
    ]
    assert [xray.linearized for xray in shown] == [True, False]


def test_no_linearize_leaves_a_file_tagged_LIN_alone(case, tagged, tmp_path):
    stored = torch.from_numpy(pydicom.dcmread(tagged).pixel_array.astype(np.float32))
    unset, off = (seen(case, tagged, tmp_path / str(state), linearize=state)[0][0, 0] for state in (None, False))
    assert torch.equal(off, stored.max() - stored) and not torch.allclose(unset, off)


def test_no_reverse_x_axis_goes_against_the_file(case, tagged):
    unset, off = (read_xray(tagged, Reading(reverse_x_axis=state)).detector.reverse_x_axis for state in (None, False))
    assert unset and not off


STATES = [([], None), (["--linearize"], True), (["--no_linearize"], False)]


@pytest.mark.parametrize("flags, state", STATES, ids=["unset", "on", "off"])
def test_no_linearize_through_the_command_line(case, tagged, tmp_path, flags, state):
    words = ["register", "dicom", tagged, "-v", case.ct, "-o", tmp_path / "typed", "--init_only", *flags]
    done = CliRunner().invoke(cli.xvr, list(map(str, words)))
    assert done.exit_code == 0, done.output
    seen(case, tagged, tmp_path / "called", linearize=state)
    typed, called = (json.loads((tmp_path / out / "xray" / "result.json").read_text()) for out in ("typed", "called"))
    assert typed["settings"]["reading"]["linearize"] is state
    assert typed["similarity"]["initial"] == pytest.approx(called["similarity"]["initial"], abs=1e-4)
