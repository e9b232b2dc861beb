"A trial of Autoscoper around the sample of a real wrist, and files that are not as they should be"

import hashlib
import os
import re
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from scipy.spatial.transform import Rotation

from xvr import trials
from xvr.conventions import XvrError
from xvr.detector import Detector, project, resize_image
from xvr.pose import Pose
from xvr.renderer import render
from xvr.trials import Points, Track, _parse_mayacam1, read_mayacam, read_trial, wrist_path, write_mayacam
from xvr.xray import linearize_beam

DATA = Path(os.environ.get("XVR_DATA", Path(__file__).resolve().parents[2] / "shared/data")) / "wrist"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="needs ../shared/data/wrist")
# Camera 1 in frame 158, in each bone's volume with the axes of its stack, as tests/test_single_bone.py finds it
FOUND = dict(
    rad=([-2.969626, -0.849032, -0.084769], [555.847, -871.826, -117.544]),
    uln=([1.834566, 2.439495, 0.285321], [1015.109, 285.071, 120.952]),
)
CFG = """# The wrist, as Autoscoper's file specification describes a trial
Version 1.1

mayaCam_csv Calibration/xr_calib_wrist_cam01.txt
mayaCam_csv Calibration/xr_calib_wrist_cam02.txt

CameraRootDir XMA_UND/xr_data_wrist_cam01/
CameraRootDir XMA_UND/xr_data_wrist_cam02/

VolumeFile Models/rad_dcm_cropped.tif
VolumeFlip 0 0 0
VoxelSize 0.39625 0.39625 0.625

VolumeFile Models/uln_dcm_cropped.tif
VolumeFlip 0 0 0
VoxelSize 0.39625 0.39625 0.625

RenderResolution 512 512

OptimizationOffsets 0.1 0.1 0.1 0.1 0.1 0.1
"""


@pytest.fixture(scope="module")
def wrist(tmp_path_factory):
    "The sample, laid out as in Autoscoper's documentation"
    folder = tmp_path_factory.mktemp("wrist")
    for n in (1, 2):
        (folder / f"XMA_UND/xr_data_wrist_cam0{n}").mkdir(parents=True)
        for file in DATA.glob(f"xr_rad_uln_cam0{n}_UND.*.tif"):
            shutil.copy(file, folder / f"XMA_UND/xr_data_wrist_cam0{n}")
    for kind, files in {"Calibration": "xr_calib*", "Models": "*cropped.tif"}.items():
        (folder / kind).mkdir()
        for file in DATA.glob(files):
            shutil.copy(file, folder / kind)
    (folder / "wrist.cfg").write_text(CFG)
    return folder


@pytest.fixture(scope="module")
def trial(wrist):
    return read_trial(wrist / "wrist.cfg")


def found(name) -> Pose:
    "Camera 1 in the volume of the trial, in frames 99 (none) and 158"
    rotvec, shift = FOUND[name]
    matrix = torch.full((2, 4, 4), torch.nan, dtype=torch.float64)
    matrix[1] = torch.eye(4)
    matrix[1, :3, :3] = torch.tensor(Rotation.from_rotvec(rotvec).as_matrix())
    matrix[1, :3, 3] = torch.tensor(shift)
    return Pose(torch.diag(torch.tensor([1.0, -1, -1, 1], dtype=torch.float64)) @ matrix)


