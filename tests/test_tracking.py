"Bones followed through sequences: gaps, bones that leave and come back, moving C-arms, files, and the real wrist"

import json
import math
import re
import zipfile
from dataclasses import replace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import test_single_bone
import test_trials
import torch
from PIL import Image
from test_single_bone import bone_of, needs_data, off, poses_of
from test_trials import found

from xvr.bones import TISSUE, cut_out
from xvr.cli import main
from xvr.detector import Detector, physical_geometry
from xvr.losses import anatomy_points
from xvr.metrics import mtre
from xvr.pose import Pose, exp
from xvr.renderer import render
from xvr.sequences import Anatomy, Frames, Outcome, _write_results, track_files
from xvr.tracking import Following, Tracked, Tracker, track
from xvr.volume import chest_path, load_chest, read_volume, structures
from xvr.xray import Reading, Xray

wrist_views, wrist, trial = test_single_bone.views, test_trials.wrist, test_trials.trial  # Fixtures
HERE = Pose(torch.eye(4)[None])
RATE = 10.0


@pytest.fixture(scope="module")
def shoulder():
    "Two bones of the chest, the whole CT, two cameras that look at them, and a detector"
    ct = load_chest(with_labels=True)
    number = {name: n for n, name in structures().items()}
    bones = {name: cut_out(ct, [number[f"{name}_left"]]) for name in ("scapula", "clavicula")}
    middle, detector = anatomy_points(bones["scapula"]).mean(0), Detector(1020, 128, 2.2, reverse_x_axis=True)
    cameras = [Pose.from_euler([[turn, 5.0, 0.0]], [[0.0, -870, 0]]) for turn in (20.0, -50.0)]
    for camera in cameras:
        camera.matrix[0, :3, 3] += middle
    return bones, replace(ct, labels=None, _levels={}), cameras, detector


def moved(bones, name, time) -> Pose:
    turn, centre = dict(scapula=(0, 0.5, 0.2), clavicula=(0.4, 0, -0.3))[name], anatomy_points(bones[name]).mean(0)
    motion = exp(time * torch.tensor([[*turn, 0.0, 0, 0]])).matrix[0]
    motion[:3, 3] = centre - motion[:3, :3] @ centre + time * torch.tensor([6.0, 4.0, -8.0])
    return Pose(motion[None])


def taken(shoulder, camera, time, names=("scapula", "clavicula"), behind=False) -> Xray:
    "An X-ray of the bones, in front of the rest of the patient if asked for"
    bones, whole, _, detector = shoulder
    image = sum(render(bones[name], detector, moved(bones, name, time).inverse() @ camera) for name in names)
    if behind:
        image = image + render(whole, detector, camera) - sum(render(b, detector, camera) for b in bones.values())
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(round(1000 * time)))
    return Xray(image + 0.01 * image.max() * noise, detector)


def errors(shoulder, sightings, time, camera) -> dict:
    bones = shoulder[0]
    truth = {name: moved(bones, name, time).inverse() @ camera for name in bones}
    poses = {name: s.pose.to(torch.float32) for name, s in sightings.items() if s.pose is not None}
    return {name: mtre(pose, truth[name], anatomy_points(bones[name])).item() for name, pose in poses.items()}


def followed(shoulder, frames, rig=(HERE,), **how):
    "A tracker that has seen some frames"
    bones, _, cameras, _ = shoulder
    tracker = Tracker(bones, dict.fromkeys(bones, cameras[0]), **how)
    return tracker, [tracker.follow(n / RATE, views, list(rig)) for n, views in enumerate(frames)]


def test_a_bone_that_is_gone_for_a_while_is_said_to_be_lost_and_found_again(shoulder):
    cameras = shoulder[2]
    rig = HERE, cameras[0].inverse() @ cameras[1]
    shown = [("scapula",) if 3 <= n < 7 else ("scapula", "clavicula") for n in range(9)]
    frames = [[taken(shoulder, c, n / RATE, names) for c in cameras] for n, names in enumerate(shown)]
    _, seen = followed(shoulder, frames, rig)
    verdicts = [s["clavicula"].verdict for s in seen]
    assert [v == "lost" for v in verdicts] == [3 <= n < 7 for n in range(9)]
    for n, s in enumerate(seen):
        assert s["scapula"].pose is not None and max(errors(shoulder, s, n / RATE, cameras[0]).values()) < 0.5


