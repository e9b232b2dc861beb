"X-rays of a CT, case by case: what the lessons of the notebook on simulation show once, everywhere"

import json
from dataclasses import replace

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import torch

from xvr.conventions import XvrError
from xvr.detector import Detector, physical_geometry, pose_from_angles
from xvr.pose import Pose
from xvr.renderer import render
from xvr.series import read_image
from xvr.simulation import (
    _BONE,
    _WATER,
    CArm,
    Exposure,
    Placement,
    TagErrors,
    _mass_attenuation,
    _materials_from_hu,
    angles_from_pose,
    expose,
    read_materials,
    save_truth,
    simulate,
    simulate_files,
    simulate_xray,
    transmission,
    write_dicom,
)
from xvr.volume import chest_path, make_volume
from xvr.xray import Reading, Xray, _direction_from_letters, letters_from_direction, linearize_beam, read_xray

DETECTOR = Detector(1020, 200, 2.0, 160, 2.5, reverse_x_axis=True)
POSE = Pose.from_euler([[20.0, -10, 3]], [[5.0, -800, -10]])
IDEAL = Exposure(scatter=0, photons=0, blur=0)


@pytest.fixture(scope="module")
def chest():
    return read_materials(chest_path())


@pytest.fixture(scope="module")
def beam(chest):
    return transmission(chest, DETECTOR, POSE)


@pytest.fixture(scope="module")
def stored(beam):
    return expose(beam, DETECTOR)


def test_materials_attenuate_as_the_ct_states():
    hu = torch.linspace(-1100, 3000, 500)
    soft, bone = _materials_from_hu(hu)
    attenuation = soft * _mass_attenuation(_WATER, 70) + bone * _mass_attenuation(_BONE, 70)
    assert torch.allclose(attenuation / _mass_attenuation(_WATER, 70), hu.clamp(min=-1000) / 1000 + 1, atol=1e-5)
    assert soft.min() == 0 and bone.min() >= 0 and bone[hu <= 100].max() < 1e-6
    assert all(abs(_mass_attenuation(table, e) / v - 1) < 1e-9 for table in (_WATER, _BONE) for e, v in table.items())


def test_each_effect_does_what_it_should(chest, beam, stored):
    assert torch.equal(simulate_xray(chest, DETECTOR, POSE), stored)
    assert torch.equal(stored, expose(beam, DETECTOR)) and not torch.equal(stored, expose(beam, DETECTOR, seed=1))
    noisy = replace(IDEAL, photons=500, bits=16)
    quanta = torch.cat([expose(beam, DETECTOR, noisy, seed=n) for n in range(20)]) / 0.9 / 65535
    assert 0.95 < (500 * quanta.var(0)[0] / beam)[beam > 0.1].mean() < 1.05
    look = lambda scatter: linearize_beam(expose(beam, DETECTOR, replace(IDEAL, scatter=scatter, bits=16)))[0, 0]
    line, veiled = look(0), look(0.1)
    assert (veiled - line)[line > 4].mean() < (veiled - line)[line < 2].mean() - 0.1
    soft, hard = (transmission(chest, DETECTOR, POSE, {energy: 1.0}) for energy in (40, 80))
    assert (hard >= soft - 1e-6).all()


@pytest.mark.parametrize("name", ["scatter", "spread", "photons", "blur", "collimator"])
@pytest.mark.parametrize("value", [-1, float("nan")])
def test_no_effect_is_negative(name, value):
    with pytest.raises(XvrError, match=f"`{name}` must be 0 or more"):
        Exposure(**{name: value})


@pytest.mark.parametrize("name", ["angle_error", "distance_error"])
def test_no_error_is_negative(name):
    with pytest.raises(XvrError, match=f"`{name}` must be 0 or more"):
        TagErrors(**{name: -1})