@needs_data
def test_the_sample_is_read_as_it_lies_there(trial, wrist):
    assert trial.frames == (99, 158) and [bone.name for bone in trial.bones] == ["rad", "uln"] and not trial.notes
    assert trial.bones[0].shape == (68, 86, 128) and trial.bones[0].spacing == (0.39625, 0.39625, 0.625)
    for n, (fx, cy) in enumerate(((6167.35342293, 865.698104164), (6361.48045002, 894.238444813))):
        detector = trial.views[n].detector
        assert (detector.height, detector.width) == (1760, 1760)
        assert detector.sdd / detector.delx == pytest.approx(fx)
        assert detector.y0 / detector.dely + 1759 / 2 == pytest.approx(cy)
        stored = np.asarray(Image.open(DATA / f"xr_rad_uln_cam0{n + 1}_UND.0158.tif"))
        assert np.array_equal(trial.frame(1, n), stored)
    assert trial.settings == dict(RenderResolution="512 512", OptimizationOffsets="0.1 0.1 0.1 0.1 0.1 0.1")
    assert trial.track_file("uln") == wrist / "Tracking/wrist_uln.tra"


@needs_data
def test_version_1_0_with_absolute_paths_is_the_same_trial(trial, wrist, tmp_path):
    absolute = re.sub(r" ((?:Cal|XMA|Mod)\S+)", rf" {wrist.as_posix()}/\1", CFG.replace("Version 1.1\n", ""))
    (tmp_path / "old.cfg").write_text(absolute.replace("\n", "\r\n"))
    old = read_trial(tmp_path / "old.cfg")
    assert old.frames == trial.frames and old.bones == trial.bones and "no Version" in old.notes[0]
    assert torch.equal(old.views[1].pose.matrix, trial.views[1].pose.matrix)


@needs_data
@pytest.mark.parametrize("layout", ["rows", "columns", "angles"])
@pytest.mark.parametrize("how", [{}, dict(length="cm", angle="radians", separator=" ")])
def test_poses_come_back_from_a_tra_to_a_thousandth_of_a_millimetre(trial, tmp_path, layout, how):
    track = trial.track({name: found(name) for name in FOUND})
    track.write_tra(tmp_path / "wrist.tra", layout, **how)
    units = {k: v for k, v in how.items() if k != "separator"}
    back = Track.read_tra(tmp_path / "wrist.tra", ["rad", "uln"], **units)
    for name, motions in zip(back.names, back.motions):
        poses, there = trial.poses(name, motions).matrix, found(name).matrix
        assert poses[0].isnan().all() and (poses[1] - there[1]).abs().max() < 1e-6


@needs_data
@pytest.mark.parametrize("name", FOUND)
def test_a_tra_puts_the_bone_on_both_x_rays(trial, wrist, name):
    track = trial.track({name: found(name)})
    track.write_tra(trial.track_file(name))
    volume, motions = trial.volume(name), trial.read_track(name).motions[0]
    for n, (left, right) in enumerate(((640, 960), (560, 900))):
        part = torch.tensor(trial.frame(1, n)[1110:1640, left:right].astype(np.float32))[None, None].clamp(min=2)
        detector = trial.views[n].detector.crop(1110, 1760 - 1640, left, 1760 - right).resize(256)
        xray = resize_image(linearize_beam(part), detector.height, detector.width)
        pose = trial.poses(name, motions[1:], n)
        right_place = alike(volume, xray, detector, pose)
        unturned = Pose(torch.diag(torch.tensor([1.0, -1, -1, 1]).double()) @ pose.matrix)
        aside = alike(volume, xray, detector, unturned)
        assert right_place > 0.65 > 0.3 > aside, (right_place, aside)


def alike(volume, xray, detector, pose) -> float:
    "Correlation of band-passed X-ray and rendering near the bone"
    drawn = render(volume, detector, pose.to(torch.float32))
    near = ndimage.binary_dilation(drawn[0, 0].numpy() > 0, iterations=4)
    bands = [
        ndimage.gaussian_filter(x[0, 0].numpy(), 0.75) - ndimage.gaussian_filter(x[0, 0].numpy(), 10)
        for x in (xray, drawn)
    ]
    return np.corrcoef(*(band[near] for band in bands))[0, 1]