def test_a_bone_that_leaves_the_picture_is_outside_and_comes_back(shoulder):
    "The camera's picture is cut below the collar bone for two frames: a shutter that nobody states"
    bones, _, cameras, detector = shoulder
    whole = [taken(shoulder, cameras[0], n / RATE) for n in range(7)]
    cut = lambda x: Xray(x.image[:, :, 60:], x.detector.crop(60, 0, 0, 0))
    frames = [[cut(x) if n in (3, 4) else x] for n, x in enumerate(whole)]
    _, seen = followed(shoulder, frames)
    assert [s["clavicula"].verdict in ("outside", "lost") for s in seen] == [n in (3, 4) for n in range(7)]
    assert all(s["scapula"].pose is not None for s in seen)


def test_black_copied_and_torn_frames_are_marked_and_do_no_harm(shoulder):
    bones, _, cameras, detector = shoulder
    frames = [taken(shoulder, cameras[0], n / RATE) for n in range(7)]
    late = taken(shoulder, cameras[0], 1.2)
    frames[2] = Xray(torch.zeros_like(frames[2].image), detector)
    frames[3] = frames[4]
    frames[5] = Xray(torch.cat([frames[5].image[:, :, :50], late.image[:, :, 50:]], 2), detector)
    _, seen = followed(shoulder, [[x] for x in frames])
    assert [s["scapula"].verdict for s in seen][2::2] == ["black", "copy", "ok"] and seen[3]["scapula"].pose is not None
    assert all(s.verdict != "ok" for s in seen[5].values())
    after = errors(shoulder, seen[6], 0.6, cameras[0])
    assert after["scapula"] < 2 and seen[6]["scapula"].verdict == "ok"


def test_one_of_two_views_may_be_black(shoulder):
    _, _, cameras, detector = shoulder
    rig = HERE, cameras[0].inverse() @ cameras[1]
    frames = [[taken(shoulder, c, n / RATE) for c in cameras] for n in range(3)]
    frames[2][0] = Xray(torch.zeros_like(frames[2][0].image), detector)
    _, seen = followed(shoulder, frames, rig)
    off_by = errors(shoulder, seen[2], 0.2, cameras[0])
    assert seen[2]["scapula"].pose is not None and off_by["scapula"] < 3


def test_a_turning_c_arm_is_followed(shoulder):
    "The bones stay, and the camera turns by 4 degrees a frame, as its file says; nothing is lost or far from its prediction"
    bones, _, cameras, _ = shoulder
    turn = lambda n: exp(torch.tensor([[0.0, 0, math.radians(4 * n), 0, 0, 0]]))
    arms = [turn(n) @ cameras[0] for n in range(4)]
    tracker = Tracker(bones, dict.fromkeys(bones, arms[0]))
    for n, arm in enumerate(arms):
        seen = tracker.follow(n / RATE, [replace(taken(shoulder, arm, 0.0), pose=arm)], [HERE], arm)
        poses = {name: s.pose.to(torch.float32) for name, s in seen.items()}
        assert mtre(poses["scapula"], arm, anatomy_points(bones["scapula"])) < 3
    assert max(tracker.paths["scapula"].off[1:]) < 3


def test_structures_of_a_ct_in_front_of_the_rest_of_the_patient(shoulder):
    bones, whole, cameras, detector = shoulder
    views = [[taken(shoulder, c, n / RATE, behind=True) for n in range(3)] for c in cameras]
    rig = [HERE, cameras[0].inverse() @ cameras[1]]
    tracked = track(
        views, bones, dict.fromkeys(bones, cameras[0]), Following(rate=RATE), rig=rig, whole=whole, patient=cameras[0]
    )
    for name in bones:
        truth = moved(bones, name, 0.2).inverse() @ cameras[0]
        assert mtre(tracked.poses[name][2:].to(torch.float32), truth, anatomy_points(bones[name])) < 1


