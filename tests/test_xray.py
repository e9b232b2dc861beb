"How an X-ray file is read, case by case: what the lessons of the notebook on X-rays show once, everywhere"

import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import torch
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian
from scipy import ndimage

from xvr import xray as module
from xvr.batch import Files, register_files
from xvr.conventions import XvrError, file_stem
from xvr.detector import Detector, physical_geometry, pose_from_angles
from xvr.initialisers import Starts, from_dicom, from_result
from xvr.pose import Pose
from xvr.xray import (
    Reading,
    _dense_is_bright,
    _direction_from_letters,
    _find_open_field,
    _find_usable,
    _subtract_mode,
    flat_histogram,
    letters_from_direction,
    linearize_beam,
    read_xray,
    rises_with_beam,
)

GREY = (np.arange(20 * 30).reshape(20, 30) % 251).astype(np.uint8)
LIN = dict(
    Modality="XA",
    PhotometricInterpretation="MONOCHROME2",
    PixelIntensityRelationship="LIN",
    PixelIntensityRelationshipSign=1,
    BitsStored=12,
)


def tagged(**values):
    tags = Dataset()
    for keyword, value in values.items():
        setattr(tags, keyword, value)
    return tags


def test_reductions():
    cine = np.random.default_rng(0).integers(0, 255, (5, 2, 3), dtype=np.uint8)
    pick = lambda how: module._reduce_frames(cine[module._selected_frames(how, 5)], how)
    for how in ("min", "mean", "median", "max"):
        assert (cine.min(0) <= pick(how)).all() and np.allclose(pick(how), getattr(np, how)(cine, 0))
    assert (pick("sum") == cine.astype(int).sum(0)).all()
    assert (pick("3") == cine[2]).all() and (pick(5) == pick("last")).all() and (pick("first") == cine[0]).all()
    for bad in ("middle", 6, "0"):
        with pytest.raises(XvrError, match=f"{bad}"):
            module._selected_frames(bad, 5)


def test_which_end_is_dense():
    assert rises_with_beam(tagged(Modality="XA", PhotometricInterpretation="MONOCHROME2"))
    assert not rises_with_beam(tagged(Modality="XA", PhotometricInterpretation="MONOCHROME1"))
    assert rises_with_beam(tagged(Modality="CR", PhotometricInterpretation="MONOCHROME1"))
    assert not rises_with_beam(tagged(Modality="DX", PhotometricInterpretation="MONOCHROME2"))
    raw = dict(Modality="DX", PhotometricInterpretation="MONOCHROME2", PixelIntensityRelationshipSign=1)
    assert rises_with_beam(tagged(**raw, PresentationIntentType="FOR PROCESSING"))
    assert not rises_with_beam(tagged(**raw, PresentationIntentType="FOR PRESENTATION"))
    assert not rises_with_beam(Dataset())  # a picture is taken as it looks: bone white
    for shown in (dict(PhotometricInterpretation="MONOCHROME2"), dict(PhotometricInterpretation="MONOCHROME1")):
        assert rises_with_beam(tagged(Modality="CR", **shown, PresentationLUTShape="INVERSE"))


def test_linearize():
    integral = torch.tensor([0.0, 0.5, 2.0, 8.0])
    assert torch.allclose(linearize_beam(1000 * (-integral).exp()), integral, atol=1e-5)
    assert torch.allclose(linearize_beam(800 * (-integral).exp(), 1000), integral - np.log(0.8), atol=1e-5)
    assert linearize_beam(torch.tensor([0.0, 1, 4095])).isfinite().all()


def test_open_field_among_noise_and_a_hot_pixel():
    thick = 4 * torch.rand(100, 100, generator=torch.Generator().manual_seed(0))
    thick[:30] = 0
    counts = torch.poisson(5000 * (-thick).exp(), generator=torch.Generator().manual_seed(0))
    counts[50, 50] = 30000
    assert abs(_find_open_field(counts) / 5000 - 1) < 2e-3 and counts[:30].max() / 5000 > 1.04


def test_background_and_histogram():
    picture = torch.full((50, 50), 3.0)
    picture[10:20, 10:20] = 7
    picture[0, 0] = 1
    assert _subtract_mode(picture)[30, 30] == 0 and _subtract_mode(picture)[15, 15] == 4
    assert _subtract_mode(picture).min() == 0
    assert torch.equal(flat_histogram(picture), flat_histogram(picture**3)) and flat_histogram(picture).max() <= 1


