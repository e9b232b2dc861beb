"Networks of the existing xvr answer as they do there (existing.py)."

import json
from datetime import datetime

import pytest
import torch
from existing import ANSWERS, CONFIG, HEIGHT, NETWORKS, XRAYS, fill, picture, write_warp

from xvr.cli import main
from xvr.conventions import XvrError
from xvr.detector import Detector, physical_geometry
from xvr.evaluation import evaluate
from xvr.initialisers import from_model, from_result
from xvr.inspector import describe
from xvr.models import PoseRegressor, load_checkpoint
from xvr.pose import Pose
from xvr.volume import read_volume
from xvr.xray import Xray

EXPECTED = json.loads(ANSWERS.read_text())
OWN_NORM = (None, "default", "batchnorm", "batchnorm2d")


def checkpoint(path, name="euler_angles", **changes):
    "A checkpoint as the existing xvr writes it, without its code"
    config = CONFIG | NETWORKS[name] | changes
    kinds = config["parameterization"], config["convention"] or "ZXY"
    norm = "default" if config["norm_layer"] in OWN_NORM else config["norm_layer"]
    net = PoseRegressor(
        config["model_name"], parameterization=kinds[0], convention=kinds[1], norm_layer=norm, height=HEIGHT
    )
    weights = fill(net.state_dict())
    for head in ("rot", "xyz"):
        weights[f"{head}_regression.bias"].copy_(torch.tensor(EXPECTED["networks"][name][head]))
    extra = dict(optimizer_state_dict={}, scheduler_state_dict={}, itr=5, model_number=1, date=datetime(2026, 9, 1))
    torch.save(dict(model_state_dict=weights, config=config, **extra), path)
    return path


def xray(name, orientation="AP", reverse=False, dim=1.0, level=0.0):
    rows, columns, sdd, delx, x0, y0 = XRAYS[name]
    # there an offset to the detector's active origin moves the image; here x0 runs with the camera's x
    detector = Detector(sdd, rows, delx, columns, x0=-x0, y0=y0, orientation=orientation, reverse_x_axis=reverse)
    return Xray(dim * picture(rows, columns) + level, detector)


def near(pose, expected):
    "Largest difference in the rotation and in the translation (mm)"
    off = (pose.matrix[0] - torch.tensor(expected)).abs()
    return off[:3, :3].max().item() < 1e-4 and off[:3, 3].max().item() < 1e-2, off


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_answer_as_in_the_existing_xvr(name, tmp_path):
    guess = from_model(checkpoint(tmp_path / "a.pth", name), "cpu")
    pose = guess(xray("the model's", guess.orientation))
    same, off = near(pose, EXPECTED["networks"][name]["pose"])
    assert same, off


@pytest.mark.parametrize("name", XRAYS)
def test_xrays_are_resampled_as_in_the_existing_xvr(name, tmp_path):
    "Whatever their size, whatever their unit of intensity, and mirrored as their reading says"
    guess = from_model(checkpoint(tmp_path / "a.pth"), "cpu")
    for taken in (xray(name), xray(name, dim=3, level=-2)):
        same, off = near(guess(taken), EXPECTED["xrays"][name])
        assert same, off
    mirrored = xray(name, reverse=True)
    mirrored.image = mirrored.image.flip(-1)
    assert near(guess(mirrored), EXPECTED["xrays"][name])[0]


@pytest.mark.parametrize("invert", [False, True])
def test_a_network_in_a_template_s_frame_serves_a_patient(invert, tmp_path):
    warp = write_warp(tmp_path / "warp.tfm")
    guess = from_model(checkpoint(tmp_path / "a.pth"), "cpu", warp, invert, "tests/data/ct.nii.gz")
    same, off = near(guess(xray("the model's")), EXPECTED["warped"][invert])
    assert same, off


def saved_result(folder, pose, start, reverse=False):
    "A result as the existing xvr saves it"
    camera = dict(sdd=1020.0, height=64, width=64, delx=6.0, dely=6.0, reverse_x_axis=reverse)
    log = dict(losses=[0.3, 0.8], scales=[8.0, 8.0], rescale_factors=[1.0, 1.0], times=[1.0, 1.0])
    log |= dict(rots=torch.zeros(2, 3), xyzs=torch.zeros(2, 3))
    data = dict(detector=camera, runtime=2.0, init_pose=start.matrix, final_pose=pose.matrix, log=log)
    folder.mkdir(exist_ok=True)
    torch.save(data | dict(gt=torch.rand(1, 1, 64, 64)), folder / "xray_000.pth")