@needs_data
@pytest.mark.parametrize("name", FOUND)
def test_autoscoper_draws_each_voxel_half_a_pixel_beside_the_place_of_the_calibration(trial, name):
    "Autoscoper's camera, bone and image by its own arithmetic, up to its half pixel to the left and below"
    bone, motion, volume = trial.find(name), trial.track({name: found(name)}).motions[0, 1], trial.volume(name)
    voxels = torch.tensor([[3.0, 5, 7, 1], [40, 30, 100, 1], [10, 44, 60, 1]]).double()
    for n in (0, 1):
        rows = [line.split(",") for line in (DATA / f"xr_calib_wrist_cam0{n + 1}.txt").read_text().splitlines()]
        K, R, t = (np.array(rows[a:b], float) for a, b in ((4, 7), (9, 12), (14, 17)))
        turn = np.diag([-1, 1, -1])
        source, axes = -(turn @ R).T @ turn @ t, np.diag([-1, -1, 1]) @ turn @ R
        places = motion @ np.stack([own_coordinates(bone, *v[:3]) for v in voxels.numpy()]).T
        x, y, z = axes @ (places[:3] - source)
        corner = [1759 / 2 - K[0, 2] + 0.5, K[1, 2] - 1759 / 2 + 0.5]  # of the image, from its middle, twice over f
        s = (-2 * x / z - 2 * corner[0] / K[0, 0]) / (2 * 1760 / K[0, 0]) + 0.5
        r = 0.5 - (-2 * y / z - 2 * corner[1] / K[1, 1]) / (2 * 1760 / K[1, 1])
        drawn = np.stack([s, r], 1) * 1760 - 0.5
        pose = trial.poses(name, motion[None], n)
        seen = project(trial.views[n].detector, pose, (voxels @ volume.world_from_voxel.T)[None, :, :3])[0].numpy()
        assert np.allclose(drawn - seen, [-0.5, 0.5], atol=1e-6)


def own_coordinates(bone, i, j, k) -> list[float]:
    (x, y, z), (_, height, _) = bone.spacing, bone.shape
    return [x * (i + 0.5), y * (height - 0.5 - j), -z * (k + 0.5), 1]


@needs_data
def test_a_written_configuration_is_the_same_trial(trial, tmp_path):
    trial.write(tmp_path / "again.cfg")
    again = read_trial(tmp_path / "again.cfg")
    assert [b.own_from_voxel.tolist() for b in again.bones] == [b.own_from_voxel.tolist() for b in trial.bones]
    assert again.frames == trial.frames and again.settings == trial.settings and again.notes == trial.notes
    assert np.array_equal(again.frame(0, 1), trial.frame(0, 1))


@needs_data
@pytest.mark.parametrize("version", [1, 2])
def test_the_wrists_cameras_are_written_and_read_back(tmp_path, version):
    detector, pose = read_mayacam(DATA / "xr_calib_wrist_cam02.txt")
    if version == 1:
        with pytest.raises(XvrError, match="one focal length, not 6361.48 and 6376.68"):
            write_mayacam(tmp_path / "cam.csv", detector, pose, 1)
        return
    write_mayacam(tmp_path / "cam.txt", detector, pose)
    points = torch.tensor([[[0.0, 0, 0], [100, -50, 30]]]).double()
    assert torch.allclose(
        project(*read_mayacam(tmp_path / "cam.txt"), points), project(detector, pose, points), atol=1e-7
    )


def test_a_mayacam_1_file_of_another_orientation_is_seen_from_where_it_says():
    "Rz Ry Rx by three matrices, and a point on the optical axis"
    a, b, c = np.radians([20.0, -35.0, 110.0])
    Rx = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    Ry = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    Rz = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    axes, source = Rz @ Ry @ Rx, np.array([100.0, 200, 300])
    path = Path(__file__).with_name("no-such-file")
    with pytest.raises(XvrError, match="could not be read"):
        read_mayacam(path)
    lines = ["100,200,300", "20,-35,110", "0,0,0", "33,25,-900", "0.1,64,48"]
    K, R, t, _ = _parse_mayacam1(lines, path)
    pixel = lambda x: (K @ (R @ x + t))[:2] / (K @ (R @ x + t))[2]
    assert np.allclose(pixel(source - 500 * axes[:, 2]), [32, 48 - 25])
    assert np.allclose(pixel(source - 500 * axes[:, 2] + 5 * axes[:, 0]), [32 + 9, 23])
    assert np.allclose(pixel(source - 500 * axes[:, 2] + 5 * axes[:, 1]), [32, 23 - 9])