def test_without_effects_it_is_the_line_integral(chest, tmp_path):
    "By another renderer's volume: the attenuation itself, so that the split into materials is tested too"
    exposure = replace(IDEAL, spectrum="70keV", bits=16)
    exact = simulate_xray(chest, DETECTOR, POSE, exposure)
    write_dicom(tmp_path / "xray.dcm", exact, DETECTOR, POSE, exposure)
    xray = read_xray(tmp_path / "xray.dcm")
    hu, patient = read_image(chest_path())
    mu = make_volume((hu.clamp(min=-1000) / 1000 + 1) * _mass_attenuation(_WATER, 70) / 10, patient)
    line = render(mu, DETECTOR, POSE, method="siddon")
    line, step = line - line.min(), 0.5 * line.exp() / 0.9 / 65535
    assert ((xray.image - line).abs() < 2e-3 + 2 * step).all(), (xray.image - line).abs().max()
    # SimpleITK reads the same pixels
    assert (sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "xray.dcm")))[0] == exact[0, 0].numpy()).all()
    assert xray.notes == [] and xray.detector == DETECTOR
    rot, xyz = xray.pose.to_euler()
    assert torch.allclose(rot, torch.tensor([[20.0, -10, 0]]), atol=1e-2)
    assert torch.allclose(xyz, torch.tensor([[0.0, -800, 0]]), atol=1e-2)


def test_from_the_front(stored, tmp_path):
    front, pose = replace(DETECTOR, orientation="AP"), pose_from_angles(12, 34, 800, "AP")
    write_dicom(tmp_path / "xray.dcm", stored, front, pose)
    back = read_xray(tmp_path / "xray.dcm", Reading(orientation="AP"))
    assert back.detector == front and torch.allclose(back.pose.matrix, pose.matrix, atol=1e-3)
    for side in ("AP", "PA"):
        there = pose_from_angles(33, -12, 700, side)
        assert np.allclose(angles_from_pose(there, side), (33, -12, 700), atol=1e-3)


def copies(tags):
    "The file, and the same radiograph in other guises: name, pixels, changed tags"
    pixels, (across, down) = tags.pixel_array, tags.PatientOrientation
    opposite = lambda word: "".join(letters_from_direction(-_direction_from_letters(c)) for c in word)
    yield "as it is", pixels, {}
    yield "mirrored", pixels[:, ::-1], dict(PatientOrientation=[opposite(across), down])
    yield "upside down", pixels[::-1], dict(PatientOrientation=[across, opposite(down)])
    turned = dict(PatientOrientation=[opposite(down), across], ImagerPixelSpacing=tags.ImagerPixelSpacing[::-1])
    yield "turned", pixels.T[:, ::-1], turned
    yield "MONOCHROME1", 4095 - pixels, dict(PhotometricInterpretation="MONOCHROME1", PixelIntensityRelationshipSign=-1)


def test_each_copy_puts_the_same_intensity_on_the_same_point_in_space(stored, tmp_path):
    seen, file = {}, tmp_path / "xray.dcm"
    write_dicom(file, stored, DETECTOR, POSE)
    for name, pixels, changes in copies(pydicom.dcmread(file)):
        tags = pydicom.dcmread(file)
        for keyword, value in changes.items():
            setattr(tags, keyword, value)
        tags.Rows, tags.Columns = pixels.shape
        tags.PixelData = np.ascontiguousarray(pixels).tobytes()
        tags.save_as(tmp_path / "copy.dcm")
        seen[name] = read_xray(tmp_path / "copy.dcm")
    first = seen["as it is"]
    plate = lambda x: torch.cat(
        [x.detector.rays(x.pose)[1][0].view(*x.image.shape[2:], 3), x.image[0, 0, ..., None]], -1
    )
    for name, copy in seen.items():
        assert torch.equal(copy.pose.matrix, first.pose.matrix), name
        assert len(copy.notes) == (name in ("upside down", "turned")), name
        here = plate(copy) if copy.detector.reverse_x_axis else plate(copy).flip(1)
        assert torch.allclose(here, plate(first), atol=2e-3), name
    assert not seen["mirrored"].detector.reverse_x_axis and seen["turned"].detector == DETECTOR


@pytest.mark.parametrize("primary, secondary", [(30, 0), (-30, 0), (0, 20), (0, -20), (90, 0)])
def test_the_words_of_the_standard_in_space(stored, tmp_path, primary, secondary):
    write_dicom(tmp_path / "xray.dcm", stored, DETECTOR, pose_from_angles(primary, secondary, 800))
    back, tags = read_xray(tmp_path / "xray.dcm"), pydicom.dcmread(tmp_path / "xray.dcm")
    middle = back.detector.rays(back.pose)[1][0].mean(0)
    assert middle[0] * primary <= 0 and middle[2] * secondary >= 0 and middle.norm() > 200  # RAS: left is -x
    geometry = physical_geometry(back.detector, back.pose, torch.zeros(3))
    for step, word in zip(("column_step", "row_step"), tags.PatientOrientation):
        step = torch.tensor(geometry[step])
        assert step * torch.tensor([-1.0, -1, 1]) / step.norm() @ _direction_from_letters(word).float() > 0.9