def test_dense_is_bright():
    beam = (4000 * (-torch.rand(20, 30) * 4).exp()).round()
    line = _dense_is_bright(beam, tagged(**LIN))
    inverse = tagged(**LIN | dict(PhotometricInterpretation="MONOCHROME1", PixelIntensityRelationshipSign=-1))
    assert torch.allclose(_dense_is_bright(4095 - beam, inverse), line, atol=1e-5)
    log = tagged(**LIN | dict(PixelIntensityRelationship="LOG", PixelIntensityRelationshipSign=-1))
    assert torch.allclose(_dense_is_bright(line, log), line)
    assert torch.allclose(_dense_is_bright(beam, Dataset(), linearize=True), line)
    assert torch.equal(_dense_is_bright(line, log, True, notes := []), line) and len(notes) == 1  # not twice
    given = _dense_is_bright(beam, tagged(**LIN), open_field=4000)
    assert torch.allclose(given, np.log(4000) - beam.log(), atol=1e-5)
    assert torch.allclose(_dense_is_bright(4095 - beam, inverse, open_field=95), given, atol=1e-5)
    assert torch.equal(_dense_is_bright(beam, tagged(**LIN), linearize=False), beam.max() - beam)


def test_look_up_tables():
    stored, table = np.arange(4096).reshape(64, 64), tagged(LUTDescriptor=[4096, 0, 12])
    table.add_new("LUTData", "US", [int(v) for v in np.rint(4095 * np.exp(np.arange(4096) / 800 - 4095 / 800))])
    angiogram = tagged(**LIN | dict(PixelIntensityRelationship="LOG"), PixelRepresentation=0)
    look_up = lambda shown=False, **tags: module._look_up(
        stored, module._with_tags(angiogram, **tags), Path("x.dcm"), shown, []
    )
    values, meaning = look_up(ModalityLUTSequence=[table])
    line = _dense_is_bright(values, meaning, open_field=4095)
    # the table led from LOG to the beam, and the beam to the integral
    assert meaning.PixelIntensityRelationship == "LIN" and abs(line[60, 0] - (4095 - stored[60, 0]) / 800) < 1e-3
    plain, shown = (look_up(shown, WindowCenter=2048, WindowWidth=1024)[0] for shown in (False, True))
    assert torch.equal(plain, torch.from_numpy(stored).float())
    assert (shown == 0).float().mean() > 0.3 and (shown == 4095).float().mean() > 0.3  # what a window cuts off


def test_distances():
    tags = tagged(
        PhotometricInterpretation="MONOCHROME2",
        DistanceSourceToDetector=1000,
        ImagerPixelSpacing=[0.3, 0.2],
        PixelSpacing=[0.15, 0.1],
    )
    read = lambda tags, notes=(), **given: module._read_distances(tags, Path("a.dcm"), Reading(**given), [*notes])
    assert read(tags) == dict(sdd=1000, delx=0.2, dely=0.3)  # row spacing is the pixel's height
    assert read(tags, sdd=900, delx=0.4) == dict(sdd=900, delx=0.4, dely=0.4)
    del tags.ImagerPixelSpacing
    assert module._read_distances(tags, Path("a.dcm"), Reading(), notes := [])["delx"] == 0.1
    assert "PixelSpacing" in notes[0]
    tags.update(tagged(EstimatedRadiographicMagnificationFactor=1.5, PixelSpacingCalibrationType="GEOMETRY"))
    assert np.isclose(read(tags)["delx"], 0.15)
    for bad in (tagged(**LIN), tagged(**LIN, DistanceSourceToDetector=0), tagged(**LIN, DistanceSourceToDetector=1000)):
        with pytest.raises(XvrError, match="a.dcm has no"):
            read(bad)


def test_letters():
    assert letters_from_direction(torch.tensor([-1.0, 0, 0])) == "L"
    assert letters_from_direction(torch.tensor([0.1, -0.5, -0.8])) == "FP"
    for word in ("L", "RA", "FPL"):
        way = _direction_from_letters(word)
        assert _direction_from_letters(letters_from_direction(way)) @ way > 0.99
    assert _direction_from_letters("CAUDAL") is None and _direction_from_letters("") is None