def write_cine(folder, shoulder, count=4):
    "Two folders of TIFF frames with their cameras, and the bones as files"
    bones, whole, cameras, detector = shoulder
    for name, bone in bones.items():
        low, high = bone.hu_range
        patient = bone.world_from_voxel.numpy().copy()
        patient[:3, 3] += bone.centre.numpy()
        values = (
            torch.where(bone.density != 0, TISSUE + bone.density * (high - low), low)
            .numpy()
            .transpose(2, 1, 0)
            .astype(np.int16)
        )
        nib.save(nib.Nifti1Image(values, patient), folder / f"{name}.nii.gz")
    for n, camera in enumerate(cameras, 1):
        (folder / f"view{n}").mkdir()
        geometry = physical_geometry(detector, camera, whole.centre)
        (folder / f"view{n}.json").write_text(json.dumps(dict(geometry=geometry)))
        for k in range(count):
            image = 1000 + 200 * taken(shoulder, camera, k / RATE).image[0, 0].numpy()
            Image.fromarray(image.clip(0).astype(np.uint16)).save(folder / f"view{n}" / f"f{k}.tif")
    return [folder / "view1", folder / "view2"], Anatomy(bones=[folder / f"{name}.nii.gz" for name in bones])


HOW = Reading(linearize=False, every_pixel=True)