def test_a_folder_of_xrays(chest, tmp_path):
    poses = Pose.from_euler([[0.0, 0, 0], [35.4, 0, 0], [-20, 15, 5]], [[0.0, -800, 0]])
    plate = Detector(1020, 96, 4.0, reverse_x_axis=True)
    files = simulate_files(chest, poses, plate, tmp_path, tag_errors=TagErrors(rounded=True))
    assert read_xray(files[1]).angles == (35, 0)
    assert torch.allclose(Pose.load(files[2].with_suffix(".json")).matrix, poses[2].matrix, atol=1e-4)
    truth = json.loads(files[0].with_suffix(".json").read_text())
    source = torch.tensor(truth["geometry"]["source"]) * torch.tensor([-1, -1, 1]) - torch.tensor(truth["centre"])
    assert torch.allclose(source, torch.tensor([0.0, -800, 0]), atol=1e-3)


def test_resume(chest, tmp_path):
    poses = Pose.from_euler([[0.0, 0, 0], [35.4, 0, 0], [-20, 15, 5]], [[0.0, -800, 0]])
    small = dict(
        detector=Detector(1020, 24, 16.0, reverse_x_axis=True),
        outpath=tmp_path,
        exposure=Exposure(collimator=60.0),
        tag_errors=TagErrors(angle_error=1.0),
    )
    first = [f.read_bytes() for f in simulate_files(chest, poses, **small)]
    (tmp_path / "xray_001.dcm").unlink()  # as if it had been interrupted here
    assert [f.read_bytes() for f in simulate_files(chest, poses, **small, resume=True)] == first
    assert len(list(tmp_path.iterdir())) == 6
    weight = read_xray(tmp_path / "xray_000.dcm").weight[0, 0]  # four pixels at each edge are behind lead
    assert not torch.cat([weight[:4], weight[20:], weight.T[:4], weight.T[20:]]).any() and weight[5:19, 5:19].all()
    with pytest.raises(XvrError, match="exists already"):
        simulate_files(chest, poses, **small)
    with pytest.raises(XvrError, match="settings"):
        simulate_files(chest, poses, **small, resume=True, seed=1)
    with pytest.raises(XvrError, match="detector"):
        simulate_files(chest, poses, **small | dict(detector=Detector(1020, 24, 15.0)), resume=True)


def test_the_truth_of_an_older_version_is_accepted(chest, tmp_path):
    "0.1.0 wrote the settings that were given, and all of them only from the command line"
    pose, plate = pose_from_angles(0, 0, 800), Detector(1020, 24, 16.0)
    older = dict(seed=0, bits=12, collimator=0.0, angle_error=0.0, distance_error=0.0, rounded=False, volume=None)
    full = older | dict(spectrum={40: 0.3, 60: 0.45, 80: 0.25}, scatter=0.1, spread=30.0, photons=20000.0, blur=0.2)
    (file,) = simulate_files(chest, pose, plate, tmp_path)
    before = file.stat().st_mtime_ns
    for settings in (older, full):
        save_truth(file.with_suffix(".json"), plate, pose, chest.water.centre, settings)
        assert simulate_files(chest, pose, plate, tmp_path, resume=True) == [file]
        assert file.stat().st_mtime_ns == before
    save_truth(file.with_suffix(".json"), plate, pose, chest.water.centre, full | dict(photons=0.0))
    with pytest.raises(XvrError, match="settings"):
        simulate_files(chest, pose, plate, tmp_path, resume=True)


@pytest.mark.parametrize("orientation", [["L", "F"], ["R", "F"], ["R", "H"], ["F", "L"]])
def test_weights_go_where_their_pixels_go(tmp_path, orientation):
    shape = Detector(1020, 40, 5.0, width=50, reverse_x_axis=True)
    marked = torch.ones(40, 50)
    marked[5:9, 30:48] = 0
    picture = torch.randint(100, 3000, (1, 1, 40, 50))
    write_dicom(tmp_path / "x.dcm", picture, shape, pose_from_angles(20, 5, 800))
    sitk.WriteImage(sitk.GetImageFromArray((255 * marked).byte().numpy()), tmp_path / "w.png")
    tags = pydicom.dcmread(tmp_path / "x.dcm")
    tags.PatientOrientation = orientation
    tags.save_as(tmp_path / "y.dcm")
    read = read_xray(tmp_path / "y.dcm", Reading(crop=4, weights=tmp_path / "w.png"))
    beam = read_xray(tmp_path / "y.dcm", Reading(crop=4, linearize=False)).image
    tags.PixelData = np.where(marked > 0, 3000, tags.pixel_array).astype("<u2").tobytes()
    tags.save_as(tmp_path / "z.dcm")
    hidden = read_xray(tmp_path / "z.dcm", Reading(crop=4, linearize=False)).image
    assert torch.equal(read.weight > 0, hidden == hidden.min())
    assert read.weight.shape == read.image.shape == beam.shape