@pytest.fixture(scope="module")
def beam():
    "A picture without equal pixels"
    noise = ndimage.gaussian_filter(np.random.default_rng(0).random((200, 240)), 3)
    return (1000 + 2000 * (noise - noise.min()) / np.ptp(noise)).astype(np.int32)


def test_flat_areas_do_not_count(beam):
    assert _find_usable(beam, Dataset()).all()
    row, column = np.mgrid[:200, :240]
    tags = tagged(Modality="XA", BitsStored=12)  # high is much radiation
    stored, dark = beam.copy(), np.hypot(row - 100, column - 120) > 95
    stored[dark] = 0  # padded
    stored[60:64, 100:110] = 4095  # written
    stored[110:150, 90:150] = 4095  # the open beam, saturated
    usable = _find_usable(stored, tags)
    inner = ndimage.binary_erosion(stored == 4095, iterations=5) & (row > 100)
    assert not usable[dark].any() and not usable[60:64, 100:110].any() and not usable[inner].any()
    assert usable[110:113, 100:140].all()
    assert usable[(stored > 0) & (stored < 4095)].mean() > 0.9


@pytest.mark.parametrize("blind", ["Shutter", "Collimator"])
def test_shutters_and_collimators(beam, blind):
    row, column = np.mgrid[:200, :240]
    box = dict(LeftVerticalEdge=10, RightVerticalEdge=201, UpperHorizontalEdge=20, LowerHorizontalEdge=151)
    box = {blind + name: value for name, value in box.items()}
    usable = _find_usable(beam, tagged(**{f"{blind}Shape": "RECTANGULAR"}, **box))
    assert usable.sum() == 130 * 190 and usable[20:150, 10:200].all()
    circle = {f"CenterOfCircular{blind}": [101, 121], f"RadiusOfCircular{blind}": 50}
    usable = _find_usable(beam, tagged(**{f"{blind}Shape": ["CIRCULAR", "RECTANGULAR"]}, **circle, **box))
    assert (usable == ((np.hypot(row - 100, column - 120) <= 50) & (row < 150))).all()
    corners = {f"VerticesOfThePolygonal{blind}": [11, 11, 11, 111, 111, 11]}
    usable = _find_usable(beam, tagged(**{f"{blind}Shape": "POLYGONAL"}, **corners))
    assert abs(usable.sum() - 5000) < 200 and usable[15, 15] and not usable[100, 100]
    assert _find_usable(beam, tagged(**{f"{blind}Shape": "CIRCULAR"})).all()  # a circle, but not which one


@pytest.mark.parametrize("columns, share", [(5, None), (40, 40 / 240)])
def test_a_shutter_that_hides_nearly_all_cannot_be_meant(columns, share):
    edges = dict(LeftVerticalEdge=100, RightVerticalEdge=101 + columns, UpperHorizontalEdge=-1, LowerHorizontalEdge=201)
    tags = tagged(ShutterShape="RECTANGULAR", **{f"Shutter{name}": value for name, value in edges.items()})
    stored = np.random.default_rng(0).integers(1000, 3000, (200, 240))
    weight = module._weights(stored, tags, Reading(), notes := [])
    assert len(notes) == 1 and (weight is None if share is None else abs(weight.mean() - share) < 1e-6)


def test_pictures(tmp_path):
    for name in ("a.png", "a.tif", "a.jpg"):
        sitk.WriteImage(sitk.GetImageFromArray(GREY), tmp_path / name)
        xray = read_xray(tmp_path / name, Reading(sdd=1000, delx=0.5, crop=6))
        assert xray.image.shape == (1, 1, 14, 24) and xray.detector.dely == 0.5
    sitk.WriteImage(sitk.GetImageFromArray(np.stack([GREY] * 3, -1), isVector=True), tmp_path / "colour.png")
    colour = read_xray(tmp_path / "colour.png", Reading(sdd=1000, delx=0.5))
    assert torch.equal(colour.image[0, 0], torch.from_numpy(GREY).float())


