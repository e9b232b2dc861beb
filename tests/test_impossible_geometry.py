"Geometry that cannot be, caught before anything runs, with the unit that was probably meant"

import json
from dataclasses import replace

import pydicom
import pytest
import torch
from click.testing import CliRunner

from xvr import cli
from xvr.conventions import XvrError
from xvr.detector import Detector
from xvr.pose import Pose
from xvr.registration import register
from xvr.sampling import Views
from xvr.volume import load_chest
from xvr.xray import Xray

RANGES = dict(r1=(-30, 30), r2=(-15, 15), r3=(-10, 10), tx=(-30, 30), ty=(-900, -700), tz=(-30, 30))
CARM = dict(sdd=1020, height=256, delx=1.5)

SYSTEMS = dict(
    c_arm=(1020, 256, 1.5, 256, None, 700),
    cone_beam=(1536, 768, 0.388, 1024, None, 1000),
    chest_stand=(1800, 3000, 0.143, 3000, None, 1600),
    mammography=(660, 4096, 0.07, 3328, None, 600),
    dental=(300, 1600, 0.02, 1200, None, 250),
    micro=(250, 2000, 0.05, 2000, None, 120),
    slot=(1300, 1, 0.4, 1200, 0.4, 1000),
    high_magnification=(1000, 1024, 0.2, 1024, None, 120),
    small_image=(1020, 64, 0.3, 64, None, 700),
)


@pytest.mark.parametrize("name", SYSTEMS)
def test_real_systems_pass(name):
    sdd, height, delx, width, dely, distance = SYSTEMS[name]
    detector = Detector(sdd, height, delx, width, dely)
    detector.check_scale()
    assert detector.misplaced(Pose.from_euler([30, 10, 0], [20, -distance, 5])) == ""
    for orientation, sign in (("PA", -1), ("AP", 1)):
        ranges = RANGES | dict(ty=sorted((sign * distance, 1.05 * sign * distance)))
        if dely is None:
            Views(**ranges, sdd=sdd, height=height, delx=delx, orientation=orientation)


@pytest.mark.parametrize("change, expected", [
    (dict(sdd=1.02), "`sdd` looks like metres: give mm, 1020"),
    (dict(sdd=102), "`sdd` looks like centimetres: give mm, 1020"),
    (dict(sdd=1_020_000), "`sdd` looks like micrometres: give mm, 1020"),
    (dict(delx=0.0015), "`delx` looks like metres: give mm, 1.5"),
    (dict(delx=1500), "`delx` looks like micrometres: give mm, 1.5"),
    (dict(delx=0.0002, height=1024), "`delx` looks like metres: give mm, 0.2"),
    (dict(ty=(-0.9, -0.7)), "it looks like metres: give mm"),
    (dict(ty=(700, 900)), "the patient is behind the source; give `ty` below zero"),
    (dict(ty=(700, 900), orientation="AP", sdd=600), "behind the detector at 600 mm; give `ty` above zero"),
    (dict(ty=(-1100, -700)), "1100 mm from the source, behind the detector at 1020 mm; give `ty` below zero"),
    (dict(ty=(-900, 100)), "behind the source"),
    (dict(r1=(-0.785, 0.785), r2=(-0.2618, 0.2618), r3=(-0.1745, 0.1745)), "radians; give degrees, -45 -15 -10"),
    (dict(r1=(-3.14, 3.14), r2=(0, 0), r3=(0, 0)), "radians; give degrees, -180"),
    (dict(r1=(-4500, 4500)), "beyond a whole turn; give degrees, from -360 to 360"),
    (dict(ty=(-9e5, -7e5)), "it looks like micrometres: give mm, 900"),
    (dict(tx=(-30_000, 30_000)), "aside of the beam, and 900 mm from the source; it looks like micrometres: give mm, 30"),
    (dict(tz=(-1000, 1000)), "and `tz` -1000 1000 the patient is 1000 mm aside of the beam"),
    (dict(height=2000), "a detector 1020 mm from the source cannot be 3e+03 mm wide"),
    (dict(sdd=float("nan")), "`sdd` must be above zero, not nan"),
    (dict(delx=float("inf")), "`delx` must be above zero, not inf"),
])  # fmt: skip
def test_training_ranges(change, expected):
    with pytest.raises(XvrError) as raised:
        Views(**RANGES | CARM | change)
    assert expected in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("rot", [(30, 10, 0), (0.35, 0, 0), (1, -2, 3), (0, 0, 0), (0.5, 0.25, 0.1), (89.95, 0, 0), (-180, 0, 0),
                                 (0.52, 0.17, 0.02), (0.5236, 12.5, 0)])  # fmt: skip
def test_degrees_are_degrees(rot):
    Pose.from_euler(rot, [0, -800, 0]).check_degrees()
    Views(**RANGES | CARM | {f"r{n + 1}": (-abs(r), abs(r)) for n, r in enumerate(rot)})