@pytest.mark.parametrize("orientation", ["AP", "PA"])
def test_results_are_measured_in_the_orientation_that_is_given(orientation, tmp_path):
    "Errors of 5 mm and 0 against a truth that states the camera in patient coordinates; other words fail"
    detector, ct = Detector(1020, 64, 6.0, orientation=orientation), read_volume("tests/data/ct.nii.gz")
    away = 800.0 if orientation == "AP" else -800.0
    pose, start = (Pose.from_euler([[20.0, 5, -3]], [[4.0 + x, away, 7 + z]]) for x, z in ((0, 0), (3, 4)))
    saved_result(tmp_path / "results", pose, start)
    (tmp_path / "truth").mkdir()
    geometry = physical_geometry(detector, pose, ct.centre)
    (tmp_path / "truth/xray_000.json").write_text(json.dumps(dict(geometry=geometry, centre=ct.centre.tolist())))
    told = dict(volume="tests/data/ct.nii.gz", orientation=orientation)
    found = evaluate([tmp_path / "results"], tmp_path / "truth", tmp_path / "out", **told)["results"]["results"]
    assert found["errors"]["final_mtre"]["max"] < 1e-2 and found["errors"]["initial_mtre"]["max"] == pytest.approx(
        5, abs=0.01
    )
    assert found["verdict"] == dict(failures_told=None, successes_doubted=None)
    assert "final_similarity" in (tmp_path / "out/evaluation.csv").read_text()
    with pytest.raises(XvrError, match="give `orientation`, AP or PA, and `volume`"):
        evaluate([tmp_path / "results"], tmp_path / "truth", tmp_path / "out", volume=told["volume"])
    other = told | dict(orientation="PA" if orientation == "AP" else "AP")
    with pytest.raises(XvrError, match="give the other `orientation`"):
        evaluate([tmp_path / "results"], tmp_path / "truth", tmp_path / "out", **other)


def run(capfd, *words):
    "A command's exit status, and what it prints"
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    printed = capfd.readouterr()
    return end.value.code or 0, printed.out, printed.err


def test_results_are_described_and_started_from(tmp_path, capfd):
    "One result or a folder of them, in the orientation that is given; not without, and not as a network"
    pose, start = (Pose.from_euler([[10.0 + a, 5, 0]], [[0.0, -800, 0]]) for a in (0, 3))
    saved_result(tmp_path / "results", pose, start, reverse=True)
    one, data = tmp_path / "results/xray_000.pth", ANSWERS.parent
    code, text, _ = run(capfd, "info", one)
    assert (
        code == 0 and "[10.00, 5.00, " in text and "[13.00, 5.00, " in text and "0.300 at first, 0.800 at last" in text
    )
    command = ["register", "restart", data / "xrays/xray_000.dcm", "-v", data / "ct.nii.gz", "--init_only"]
    for name, given in dict(one=one, folder=one.parent).items():
        code, _, error = run(capfd, *command, "--result", given, "--orientation", "PA", "-o", tmp_path / name)
        assert code == 0, error
        found = json.loads((tmp_path / name / "xray_000/result.json").read_text())
        assert torch.allclose(torch.tensor(found["initial"]["matrix"]), pose.matrix[0], atol=1e-3)
        assert not [note for note in found["settings"]["notes"] if "mirrored" in note]
    code, _, error = run(capfd, *command, "--result", one, "-o", tmp_path / "unsaid")
    assert code == 1 and "give AP or PA as --orientation" in error and len(error.splitlines()) == 1
    code, _, error = run(capfd, *command[:1], "model", *command[2:], "-c", one, "-o", tmp_path / "network")
    assert code == 1 and "not a network" in error
    code, _, error = run(capfd, "animate", "-i", one, "-o", tmp_path / "film.gif")
    assert code == 1 and "keeps no renderings" in error


def test_networks_are_described(tmp_path, capfd):
    for name in ("rotation_6d, no convention", "norm None", "convnext batchnorm"):
        code, text, error = run(capfd, "info", checkpoint(tmp_path / "a.pth", name))
        assert code == 0, error
        lines = (
            "a checkpoint of the existing xvr",
            "64 x 64 pixels",
            "-30 to 30",
            "cts",
            "2026-09-01",
            "AP",
            "batches 5",
        )
        assert all(line in " ".join(text.split()) for line in lines), text


WRONG = (None, "x", -1, float("nan"), [], {}, torch.zeros(3))


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")
def test_values_that_cannot_be_are_refused_in_a_line(tmp_path):
    "Each value of a result and of a checkpoint in turn; what can still be understood is"
    pose = Pose.from_euler([[10.0, 5, 0]], [[0.0, -800, 0]])
    saved_result(tmp_path, pose, pose)
    result = torch.load(tmp_path / "xray_000.pth", weights_only=True)
    checkpoint(tmp_path / "network.pth")
    network = torch.load(tmp_path / "network.pth", weights_only=False)
    taken, file, refused = xray("the model's", "PA"), tmp_path / "wrong.pth", 0
    read = dict(detector=describe, log=describe, config=load_checkpoint)
    restart = lambda path: from_result(path, "PA")(taken)
    for whole, section in ((result, "detector"), (result, "log"), (network, "config")):
        for key, value in ((k, v) for k in whole[section] for v in WRONG):
            torch.save(whole | {section: whole[section] | {key: value}}, file)
            for reader in {read[section], restart if whole is result else read[section]}:
                try:
                    reader(file)
                except XvrError as error:
                    refused += 1
                    assert "\n" not in str(error), (key, value)
    assert refused > 80