@pytest.mark.parametrize(
    "name, options",
    [
        ("none.dcm", {}),
        ("text.png", {}),
        ("text.dcm", {}),
        ("a.png", {}),
        ("a.png", dict(sdd=1000)),
        ("blank.png", {}),
        ("nan.tif", {}),
        ("a.png", dict(crop=20)),
        ("a.png", dict(reducefn="middle")),
        ("", {}),
        ("line.npy", dict(sdd=1000, delx=1)),
        ("words.npy", dict(sdd=1000, delx=1)),
        ("a.npy", dict(sdd=1000, delx=1)),
    ],
)
def test_bad_files_and_settings_are_one_line(tmp_path, name, options):
    sitk.WriteImage(sitk.GetImageFromArray(GREY), tmp_path / "a.png")
    sitk.WriteImage(sitk.GetImageFromArray(GREY * 0), tmp_path / "blank.png")
    sitk.WriteImage(sitk.GetImageFromArray((GREY * np.nan).astype(np.float32)), tmp_path / "nan.tif")
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "text.dcm").write_text("no DICOM file either")
    if name.endswith(".npy"):
        arrays = dict(line=GREY[0], words=np.array([["no", "numbers"]]), a=GREY)
        np.save(tmp_path / name, arrays[Path(name).stem])
        (tmp_path / "a.json").write_text(json.dumps(dict(sdd=1000, delx=0.4, height=30)))
    with pytest.raises(XvrError) as error:
        read_xray(tmp_path / name, Reading(**options))
    assert "\n" not in str(error.value) and str(error.value)


@pytest.fixture
def beside(tmp_path):
    "Pictures in three formats, a function that writes a file beside one, and a NIfTI file of frames"
    affine = np.diag([-0.4, -0.5, 1, 1])
    np.save(tmp_path / "a.npy", GREY)
    Image.fromarray(GREY).save(tmp_path / "b.png")
    nibabel.save(nibabel.Nifti1Image(GREY.T, affine), tmp_path / "c.nii.gz")
    frames = np.stack([GREY, GREY // 2, GREY * 0], -1).swapaxes(0, 1)[:, ::-1]  # rows upwards, as dcm2niix writes
    nibabel.save(nibabel.Nifti1Image(frames, affine @ np.diag([1, -1, 1, 1])), tmp_path / "frames.nii")
    taken = dict(sdd=1000, delx=0.4, dely=0.5, sid=800, primary=30, secondary=-10, patient_orientation="L\\F", y0=2)
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.json").write_text(json.dumps(taken))
    return tmp_path


@pytest.mark.parametrize("name", ["a.npy", "b.png", "c.nii.gz"])
def test_a_file_beside_a_picture(beside, name):
    xray = read_xray(beside / name)
    assert torch.equal(xray.image[0, 0], torch.from_numpy(GREY).float())
    assert xray.detector == Detector(1000, 20, 0.4, 30, 0.5, y0=2, reverse_x_axis=True)
    assert torch.allclose(xray.pose.matrix, pose_from_angles(30, -10, 800).matrix) and xray.angles == (30, -10)
    given = read_xray(beside / name, Reading(sdd=900, delx=0.3)).detector
    assert given == Detector(900, 20, 0.3, 30, 0.3, y0=2, reverse_x_axis=True)


def test_frames_of_a_nifti_file(beside):
    frames = read_xray(beside / "frames.nii", Reading(sdd=1000, reducefn=1))
    assert torch.equal(frames.image[0, 0], torch.from_numpy(GREY).float()) and abs(frames.detector.dely - 0.5) < 1e-6


def test_an_exact_camera_beside_a_picture(beside):
    shape, there = Detector(1000, 20, 0.4, 30, 0.5, 3, -2), Pose.from_euler([[20.0, 10, 5]], [[5.0, -800, 8]])
    centre = torch.tensor([10.0, -200, 900])
    (beside / "b.json").write_text(json.dumps(dict(geometry=physical_geometry(shape, there, centre))))
    placed = read_xray(beside / "b.png", Reading(crop=4), centre=centre)
    assert torch.allclose(placed.pose.matrix, there.matrix, atol=1e-4)
    for name in ("sdd", "delx", "dely", "x0", "y0"):
        assert abs(getattr(placed.detector, name) - getattr(shape, name)) < 1e-3
    assert placed.image.shape == (1, 1, 16, 26) and not placed.detector.reverse_x_axis
    assert read_xray(beside / "b.png").pose is None


def bare(tags, path, implicit=True):
    "The file without its preamble and the tags that state its encoding"
    stripped = Dataset()
    stripped.update({element.tag: element for element in tags})
    stripped.save_as(path, implicit_vr=implicit, little_endian=True, enforce_file_format=False)


ROW, COLUMN = np.mgrid[:80, :100]
BORDERS = {
    "frame": (ROW < 8) | (ROW >= 70) | (COLUMN < 12) | (COLUMN >= 95),
    "letterbox": (ROW < 10) | (ROW >= 72),
    "circle": np.hypot(ROW - 39.5, COLUMN - 49.5) > 44,
    "turned": np.abs(ROW - 40) + np.abs(COLUMN - 50) > 60,
}
STATED = {
    "found": {},
    "value": dict(PixelPaddingValue=1700),
    "range": dict(PixelPaddingValue=1698, PixelPaddingRangeLimit=1702),
    "range downwards": dict(PixelPaddingValue=1702, PixelPaddingRangeLimit=1698),
}


def noisy(seed=0):
    "Values from 200 to 3800 of a file of 12 bits"
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).random((80, 100)), 4)
    smooth = 300 + 3400 * (noise - noise.min()) / np.ptp(noise)
    return np.rint(smooth + np.random.default_rng(seed).normal(0, 30, smooth.shape)).clip(200, 3800).astype(int)