@pytest.fixture(scope="module")
def cine(shoulder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cine")
    return folder, *write_cine(folder, shoulder)


def test_a_run_that_was_interrupted_is_resumed_to_the_same_poses(cine, tmp_path, monkeypatch, capsys):
    folder, views, anatomy = cine
    how = dict(anatomy=anatomy, reading=HOW, following=Following(rate=RATE), outcome=Outcome(film="none"))
    once = track_files(views, tmp_path / "once", **how)
    read, count = Frames.__getitem__, []

    def interrupted(self, n):
        count.append(n)
        if n == 2:
            raise KeyboardInterrupt
        return read(self, n)

    monkeypatch.setattr(Frames, "__getitem__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        track_files(views, tmp_path / "twice", **how)
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("interrupted: what is done is kept") and said.endswith("`resume` goes on from there")
    assert len(Tracked.load(tmp_path / "twice/tracked.pt")) == 2 and not (tmp_path / "twice/poses.csv").exists()
    monkeypatch.setattr(Frames, "__getitem__", read)
    twice = track_files(views, tmp_path / "twice", **how, resume=True)
    for name in once.names:
        assert torch.allclose(once.poses[name].matrix, twice.poses[name].matrix, atol=1e-3)
    table = pd.read_csv(tmp_path / "twice/poses.csv")
    assert len(table) == 8 and set(table.bone) == {"scapula", "clavicula"} and table.m00.notna().all()


def test_a_table_holds_the_pose_in_patient_coordinates(cine, tmp_path, shoulder):
    "m00 to m23 lead from the camera to LPS mm: the source is their last column"
    folder, views, anatomy = cine
    track_files(views, tmp_path / "out", anatomy=anatomy, reading=HOW, following=Following(rate=RATE))
    first = pd.read_csv(tmp_path / "out/poses.csv").iloc[0]
    source = json.loads((folder / "view1.json").read_text())["geometry"]["source"]
    assert first.bone == "scapula" and [first[f"m{k}3"] for k in range(3)] == pytest.approx(source, abs=1.5)
    assert sorted(p.name for p in (tmp_path / "out").glob("view_*")) == ["view_1.webp", "view_2.webp"]


def test_an_unreadable_frame_is_a_gap(cine, tmp_path):
    folder, views, anatomy = cine
    broken = tmp_path / "view1"
    broken.mkdir()
    for k, file in enumerate(sorted(views[0].iterdir())):
        (broken / file.name).write_bytes(b"no image" if k == 1 else file.read_bytes())
    (tmp_path / "view1.json").write_text((folder / "view1.json").read_text())
    tracked = track_files([broken], tmp_path / "out", anatomy=anatomy, reading=HOW, outcome=Outcome(film="gif"))
    assert [frame["scapula"][0] == "unreadable" for frame in tracked.verdicts] == [False, True, False, False]
    assert tracked.poses["scapula"].matrix.isfinite().flatten(1).all(1).tolist() == [True, False, True, True]
    assert "f1.tif" in tracked.verdicts[1]["scapula"][1] and Image.open(tmp_path / "out/view_1.gif").n_frames == 3


@pytest.mark.parametrize(
    "words, said",
    [
        (
            "view1 view2 -o out",
            "give one of --volume (with --mask and --labels), --bones and --autoscoper; given: none",
        ),
        ("-o out --bones scapula.nii.gz", "give [FRAMES]..., a sequence for each view, or --autoscoper"),
        (
            "view1 short -o out --bones scapula.nii.gz --linearize",
            "the views have 4, 1 frames; give sequences of one length",
        ),
        ("view1 -o out --bones scapula.nii.gz --rate 0", "--rate is 0; give a number above 0"),
        ("view1 -o out --volume scapula.nii.gz", "name them with --mask and --labels"),
        ("empty -o out --bones scapula.nii.gz", "has no images; expected a DICOM, TIFF or PNG file for each frame"),
        ("view1 -o out --bones scapula.nii.gz --fill", "give --smooth too"),
    ],
)
def test_bad_input_gets_one_line(cine, words, said, monkeypatch, capsys):
    folder = cine[0]
    for name in ("short", "empty"):
        (folder / name).mkdir(exist_ok=True)
    (folder / "short/f0.tif").write_bytes((folder / "view2/f0.tif").read_bytes())
    (folder / "short.json").write_text((folder / "view2.json").read_text())
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as ended:
        main(["track", *words.split()])
    lines = capsys.readouterr().err.strip().splitlines()
    assert ended.value.code in (1, 2) and len(lines) == 1 and said in lines[0] and not (folder / "out").exists()


@needs_data
def test_a_jump_of_a_bone_of_the_wrist_is_followed(wrist_views):
    "The radius turns by 14 degrees and moves by 17 mm between two frames"
    xrays, relation = wrist_views
    bones = {name: bone_of(name) for name in ("rad", "uln")}
    truth = {name: poses_of(name, relation)[0] for name in bones}
    middle = anatomy_points(bones["rad"]).mean(0)
    jump = exp(torch.tensor([[0.17, -0.12, 0.12, 0, 0, 0]])).matrix[0]
    jump[:3, 3] = middle - jump[:3, :3] @ middle + torch.tensor([10.0, -10, 9.5])
    tracker = Tracker(bones, truth | dict(rad=Pose(jump[None]) @ truth["rad"]))
    seen = tracker.follow(0.0, xrays, [HERE, relation])
    for name, sighting in seen.items():
        difference = off(sighting.pose, truth[name], xrays[0].detector).abs()
        assert sighting.verdict == "ok" and difference[:3].max() < 0.3 and difference[3:].max() < 0.1


def test_too_few_poses_are_not_smoothed_and_nothing_is_lost(cine, tmp_path, capsys):
    folder, views, anatomy = cine
    short = tmp_path / "view1"
    short.mkdir()
    for file in sorted(views[0].iterdir())[:2]:
        (short / file.name).write_bytes(file.read_bytes())
    (tmp_path / "view1.json").write_text((folder / "view1.json").read_text())
    track_files([short], tmp_path / "out", anatomy=anatomy, reading=HOW, outcome=Outcome(film="none", smooth=True))
    assert "not smoothed, since scapula has a pose in 2 frames and 4 are needed" in capsys.readouterr().out
    written = {file.name for file in (tmp_path / "out").iterdir()}
    assert "motion_scapula_clavicula.csv" in written and "poses_smooth.csv" not in written


@needs_data
def test_a_trial_of_autoscoper_is_tracked_as_it_lies_there(trial, wrist, tmp_path):
    for name in ("rad", "uln"):
        trial.track_file(name).parent.mkdir(exist_ok=True)
        trial.track({name: found(name)}).write_tra(trial.track_file(name))
    tracked = track_files([], tmp_path, anatomy=Anatomy(autoscoper=wrist / "wrist.cfg"), outcome=Outcome(film="none"))
    assert len(tracked) == 1 and all(v == ("ok", "") for v in tracked.verdicts[0].values())
    for table in ("poses", "motion_rad_uln"):
        rows = pd.read_csv(tmp_path / f"{table}.csv")
        assert set(rows.frame) == {1} and set(rows.number) == {158}
    for name in ("rad", "uln"):
        again = trial.poses(name, trial.read_track(name, tmp_path / f"wrist_{name}.tra").motions[0])
        assert torch.allclose(again.matrix[1], tracked.poses[name].matrix[0], atol=1e-3)
        moved_by = off(
            Pose(again.matrix[1:].float()), Pose(found(name).matrix[1:].float()), trial.views[0].detector
        ).abs()
        assert moved_by[:3].max() < 0.4 and moved_by[3:].max() < 0.15


def test_each_bone_of_a_sequence_for_slicer_has_the_centre_of_its_own_ct(tmp_path):
    "A point of each bone, whose CTs have other centres, is where its pose puts it"
    turns = dict(rad=(0.3, 0, 0.1), uln=(0, -0.2, 0.4))
    centres = dict(rad=torch.tensor([10.0, 20, 30]).double(), uln=torch.tensor([-40.0, 5, 70]).double())
    poses = {k: exp(torch.tensor([[*turns[k], 5.0, -800, 7]] * 2).double()) for k in turns}
    tracked = Tracked(
        names=["rad", "uln"],
        times=torch.tensor([0.0, 0.1]).double(),
        poses=poses,
        covariance=torch.eye(12).double().repeat(2, 1, 1),
        probability=torch.ones(2, 2),
        verdicts=[dict.fromkeys(turns, ("ok", ""))] * 2,
        detector=Detector(1000, 32, 1.0),
        arms=Pose(torch.eye(4).double().repeat(2, 1, 1)),
        rigs=torch.eye(4).double().repeat(2, 1, 1, 1),
        centres=centres,
    )
    _write_results(replace(tracked, times=tracked.times / 100), tmp_path, {})  # 1000 frames a second
    assert (tmp_path / "motion.mrb").exists()
    _write_results(tracked, tmp_path, {})
    with zipfile.ZipFile(tmp_path / "motion.mrb") as scene:
        texts = {k: scene.read(f"motion/Data/{k}.seq.mha").split(b"LOCAL")[0].decode() for k in turns}
    for name, text in texts.items():
        written = re.search(rf"Frame0001_{name}Transform = (.*)", text)[1]
        matrix = np.array(written.split(), float).reshape(4, 4)
        patient = centres[name].numpy() + [3.0, -4.0, 5.0]  # RAS mm: this place in the bone's own world
        world = poses[name].inverse().matrix[1].numpy() @ [3.0, -4.0, 5.0, 1.0]
        assert np.allclose(matrix @ [*patient, 1], [*(world[:3] + centres["rad"].numpy()), 1], atol=1e-9)


def track_error(folder, words, monkeypatch, capsys) -> str:
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as ended:
        main(["track", *words.split()])
    lines = capsys.readouterr().err.strip().splitlines()
    assert ended.value.code == 1 and len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize(
    "words, said",
    [
        (
            "view1 --bones scapula.nii.gz --bones other/scapula.nii.gz",
            "--bones has scapula.nii.gz, other/scapula.nii.gz, which are called scapula both; name each bone once",
        ),
        ("view1 --bones scapula.nii.gz --bones scapula.nii.gz", "name each bone once"),
        (
            "view1 --volume scapula.nii.gz --mask scapula.nii.gz --labels 1,1",
            "--labels has 1, 1, which are called label_1 both",
        ),
        ("view1 --bones scapula.nii.gz --bones clavicula.nii.gz --pose three.json", "holds 3 poses; expected one, or"),
        ("view1 --bones scapula.nii.gz --joint shoulder", "is the only bone; give two bones, or leave --joint out"),
        ("view1 --autoscoper t.cfg", "(view1) and --autoscoper (t.cfg), which names its own films, are given"),
        ("view1 --autoscoper t.cfg --joint wrist", "are given; leave one out"),
        ("--autoscoper view1", "--autoscoper is view1, a folder; give the .cfg of the trial"),
        ("note.txt --bones scapula.nii.gz", "give a DICOM file with frames, a TIFF file, a film (AVI or MP4), or a"),
    ],
)
def test_what_cannot_be_followed_gets_one_line(cine, words, said, monkeypatch, capsys):
    folder = cine[0]
    (folder / "other").mkdir(exist_ok=True)
    (folder / "other/scapula.nii.gz").write_bytes((folder / "scapula.nii.gz").read_bytes())
    for name in ("note.txt", "t.cfg"):
        (folder / name).write_text("no frames")
    Pose(torch.eye(4).repeat(3, 1, 1)).save(folder / "three.json")
    assert said in track_error(folder, f"{words} -o none", monkeypatch, capsys) and not (folder / "none").exists()


def test_a_bone_that_is_in_no_frame_is_said_to_be_so_and_an_end_says_how_to_go_on(cine, tmp_path, monkeypatch, capsys):
    "The poses are of another place, so nothing is found; a run that is complete has nothing left to do"
    folder, views, anatomy = cine
    far = Pose.from_euler([[100.0, 40, 0]], [[0.0, -870, 0]])
    far.save(folder / "far.json")
    monkeypatch.chdir(folder)
    words = f"track view1 --bones scapula.nii.gz --pose far.json --tries 4 --film none --every_pixel -o {tmp_path}/out"
    for more in ([], ["--resume"]):
        with pytest.raises(SystemExit) as ended:
            main([*words.split(), "--no_linearize", *more])
        said = capsys.readouterr().out
        assert ended.value.code == 0 and "scapula is in no frame (frame 1: lost, it is not found)" in said, said
        assert "give a nearer --pose for frame 1, or more --tries" in said
        assert ("all 4 frames were done before: nothing is left to follow" in said) == bool(more)


@pytest.fixture(scope="module")
def part_of_chest(tmp_path_factory):
    "The left shoulder of the packaged chest as a CT with labels, in files, and two folders of frames"
    folder = tmp_path_factory.mktemp("part")
    ct, numbers = nib.load(chest_path()), {name: n for n, name in structures().items()}
    labels = [numbers["scapula_left"], numbers["clavicula_left"]]
    mask = nib.load(chest_path("mask.nii.gz"))
    inside = np.argwhere(np.isin(np.asarray(mask.dataobj), labels))
    first = (inside.min(0) - (20, 20, 4)).clip(0)
    box = tuple(slice(a, b, step) for a, b, step in zip(first, inside.max(0) + (20, 20, 4), (2, 2, 1)))
    patient = ct.affine @ np.diag([2.0, 2, 1, 1])
    patient[:3, 3] = (ct.affine @ [*first, 1])[:3]
    for image, name, kind in ((ct, "ct", np.int16), (mask, "labels", np.uint8)):
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[box].astype(kind), patient), folder / f"{name}.nii.gz")
    part = read_volume(folder / "ct.nii.gz", folder / "labels.nii.gz")
    bones = {name: cut_out(part, [label]) for name, label in zip(("scapula", "clavicula"), labels)}
    detector = Detector(1020, 128, 2.0, reverse_x_axis=True)
    cameras = [Pose.from_euler([[turn, 5.0, 0.0]], [[0.0, -870, 0]]) for turn in (20.0, -50.0)]
    return folder, labels, (bones, replace(part, labels=None, _levels={}), cameras, detector)