@pytest.fixture
def small(tmp_path):
    "A trial of one bone, two cameras of 8 x 6 pixels and two frames"
    detector = Detector(1000, 6, 1.0, 8, 1.0, orientation="AP", reverse_x_axis=True)
    for n, angle in enumerate((0.0, 90.0), 1):
        pose = Pose.from_euler(torch.tensor([[angle, 0, 0]]).double(), torch.tensor([[0.0, 500, 0]]).double())
        write_mayacam(tmp_path / f"cam{n}.txt", detector, pose)
        (tmp_path / f"cam{n}").mkdir()
        for k in (1, 2):
            Image.fromarray(np.full((6, 8), 10 * n + k, np.uint8)).save(tmp_path / f"cam{n}/x{k:03}.tif")
    pages = [Image.fromarray(np.arange(12, dtype=np.uint16).reshape(3, 4) + 100 * k) for k in range(5)]
    pages[0].save(tmp_path / "bone.tif", save_all=True, append_images=pages[1:])
    text = "Version 1.1\nmayaCam_csv cam1.txt\nmayaCam_csv cam2.txt\nCameraRootDir cam1\nCameraRootDir cam2\n"
    (tmp_path / "t.cfg").write_text(text + "VolumeFile bone.tif\nVolumeFlip 0 0 0\nVoxelSize 1 2 3\n")
    return tmp_path


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("cam2.txt", "none.txt", "could not be read"),
        ("CameraRootDir cam2", "CameraRootDir none", "there are no images at"),
        ("CameraRootDir cam2\n", "", "2 mayaCam_csv and 1 CameraRootDir"),
        ("VoxelSize 1 2 3", "VoxelSize 1 -2 3", "above zero"),
        ("VoxelSize 1 2 3", "VoxelSize 1,2,3", "three numbers"),
        ("VoxelSize 1 2 3\n", "", "1 VolumeFile and 0 VoxelSize"),
        ("bone.tif", "t.cfg", "could not be read as a TIFF stack"),
        ("bone.tif", "bone2.tif", "there is no volume at"),
        ("1.1", "one", "expected 1.0 or 1.1"),
        ("cam1.txt", "D:/a/cam1.txt", "could not be read"),
    ],
)
def test_a_wrong_configuration_is_one_clear_line(small, old, new, message):
    text = (small / "t.cfg").read_text()
    assert old in text
    (small / "t.cfg").write_text(text.replace(old, new))
    with pytest.raises(XvrError, match=message) as error:
        read_trial(small / "t.cfg")
    assert "\n" not in str(error.value)


def test_images_that_do_not_fit_are_one_clear_line(small):
    Image.fromarray(np.zeros((6, 9), np.uint8)).save(small / "cam1/x002.tif")
    with pytest.raises(XvrError, match=r"frame 2 in .*cam1 is of size \(6, 9\)"):
        read_trial(small / "t.cfg").frame(1)
    Image.fromarray(np.zeros((6, 9), np.uint8)).save(small / "cam1/x001.tif")
    with pytest.raises(XvrError, match="images of 8 x 6 pixels, but the images in .*cam1 have 9 x 6"):
        read_trial(small / "t.cfg")
    Image.fromarray(np.zeros((6, 8), np.uint8)).save(small / "cam1/x001.tif")
    (small / "cam2/x002.tif").unlink()
    with pytest.raises(XvrError, match="have 2, 1 frames"):
        read_trial(small / "t.cfg")