@pytest.mark.parametrize("degrees", [(30, 10, 0), (90, 0, 0), (180, 0, 0), (-45, 5, 60), (0, 0, 15)])
def test_radians_are_told_by_their_degrees(degrees):
    for digits in (3, 4, 7):
        radians = [round(a, digits) for a in torch.deg2rad(torch.tensor(degrees).double()).tolist()]
        with pytest.raises(XvrError, match="degrees, " + " ".join(f"{a:g}" for a in degrees if a)):
            Pose.from_euler(torch.tensor(radians).double(), torch.zeros(3)).check_degrees()


def test_radians_in_a_pose_file(tmp_path):
    (tmp_path / "pose.json").write_text(json.dumps(dict(rot=[0.5236, 0.1745, 0], xyz=[0, -800, 0])))
    with pytest.raises(XvrError, match="look like radians; give degrees, 30 10"):
        Pose.load(tmp_path / "pose.json")


CHEST = load_chest().at(8)


@pytest.mark.parametrize("carm, xyz, expected", [
    ({}, (0, 800, 0), "the patient is behind the source; give another pose, or check `orientation`, PA"),
    ({}, (0, -1300, 0), "1300 mm from the source, behind the detector at 1020 mm"),
    ({}, (0, -80, 0), "inside the body; it looks like centimetres: give mm, 800"),
    ({}, (0, -0.8, 0), "inside the body; it looks like metres: give mm, 800"),
    ({}, (0, -25, 0), "inside the body; give another pose"),
    (dict(sdd=102, delx=0.6), (0, -80, 0), "inside the body"),
    (dict(sdd=102, delx=0.6), (0, -800, 0), "`sdd` looks like centimetres: give mm, 1020"),
    (dict(sdd=1.02), (0, -800, 0), "`sdd` looks like metres: give mm, 1020"),
    (dict(delx=0.006), (0, -800, 0), "`delx` looks like metres: give mm, 6"),
    (dict(dely=0.006), (0, -800, 0), "a pixel cannot be 6 mm wide and 0.006 mm high; `dely` looks like metres: give mm, 6"),
    ({}, (0, -8e5, 0), "it looks like micrometres: give mm, 800"),
    ({}, (900, -800, 0), "900 mm aside of the beam, and 800 mm from the source; give another pose"),
    ({}, (0, float("nan"), 0), "the pose is not of finite numbers"),
])  # fmt: skip
def test_starts_of_a_registration(carm, xyz, expected):
    detector = Detector(**dict(sdd=1020, height=64, delx=6.0) | carm)
    steps = []
    with pytest.raises(XvrError) as raised:
        xray = Xray(torch.rand(1, 1, 64, 64), detector)
        register(xray, CHEST, Pose.from_euler([0, 0, 0], xyz), watch=steps.append)
    assert expected in str(raised.value) and not steps


def test_a_source_beside_a_slim_body_is_outside():
    "The body's box counts, not a sphere about it"
    body = torch.tensor([[-200.0, -100, -900], [200, 100, 900]])
    detector = Detector(600, 256, 1.0)
    assert detector.misplaced(Pose.from_euler([0, 0, 0], [0, -150, 0]), body) == ""
    assert "inside the body" in detector.misplaced(Pose.from_euler([90, 0, 0], [0, -150, 0]), body)
    flat = replace(detector, sdd=torch.tensor([600.0, 300.0]))
    assert "behind the detector at 300 mm" in flat.misplaced(Pose.from_euler([0, 0, 0], [0, -400, 0]))