def test_structures_of_a_ct_in_files_are_followed(part_of_chest, monkeypatch):
    folder, labels, scene = part_of_chest
    bones, whole, cameras, detector = scene
    for n, camera in enumerate(cameras, 1):
        (folder / f"view{n}").mkdir()
        geometry = physical_geometry(detector, camera, whole.centre)
        (folder / f"view{n}.json").write_text(json.dumps(dict(geometry=geometry)))
        for k in range(3):
            image = 1000 + 200 * taken(scene, camera, k / RATE, behind=True).image[0, 0].numpy()
            Image.fromarray(image.clip(0).astype(np.uint16)).save(folder / f"view{n}" / f"f{k}.tif")
    monkeypatch.chdir(folder)
    files = f"--volume ct.nii.gz --mask labels.nii.gz --labels {','.join(map(str, labels))}"
    words = f"track view1 view2 {files} -o out --rate {RATE} --film none --no_linearize --every_pixel"
    with pytest.raises(SystemExit) as ended:
        main(words.split())
    tracked = Tracked.load(folder / "out/tracked.pt")
    assert ended.value.code == 0 and tracked.names == [f"label_{n}" for n in labels] and len(tracked) == 3
    for name, label in zip(bones, labels):
        for k in range(3):
            truth = moved(bones, name, k / RATE).inverse() @ cameras[0]
            found = Pose(tracked.poses[f"label_{label}"].matrix[k : k + 1].float())
            assert mtre(found, truth, anatomy_points(bones[name])) < 1