def test_unknown_keys_and_other_numbers_are_noted(small):
    with (small / "t.cfg").open("a") as file:
        file.write("Colour red\nVolumeFlip 1 0 0\n")
    (small / "cam2/x002.tif").rename(small / "cam2/x003.tif")
    notes = read_trial(small / "t.cfg").notes
    assert len(notes) == 3 and "Colour" in notes[1] and "2 VolumeFlip for 1" in notes[0] and "2 beside 3" in notes[2]


def test_names_out_of_order_are_taken_as_autoscoper_does(small):
    for n in (1, 2):
        (small / f"cam{n}/x001.tif").rename(small / f"cam{n}/x9.tif")
        (small / f"cam{n}/x002.tif").rename(small / f"cam{n}/x10.tif")
    trial = read_trial(small / "t.cfg")
    assert trial.frames == (10, 9) and "the order" in trial.notes[0]
    assert [int(trial.frame(n, 1).max()) for n in (0, 1)] == [22, 21]


@pytest.mark.parametrize("flips", [(0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 1, 1)])
def test_a_flip_reverses_the_voxels_and_not_the_axes(small, flips):
    text = (small / "t.cfg").read_text().replace("0 0 0", " ".join(map(str, flips)))
    (small / "t.cfg").write_text(text)
    trial = read_trial(small / "t.cfg")
    stack = np.arange(12).reshape(3, 4) + 100 * np.arange(5)[:, None, None]
    expected = stack[:: -1 if flips[2] else 1, :: -1 if flips[1] else 1, :: -1 if flips[0] else 1]
    volume = trial.volume("bone")
    assert np.allclose(volume.density.numpy() * 411, expected) and bool(trial.notes) == (sum(flips) % 2 == 1)
    corner = volume.world_from_voxel[:3, 3] + volume.centre
    assert corner.tolist() == [0.5, 5.0, -1.5] and torch.det(volume.world_from_voxel) > 0


def test_a_video_needs_its_package_and_says_so(small, monkeypatch):
    (small / "film.avi").write_bytes(b"RIFF")
    text = (small / "t.cfg").read_text().replace("CameraRootDir cam2", "CameraRootDir film.avi")
    (small / "t.cfg").write_text(text)
    monkeypatch.setattr("xvr.trials.find_spec", lambda name: None)
    with pytest.raises(XvrError, match=re.escape("PyAV, which reads it, is not installed: pip install 'xvr[mp4]'")):
        read_trial(small / "t.cfg")


@pytest.mark.parametrize(
    "text, names, message",
    [
        ("1,2,3,4,5,6,7\n", None, "7 columns; expected 6 or 16"),
        ("1,2,3,4,5,6\n1,2,3\n", None, "line 2 has 3 numbers"),
        ("1,2,3,4,5,x\n", None, "line 1: expected numbers"),
        ("", None, "is empty"),
        ("1,2,3,4,5,6\n", ["a", "b"], "for each of 2 bones"),
        (",".join(["2"] * 16), None, "no 4 x 4 matrices"),
        ("2,0,0,1,0,1,0,1,0,0,1,1,0,0,0,1", None, "in frame 1 has no rotation"),
        ("0,1,0,0,-1,0,0,0,0,0,1,0,0,0,0,1", None, "fits both layouts"),
        ("1,0,0,NaN,0,1,0,0,0,0,1,0,0,0,0,1", None, "a matrix with gaps"),
    ],
)
def test_a_wrong_tra_is_one_clear_line(tmp_path, text, names, message):
    (tmp_path / "x.tra").write_text(text)
    with pytest.raises(XvrError, match=message) as error:
        Track.read_tra(tmp_path / "x.tra", names)
    assert "\n" not in str(error.value)