@pytest.mark.parametrize("stated", STATED)
@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("modality, kind", [("XA", np.uint16), ("DX", np.int32), ("DX", np.float32)])
def test_padding_among_the_values(border, stated, modality, kind):
    padded = BORDERS[border]
    image = np.where(padded, 1700, noisy()).astype(kind)
    usable = _find_usable(image, tagged(Modality=modality, BitsStored=12, **STATED[stated]))
    assert not usable[padded].any() and usable[~ndimage.binary_dilation(padded, iterations=3)].all()


def test_padding_of_signed_values():
    padded = BORDERS["letterbox"]
    for value in (-2000, 2**16 - 2000):  # which some writers store as unsigned
        tags = tagged(Modality="XA", BitsStored=16, PixelRepresentation=1, PixelPaddingValue=value)
        usable = _find_usable(np.where(padded, -2000, noisy() - 3000), tags)
        assert not usable[padded].any() and usable[~ndimage.binary_dilation(padded, iterations=3)].all()


def test_what_looks_like_padding_and_counts():
    "The open beam beside a patient, also below burnt-in text; a plateau; a stated value that only single pixels have"
    image = noisy()
    beam = np.where(BORDERS["letterbox"], 3900, image)
    beam[40, 50] = 4000
    assert _find_usable(beam, tagged(Modality="XA", BitsStored=12)).all()
    bright = np.where(BORDERS["letterbox"], 210, image)
    bright[40, 50] = 100
    assert _find_usable(bright, tagged(Modality="DX", BitsStored=12)).all()
    plateaus = np.tile(np.r_[0:4, np.full(40, 4), 4:8, np.full(40, 8), 8:20], (80, 1))
    for kind in (np.uint8, np.int64, float):
        for tags in (Dataset(), tagged(Modality="XA", BitsStored=8)):
            assert _find_usable(100 + plateaus.astype(kind), tags).all()
    assert _find_usable(image, tagged(Modality="XA", BitsStored=12, PixelPaddingValue=int(np.median(image)))).all()


def test_a_negative_slope_turns_the_sign(case, tmp_path):
    "The sign is that of the stored values, how a screen shows them that of the rescaled ones"
    tags = pydicom.dcmread(case.xrays[0])
    del tags.PixelIntensityRelationship
    for removed in ([], ["PixelIntensityRelationshipSign"]):
        for keyword in removed:
            delattr(tags, keyword)
        tags.save_as(tmp_path / "plain.dcm")
        turned = pydicom.dcmread(tmp_path / "plain.dcm")
        turned.PixelData = (4095 - turned.pixel_array).astype("<u2").tobytes()
        turned.RescaleSlope, turned.RescaleIntercept = -1, 4095
        if not removed:
            turned.PixelIntensityRelationshipSign = -turned.PixelIntensityRelationshipSign
        turned.save_as(tmp_path / "turned.dcm")
        plain, other = (read_xray(tmp_path / f"{name}.dcm") for name in ("plain", "turned"))
        assert torch.allclose(plain.image, other.image, atol=1e-3) and plain.notes == other.notes
        assert (plain.weight is None) == (other.weight is None)
        if plain.weight is not None:
            assert torch.equal(plain.weight, other.weight)