def line_of(*words):
    done = CliRunner().invoke(cli.xvr, [*map(str, words)], prog_name="xvr")
    assert done.exit_code == 1, done.stderr
    return done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize("extra, expected", [
    (["--sdd", 1.02], "--sdd looks like metres: give mm, 1020"),
    (["--delx", 0.0002], "--delx looks like metres"),
    (["--xyz", 0, -80, 0], "looks like centimetres: give mm, 800"),
    (["--xyz", 0, 800, 0], "the patient is behind the source"),
    (["--rot", 0.5236, 0.1745, 0], "look like radians; give degrees, 30 10"),
    (["--rot", 3600, 0, 0], "the angles 3600 0 0 go beyond a whole turn"),
    (["--rot", "nan", 0, 0], "the angles nan 0 0 and offsets 0 -800 0 are not all finite"),
    (["--dely", 0.0058], "--dely looks like metres: give mm, 5.8"),
    (["--sid", -800], "--sid must be above zero, not -800; give mm"),
    (["--sdd", "nan"], "--sdd must be above zero, not nan"),
    (["--x0", "inf"], "--x0 must be a number of mm"),
])  # fmt: skip
def test_register_on_the_command_line(case, tmp_path, extra, expected):
    start = ["--rot", 10, 5, 0, "--xyz", 0, -800, 0]
    assert expected in line_of(
        "register", "fixed", case.xrays[0], "-v", case.ct, "-o", tmp_path / "out", *start, *extra
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("extra, expected", [
    (["--sdd", 1.02], "--sdd looks like metres: give mm, 1020"),
    (["--delx", 0.0002], "--delx looks like metres"),
    (["--ty", -90, -70], "inside the body; it looks like centimetres: give mm"),
    (["--ty", -900, -30], "inside the body; give --ty farther from zero"),
    (["--r1", -0.785, 0.785, "--r2", 0, 0, "--r3", 0, 0], "look like radians"),
])  # fmt: skip
def test_train_on_the_command_line(case, tmp_path, extra, expected):
    ranges = [word for name, ends in RANGES.items() for word in (f"--{name}", *ends)]
    carm = ["--sdd", 1020, "--height", 32, "--delx", 12.5, "--n_epochs", 1, "--n_batches_per_epoch", 1]
    assert expected in line_of("train", "-i", case.ct, "-o", tmp_path / "out", *ranges, *carm, *extra)
    assert not list(tmp_path.glob("out/*.pth"))


@pytest.mark.parametrize("extra, expected", [
    (["--sdd", 1.02], "--sdd looks like metres: give mm, 1020"),
    (["--sdd", 700], "the patient is 800 mm from the source, behind the detector at 700 mm; expected it between them"),
    (["--delx", 0.0002], "--delx looks like metres"),
    (["--height", 4000], "cannot be 4.8e+04 mm wide"),
    (["--dely", 0.012], "--dely looks like metres: give mm, 12"),
    (["--xyz", 0, 800, 0], "at pose 1 of 1 the patient is behind the source"),
    (["--xyz", 0, -80, 0], "inside the body; it looks like centimetres: give mm, 800"),
    (["--xyz", 0, -100, 0], "inside the body; give poses outside of it"),
    (["--xyz", 0, -0.8, 0], "inside the body; it looks like metres: give mm, 800"),
    (["--xyz", 0, -8e5, 0], "it looks like micrometres: give mm, 800"),
    (["--xyz", 900, -800, 0], "900 mm aside of the beam, and 800 mm from the source; give another pose"),
    (["--rot", 0.5236, 0.1745, 0], "look like radians; give degrees, 30 10"),
    (["--rot", 3600, 0, 0], "beyond a whole turn"),
])  # fmt: skip
def test_simulate_on_the_command_line(case, tmp_path, extra, expected):
    carm = ["--rot", 10, 5, 0, "--xyz", 0, -800, 0, "--height", 32, "--delx", 12]
    assert expected in line_of("simulate", "-v", case.ct, "-o", tmp_path / "out", *carm, *extra)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("sid, primary, expected", [
    (0.8, 10, "it looks like metres: give mm, 800"),
    (80, 10, "it looks like centimetres: give mm, 800"),
    (-800, 10, "--sid must be above zero, not -800; give mm"),
    (1100, 10, "behind the detector at 1020 mm"),
    (800, 0.5236, "radians; give degrees, 30"),
    (800, 1000, "beyond a whole turn"),
])  # fmt: skip
def test_angles_of_dicom(case, tmp_path, sid, primary, expected):
    way = ["--primary", primary, "--secondary", 0, "--sid", sid]
    assert expected in line_of("simulate", "-v", case.ct, "-o", tmp_path / "out", "--height", 32, "--delx", 12, *way)
    assert not (tmp_path / "out").exists()


def test_the_picker_does_not_open(case, tmp_path):
    words = ["pick", "-v", case.ct, "-o", tmp_path / "pose.json", "--no_browser"]
    assert "--sdd looks like metres: give mm, 1020" in line_of(*words, "--sdd", 1.02)
    assert "--delx looks like metres" in line_of(*words, case.xrays[0], "--delx", 0.0058)


@pytest.mark.parametrize("change, expected", [
    (dict(DistanceSourceToDetector=1.02, DistanceSourceToPatient=0.8), "sdd looks like metres: give mm, 1020"),
    (dict(ImagerPixelSpacing=[0.0058, 0.0058]), "delx looks like metres: give mm, 5.8"),
    (dict(DistanceSourceToPatient=1200), "the patient is 1200 mm from the source, behind the detector at 1020 mm"),
])  # fmt: skip
def test_info_on_impossible_tags(case, tmp_path, change, expected):
    tags = pydicom.dcmread(case.xrays[0])
    tags.update(change)
    tags.save_as(tmp_path / "x.dcm")
    done = CliRunner().invoke(cli.xvr, ["info", str(tmp_path / "x.dcm")], prog_name="xvr")
    assert "cannot be registered as it is: " in " ".join(done.stdout.split()) and expected in " ".join(
        done.stdout.split()
    )
