"Networks of the existing xvr answer as they do there (existing.py)."

import json
from datetime import datetime

import pytest
import torch
from existing import ANSWERS, CONFIG, HEIGHT, NETWORKS, XRAYS, fill, picture, write_warp

from xvr.detector import Detector
from xvr.initialisers import from_model
from xvr.models import PoseRegressor
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