def test_angles_are_three_matrices_in_a_row(tmp_path):
    "Rz(yaw) Ry(pitch) Rx(roll), by their definitions"
    yaw, pitch, roll = np.radians([70.0, -20, 35])
    c, s = np.cos, np.sin
    Rz = np.array([[c(yaw), -s(yaw), 0], [s(yaw), c(yaw), 0], [0, 0, 1]])
    Ry = np.array([[c(pitch), 0, s(pitch)], [0, 1, 0], [-s(pitch), 0, c(pitch)]])
    Rx = np.array([[1, 0, 0], [0, c(roll), -s(roll)], [0, s(roll), c(roll)]])
    (tmp_path / "x.tra").write_text("1 2 3 70 -20 35\n")
    motion = Track.read_tra(tmp_path / "x.tra").motions[0, 0]
    assert np.allclose(motion[:3, :3], Rz @ Ry @ Rx) and motion[:3, 3].tolist() == [1, 2, 3]


@pytest.mark.parametrize("header", [True, False])
def test_points_of_several_cameras_and_beads(tmp_path, header):
    names = [f"bead {b}_cam{n}_{axis}" for b in "ab" for n in (1, 2, 3) for axis in "XY"]
    rows = np.arange(24.0).reshape(2, 12)
    lines = [" , ".join(names)] * header + [" , ".join(["0", "0", "0", *map(str, row)]) for row in rows]
    (tmp_path / "p.csv").write_text("\n".join(lines))
    found = Points.read_xmalab(tmp_path / "p.csv", 3, first=1, heights=[48, 50, 52], offsets=True)
    assert found.names == (("bead a", "bead b") if header else ("marker001", "marker002"))
    assert found.places[1, 1, 2].tolist() == [rows[1, 10] - 1, 52 - 1 - (rows[1, 11] - 1)]


@pytest.fixture
def sample(tmp_path, monkeypatch):
    "A server with two files in the sample's place, where a download goes, and what was asked for"
    asked, content = [], {"/one/a/first.txt": b"first", "/two/b/second.txt": b"second"}

    class Files(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            found = content.get(self.path)
            self.send_response(200 if found else 404)
            self.end_headers()
            self.wfile.write(found or b"")

        def log_message(self, *words):
            pass

    sums = {path: hashlib.sha256(found).hexdigest() for path, found in content.items()}
    table = {path.split("/", 2)[2]: (path.split("/")[1], check) for path, check in sums.items()}
    with ThreadingHTTPServer(("127.0.0.1", 0), Files) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(trials, "_WRIST", table)
        monkeypatch.setattr(trials, "_SAMPLES", f"http://127.0.0.1:{server.server_port}/{{commit}}/{{path}}")
        monkeypatch.setenv("XVR_SAMPLES", str(tmp_path / "samples"))
        yield asked, content
        server.shutdown()


def test_the_sample_is_downloaded_once(sample):
    asked, content = sample
    folder = wrist_path()
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {Path(p).name: c for p, c in content.items()}
    assert wrist_path() == folder and asked == list(content)


def test_another_file_than_it_should_be_is_one_line(sample):
    asked, content = sample
    content["/two/b/second.txt"] = b"another"
    with pytest.raises(
        XvrError, match=r"http.*second\.txt: .*hash.*; or put second.txt into .*samples by hand"
    ) as error:
        wrist_path()
    assert "\n" not in str(error.value) and not (Path(os.environ["XVR_SAMPLES"]) / "second.txt").exists()


def test_a_file_that_is_not_there_is_one_line(sample):
    del sample[1]["/one/a/first.txt"]
    with pytest.raises(XvrError, match=r"404.*; or put first.txt into .*samples by hand") as error:
        wrist_path()
    assert "\n" not in str(error.value)


@needs_data
def test_the_sample_of_shared_is_the_one_of_the_table(monkeypatch):
    monkeypatch.setenv("XVR_SAMPLES", str(DATA))
    assert wrist_path() == DATA