def test_bad_weights(tmp_path):
    write_dicom(tmp_path / "x.dcm", torch.randint(100, 3000, (40, 50)), Detector(1020, 40, 5.0, 50), POSE)
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((40, 50), np.uint8)), tmp_path / "black.png")
    sitk.WriteImage(sitk.GetImageFromArray(np.ones((4, 5), np.uint8)), tmp_path / "small.png")
    for bad, words in (("black.png", "black everywhere"), ("small.png", "4 x 5 pixels")):
        with pytest.raises(XvrError, match=words):
            read_xray(tmp_path / "x.dcm", Reading(weights=tmp_path / bad))


REAL = Detector(1200, 400, 0.3, 500, 0.4, reverse_x_axis=True)
RANGES = dict(r1=(-30, 30), r2=(0, 0), r3=(0, 0), tx=(0, 0), ty=(-850, -750), tz=(0, 0))


def test_detectors():
    assert CArm().detector() == Detector(1020, 512, 0.78125)
    assert CArm(sdd=1000.0, orientation="AP").detector(REAL) == replace(REAL, sdd=1000.0, orientation="AP")
    assert CArm(height=64).detector(REAL) == replace(REAL, height=64, width=64)
    assert CArm(delx=0.5).detector(REAL) == replace(REAL, delx=0.5, dely=0.5)
    for state, reverse in ((None, True), (True, True), (False, False)):
        assert CArm(reverse_x_axis=state).detector(REAL).reverse_x_axis == reverse


def test_placements():
    one = Placement(rot=(30.0, 0, 0), xyz=(0.0, -800, 0)).poses()
    assert torch.equal(one.matrix, pose_from_angles(30, 0, 800).matrix)
    angles = Placement(primary=[30.0, -30.0], secondary=[20.0], sid=800.0).poses()
    both = torch.cat([pose_from_angles(30, 20, 800).matrix, pose_from_angles(-30, 20, 800).matrix])
    assert torch.equal(angles.matrix, both)
    ranges = Placement(**RANGES, count=3)
    drawn = ranges.poses()
    assert len(drawn) == 3 and not torch.equal(drawn.matrix, ranges.poses(seed=1).matrix)
    taken = Xray(None, REAL, pose_from_angles(10, 5, 700))
    assert Placement(like="x.dcm").poses(like=taken) is taken.pose
    assert len(replace(ranges, like="x.dcm").poses(like=taken)) == 3


@pytest.mark.parametrize(
    "given, words",
    [
        (dict(), "no pose is given"),
        (dict(rot=(0.0, 0, 0)), "`xyz` is missing"),
        (RANGES | dict(pose="poses.json"), "2 ways are given"),
        (RANGES | dict(count=0), "`count` of 0"),
        (dict(primary=[0.0], secondary=[0.0]), "`sid`"),
        (dict(primary=[0.0, 1, 2], secondary=[0.0, 1], sid=800), "do not make pairs"),
    ],
)
def test_bad_placements(given, words):
    with pytest.raises(XvrError, match=words):
        Placement(**given).poses()


def test_the_patient_is_between_source_and_detector(tmp_path):
    with pytest.raises(XvrError, match="expected it between them"):
        simulate(chest_path(), tmp_path / "xrays", placement=Placement(rot=(0, 0, 0), xyz=(0, 800, 0)))
    assert not (tmp_path / "xrays").exists()


@pytest.mark.parametrize("state, reverse", [(None, True), (True, True), (False, False)])
def test_three_states_against_an_xray(stored, tmp_path, state, reverse):
    write_dicom(tmp_path / "real.dcm", stored, DETECTOR, POSE)
    placement, carm = Placement(like=tmp_path / "real.dcm"), CArm(height=16, delx=25.0, reverse_x_axis=state)
    (file,) = simulate(chest_path(), tmp_path / "xrays", placement=placement, carm=carm)
    assert read_xray(file).detector.reverse_x_axis == reverse
