"A registration by files from Python, and what its folder states"

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import xvr
from xvr import cli
from xvr.conventions import XvrError
from xvr.detector import project, stated_centre
from xvr.evaluation import evaluate
from xvr.initialisers import from_file
from xvr.volume import bone_points


@pytest.fixture(scope="module")
def wrong(case, tmp_path_factory):
    "What the terminal shows of a registration that fails, and its folder"
    out = tmp_path_factory.mktemp("wrong") / "results"
    words = ["register", "fixed", case.xrays[0], "-v", case.ct, "-o", out, "--saveimg", "--report"]
    words += ["--rot", 190, -5, 0, "--xyz", 0, -800, 0]
    done = CliRunner().invoke(cli.xvr, [*map(str, words)], prog_name="xvr")
    assert done.exit_code == 0, done.output
    return done.stdout, out / case.xrays[0].stem


@pytest.fixture(scope="module")
def right(case, tmp_path_factory):
    "A result in Python, and its folder"
    result = xvr.register(str(case.xrays[0]), case.ct, xvr.from_dicom())
    folder = tmp_path_factory.mktemp("right") / case.xrays[0].stem
    result.save(folder)
    return result, folder


def test_files_are_read(case, right):
    result, _ = right
    ct = xvr.read_volume(case.ct)
    again = xvr.register(xvr.read_xray(case.xrays[0], centre=ct.centre.tolist()), ct, xvr.from_dicom())
    assert torch.allclose(result.final.matrix, again.final.matrix, atol=1e-5) and result.verdict == "ok"
    start = xvr.Pose.from_euler([[10.0, 5, 0]], [[0.0, -800, 0]])
    assert xvr.register(case.xrays[0], ct, start).verdict == "ok"


@pytest.mark.parametrize(
    "change, said",
    [
        (dict(xray=3), "`xray` is 3; expected an X-ray's file"),
        (dict(volume=None), "`volume` is None; expected a CT's file"),
        (dict(volume=torch.zeros(2, 2, 2)), "`volume` is a Tensor"),
        (dict(initialiser="dicom"), "`initialiser` is 'dicom'; expected a Pose, from_dicom()"),
        (dict(initialiser=xvr.from_dicom), "`initialiser` made Initialiser of an X-ray, not a Pose"),
        (dict(xray="no such.dcm"), "no such.dcm"),
        (dict(xray="PICTURE"), "beside it; read it with `read_xray(FILE, Reading(sdd=...))`"),
    ],
)
def test_what_is_neither_is_answered_in_one_line(case, tmp_path, change, said):
    given = dict(xray=case.xrays[0], volume=case.ct, initialiser=xvr.from_dicom()) | change
    if given["xray"] == "PICTURE":
        given["xray"] = tmp_path / "picture.png"
        Image.linear_gradient("L").save(given["xray"])
    with pytest.raises((XvrError, FileNotFoundError)) as error:
        xvr.register(**given)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_folder_that_is_there_is_kept(right):
    result, folder = right
    with pytest.raises(XvrError, match="exists already"):
        result.save(folder)


def test_one_frame_that_is_named(case, right):
    result, folder = right
    data, ct = json.loads((folder / "result.json").read_text()), xvr.read_volume(case.ct)
    assert data["frame"] == "LPS" and data["units"] == dict(length="mm", angle="degrees", image="pixels")
    assert torch.allclose(stated_centre(data), ct.centre) and data["centre"][0] == -ct.centre[0]
    points = bone_points(ct)[:50].double()
    lps = (points + ct.centre) * torch.tensor([-1.0, -1, 1])
    seen = np.c_[lps.numpy(), np.ones(len(lps))] @ np.array(data["projection"]).T
    expected = project(result.detector, result.final.to(torch.float64), points[None])[0].numpy()
    assert np.allclose(seen[:, :2] / seen[:, 2:], expected, atol=1e-2)


def test_a_result_without_a_frame_is_read_as_before(case, right, tmp_path):
    "Results of earlier versions state the centre in RAS"
    _, folder = right
    data = json.loads((folder / "result.json").read_text())
    old = {k: v for k, v in data.items() if k not in ("frame", "units", "convention", "projection")}
    old["centre"] = stated_centre(data).tolist()
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "result.json").write_text(json.dumps(old))
    xray = xvr.read_xray(case.xrays[0])
    moved = xvr.read_volume(case.ct)
    moved.centre = moved.centre + 5  # another CT's, so that the stated centre counts
    new, before = (from_file(path, volume=moved)(xray).matrix for path in (folder, tmp_path / "a"))
    assert torch.allclose(new, before) and not torch.allclose(new, from_file(folder, volume=case.ct)(xray).matrix)


def test_failure_states_no_deviation(wrong, case, tmp_path):
    shown, folder = wrong
    data = json.loads((folder / "result.json").read_text())
    assert data["verdict"] == "failed" and set(data["deviation"].values()) == {None}
    assert {x for row in data["covariance"]["matrix"] for x in row} == {None} and data["evidence"]["in_place"] < 1
    row = next(line for line in shown.splitlines() if line.startswith(case.xrays[0].name))
    assert row.split()[-4:-2] == ["-", "-"] and all(len(line) <= 80 for line in shown.splitlines())
    assert (
        "than beside it: check patient, region, --linearize and --reverse_x_axis, then try `xvr register search`, or `--starts 64`"
        in " ".join(shown.split())
    )
    assert data["warnings"][0].endswith("try `xvr register search`, or `--starts 64`")
    page = (folder / "report.html").read_text()
    assert "xvr register search" in page and "95 % interval" not in page
    info = CliRunner().invoke(cli.xvr, ["info", str(folder)])
    assert info.exit_code == 0 and "deviation" not in info.output
    evaluate([folder.parent], case.xrays[0].parent, tmp_path / "figures", volume=case.ct, partial=True)
    assert (tmp_path / "figures" / "evaluation.csv").exists()


def test_pictures_have_the_size_of_the_xray(wrong):
    "A small X-ray is enlarged by a whole number"
    _, folder = wrong
    sizes = {p.stem: Image.open(p).size for p in folder.glob("*.png")}
    assert sizes["xray"] == (64, 64) and sizes["checkerboard"] == sizes["difference"] == (512, 512)
    assert sizes["overlay"] == (1024, 512)


def test_animation_and_table_state_the_same(wrong):
    _, folder = wrong
    frames, data = np.load(folder / "frames.npz"), json.loads((folder / "result.json").read_text())
    assert frames["stated"][-1] == pytest.approx(data["similarity"]["final"], abs=1e-6)
    assert frames["stated"][0] == pytest.approx(data["similarity"]["initial"], abs=1e-3)
    assert len(frames["stated"]) == len(frames["stated_step"]) > 3