@pytest.mark.parametrize("name", ["x.dcm", "x", "1.2.840.99.5.1", "x.img"])
@pytest.mark.parametrize("implicit", [True, False])
def test_dicom_without_a_preamble(case, tmp_path, name, implicit):
    bare(pydicom.dcmread(case.xrays[0]), tmp_path / name, implicit)
    whole, read = read_xray(case.xrays[0]), read_xray(tmp_path / name)
    assert torch.equal(read.image, whole.image) and read.detector == whole.detector and read.notes == whole.notes
    assert torch.equal(read.pose.matrix, whole.pose.matrix)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(XvrError) as refused:
        read_xray(path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("signed", [0, 1])
@pytest.mark.parametrize("high", [15, 13, 11])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, None])
def test_values_at_the_top_of_their_bits(case, tmp_path, high, signed, syntax):
    tags, frames = pydicom.dcmread(case.xrays[0]), np.stack([np.arange(4096).reshape(64, 64)] * 2) - 2048 * signed
    frames[1] //= 2
    tags.NumberOfFrames, tags.BitsStored, tags.HighBit, tags.PixelRepresentation = 2, 12, high, signed
    tags.PixelData = (frames << high - 11).astype("<i2" if signed else "<u2").tobytes()
    if syntax is None:
        bare(tags, tmp_path / "x.dcm")
    else:
        tags.file_meta.TransferSyntaxUID = syntax
        tags.save_as(tmp_path / "x.dcm")
    assert np.array_equal(module.read_pixels(tmp_path / "x.dcm")[0], frames)
    assert np.array_equal(module.read_pixels(tmp_path / "x.dcm", "2")[0][0], frames[1])


@pytest.mark.parametrize("signed", [0, 1])
@pytest.mark.parametrize("bits, high", [(10, 15), (14, 15), (10, 11), (15, 15), (8, 15)])
def test_other_bits_at_the_top(case, tmp_path, bits, high, signed):
    tags, values = (
        pydicom.dcmread(case.xrays[0]),
        np.arange(64 * 64).reshape(64, 64) % 2**bits - 2 ** (bits - 1) * signed,
    )
    tags.BitsStored, tags.HighBit, tags.PixelRepresentation = bits, high, signed
    tags.PixelData = (values << high + 1 - bits).astype("<i2" if signed else "<u2").tobytes()
    tags.save_as(tmp_path / "x.dcm")
    assert np.array_equal(module.read_pixels(tmp_path / "x.dcm")[0][0], values)


def test_a_high_bit_against_the_pixels(case, tmp_path):
    "Values that use the lowest bits and no higher ones are not at the top, and a bit that does not exist counts not"
    tags = pydicom.dcmread(case.xrays[0])
    for high in (15, 40):
        tags.BitsStored, tags.HighBit = 12, high
        values = np.arange(4096, dtype="<u2").reshape(64, 64)
        tags.PixelData = values.tobytes()
        tags.save_as(tmp_path / "x.dcm")
        assert np.array_equal(module.read_pixels(tmp_path / "x.dcm")[0][0], values)


def test_results_of_names_that_are_uids(case, tmp_path):
    "Digits after the last dot belong to the name, so that each X-ray of a series has a result of its own"
    names = ["1.2.840.99.5.1", "1.2.840.99.5.2", "IM.0001"]
    for name in names:
        shutil.copy(case.xrays[0], tmp_path / name)
    reading, files = Reading(), Files(verbose=0)
    options = dict(reading=reading, files=files, starts=Starts(init_only=True))
    register_files([tmp_path / name for name in names], case.ct, from_dicom(), tmp_path / "out", **options)
    for name in names:
        assert (tmp_path / "out" / name / "result.json").is_file()
        assert torch.equal(from_result(tmp_path / "out")(read_xray(tmp_path / name)).matrix, read_xray(case.xrays[0]).pose.matrix)  # fmt: skip
    assert [file_stem(name) for name in ("a/x.png", "x.nii.gz", "x.v2.png", "x.12")] == ["x", "x", "x.v2", "x.12"]
