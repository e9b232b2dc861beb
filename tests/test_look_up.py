"What the numbers in an X-ray file mean: their relation to the beam, and the look-up tables of DICOM; a file for each, made by pydicom"

import numpy as np
import pydicom
import pytest
import torch
from click.testing import CliRunner
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import DeflatedExplicitVRLittleEndian

from xvr import cli
from xvr.conventions import XvrError
from xvr.detector import Detector
from xvr.pose import Pose
from xvr.renderer import render
from xvr.series import read_image, repair_hu
from xvr.simulation import _WATER, Exposure, _mass_attenuation, read_materials, transmission, write_dicom
from xvr.volume import make_volume
from xvr.xray import Reading, read_pixels, read_xray

POSE, DETECTOR = Pose.from_euler([[15.0, 5, 0]], [[0.0, -800, 0]]), Detector(1020, 96, 7.0, reverse_x_axis=True)


@pytest.fixture(scope="module")
def truth(case):
    "Line integrals of the attenuation at 70 keV, by the renderer of registration"
    hu, patient = read_image(case.ct)
    attenuation = (repair_hu(hu).clamp(min=-1000) / 1000 + 1) * _mass_attenuation(_WATER, 70) / 10
    return render(make_volume(attenuation, patient), DETECTOR, POSE, method="siddon")[0, 0]


@pytest.fixture(scope="module")
def beam(case):
    return transmission(read_materials(case.ct), DETECTOR, POSE, {70: 1.0})


@pytest.fixture
def file(tmp_path, beam):
    "A function that writes the X-ray with 60000 counts in the open beam, with the tags changed as given"

    def write(stored=None, **tags):
        counts = (60000 * beam).round() if stored is None else stored
        write_dicom(tmp_path / "x.dcm", counts, DETECTOR, POSE, Exposure(bits=16))
        file = pydicom.dcmread(tmp_path / "x.dcm")
        for keyword, value in tags.items():
            setattr(file, keyword, value)
        file.save_as(tmp_path / "x.dcm")
        return tmp_path / "x.dcm"

    return write


def table(values, first=0, bits=16):
    "One look-up table, for stored values from `first` up"
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(values) % 65536, first, bits])
    item.add_new("LUTData", "OW", np.asarray(values).astype("<u2").tobytes())
    return Sequence([item])


def test_the_simulated_beam_is_the_renderers_line_integral(beam, truth):
    assert truth.max() > 4 and (-beam.log() - truth).abs().max() < 1e-3


def test_linearized_it_is_the_line_integral(file, truth):
    image, counts = read_xray(file()).image[0, 0], 60000 * (-truth).exp()
    assert ((image - truth).abs() < 1e-3 + 0.5 / counts).all() and (image - truth)[counts > 1000].abs().max() < 1e-3
    rest = counts / 60000 < 0.7  # without its open field the intensity must be given
    hidden = file(torch.where(rest, counts, counts.clamp(max=42000)).round())
    assert (read_xray(hidden).image[0, 0] - truth)[rest & (counts > 1000)].mean() < -0.1
    assert (read_xray(hidden, Reading(open_field=60000)).image[0, 0] - truth)[rest & (counts > 1000)].abs().max() < 1e-3


def test_open_field_is_found_in_noise(case, tmp_path, truth):
    words = [
        "simulate",
        "-v",
        case.ct,
        "-o",
        tmp_path,
        "--rot",
        15,
        5,
        0,
        "--xyz",
        0,
        -800,
        0,
        "--height",
        96,
        "--delx",
        7,
        "--reverse_x_axis",
        "--spectrum",
        "70keV",
        "--scatter",
        0,
        "--bits",
        16,
    ]
    assert CliRunner().invoke(cli.xvr, [str(w) for w in words]).exit_code == 0
    image = read_xray(tmp_path / "xray_000.dcm", Reading(every_pixel=True)).image[0, 0]
    assert abs((image - truth)[truth < 3].median()) < 3e-3 and (image - truth)[truth == 0].std() > 3e-3


def test_log_is_not_logged_again(file, truth):
    stored = (8000 * truth).round()
    path = file(stored, PixelIntensityRelationship="LOG", PixelIntensityRelationshipSign=-1)
    for linearize in (None, True):
        xray = read_xray(path, Reading(linearize=linearize, every_pixel=True))
        assert torch.allclose(xray.image[0, 0] / 8000, truth, atol=1e-4) and len(xray.notes) == bool(linearize)
    rising = read_xray(file(stored.max() - stored, PixelIntensityRelationship="LOG", PixelIntensityRelationshipSign=1))
    assert torch.allclose(rising.image[0, 0] / 8000, truth, atol=1e-4)


def test_disp_is_linear_unless_asked(file, truth):
    xray = read_xray(file(PixelIntensityRelationship="DISP"))
    assert "DISP" in xray.notes[0] and "`linearize`" in xray.notes[0]
    assert (read_xray(file(PixelIntensityRelationship="DISP"), Reading(linearize=True)).image[0, 0] - truth)[
        truth < 4
    ].abs().max() < 1e-3


def test_modality_lut_leads_from_log_to_the_beam(file, truth):
    "As angiography has it: PS3.3 C.8.7.1.1.2"
    steps = 6.2 * np.arange(65536) / 65535
    stored = np.rint((6.2 - truth.numpy().clip(0, 6.2)) / 6.2 * 65535)  # LOG, rising with the beam
    path = file(
        torch.from_numpy(stored),
        PixelIntensityRelationship="LOG",
        PixelIntensityRelationshipSign=1,
        ModalityLUTSequence=table(np.rint(60000 * np.exp(steps - 6.2))),
    )
    xray = read_xray(path, Reading(every_pixel=True))
    assert xray.notes == [] and (xray.image[0, 0] - truth)[truth < 4].abs().max() < 1.5e-3


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_modality_lut_of_any_depth(file, truth, bits):
    curve = np.rint(np.linspace(0, 2**bits - 1, 65536))
    stored = read_pixels(file())[0][0]
    image = read_xray(file(ModalityLUTSequence=table(curve, bits=bits)), Reading(linearize=False)).image[0, 0]
    assert np.array_equal(image, curve[stored].max() - curve[stored])


def test_rescale(file, truth):
    path = file(RescaleSlope="0.5", RescaleIntercept="0")
    assert (read_xray(path).image[0, 0] - truth)[truth < 4].abs().max() < 1e-3
    assert (read_xray(path, Reading(open_field=30000)).image[0, 0] - truth)[truth < 4].abs().max() < 1e-3


def test_voi_only_when_asked(file):
    plain = read_xray(file()).image
    window = dict(WindowCenter=20000, WindowWidth=10000)
    curve = 65535 / (1 + np.exp(-(np.arange(65536) - 20000) / 4000))
    for tags in (
        window,
        dict(VOILUTSequence=table(curve)),
        window | dict(VOILUTSequence=table(curve)),
        window | dict(VOILUTFunction="SIGMOID"),
    ):
        assert torch.equal(read_xray(file(**tags)).image, plain)
    stored = read_pixels(file())[0][0].astype(float)

    shown = read_xray(file(**window), Reading(as_displayed=True))
    wanted = ((stored - 19999.5) / 9999 + 0.5).clip(0, 1) * 65535  # PS3.3 C.11.2.1.2.1
    assert np.allclose(shown.image[0, 0], wanted.max() - wanted, atol=1e-1) and "DISP" in shown.notes[0]
    shown = read_xray(file(VOILUTSequence=table(curve)), Reading(as_displayed=True)).image[0, 0]
    wanted = curve.astype(int)[stored.astype(int)]
    assert np.allclose(shown, wanted.max() - wanted)
    with pytest.raises(XvrError, match="not both"):
        read_xray(file(**window), Reading(as_displayed=True, linearize=True))
    assert "changes nothing" in read_xray(file(), Reading(as_displayed=True)).notes[0]


def test_presentation_lut(file):
    square = np.arange(65536.0) ** 2 / 65535
    plain, shown = (
        read_xray(file()).image,
        read_xray(file(PresentationLUTSequence=table(square)), Reading(as_displayed=True)).image,
    )
    assert torch.equal(read_xray(file(PresentationLUTSequence=table(square))).image, plain)
    assert (shown.flatten()[plain.flatten().argsort()].diff() >= 0).all() and not torch.allclose(
        shown / shown.max(), plain / plain.max(), atol=0.1
    )


@pytest.mark.parametrize(
    "photometric, shape, dense_is_low",
    [
        ("MONOCHROME2", "IDENTITY", False),
        ("MONOCHROME1", "INVERSE", True),
        ("MONOCHROME1", None, True),
        ("MONOCHROME2", "INVERSE", True),
    ],
)
def test_presentation_shape_says_which_end_is_white(file, truth, photometric, shape, dense_is_low):
    tags = dict(
        Modality="DX",
        PresentationIntentType="FOR PRESENTATION",
        PixelIntensityRelationship="LOG",
        PhotometricInterpretation=photometric,
    ) | ({"PresentationLUTShape": shape} if shape else {})
    stored = (8000 * truth).round()
    xray = read_xray(file(stored.max() - stored if dense_is_low else stored, **tags))
    assert torch.allclose(xray.image[0, 0] / 8000, truth, atol=1e-4)


def test_a_damaged_table_is_one_line(file):
    with pytest.raises(XvrError, match="look-up tables of .*export it again") as error:
        read_xray(file(ModalityLUTSequence=Sequence([Dataset()])))
    assert "\n" not in str(error.value)


def test_deflated(file):
    plain, path = read_xray(file()).image, file()
    tags = pydicom.dcmread(path)
    tags.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    tags.save_as(path)
    assert torch.equal(read_xray(path).image, plain)


def test_options_reach_the_image(file, case, tmp_path):
    path = file(WindowCenter=20000, WindowWidth=10000)
    words = ["register", "dicom", path, "-v", case.ct, "--init_only"]
    for option in (["--open_field", "50000"], ["--as_displayed"]):
        result = CliRunner().invoke(cli.xvr, [str(w) for w in [*words, "-o", tmp_path / option[0], *option]])
        assert result.exit_code == 0, result.stderr
    result = CliRunner().invoke(cli.xvr, [str(w) for w in [*words, "-o", tmp_path / "bad", "--open_field", "-1"]])
    assert result.exit_code == 1 and "--open_field above zero" in result.stderr
