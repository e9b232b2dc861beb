"A small CT and X-rays of it, as files: what a command is given"

import os
from types import SimpleNamespace

import pytest
import SimpleITK as sitk
import torch
from children import end_children

from xvr.detector import Detector
from xvr.pose import Pose
from xvr.simulation import simulate_files
from xvr.volume import chest_path

os.environ["WANDB_MODE"] = "disabled"  # no test leaves a log unless it asks for one
ROT, XYZ = [[10.0, 5, 0], [-15, 0, 0]], [[0.0, -800, 0], [5, -780, -5]]


@pytest.fixture(autouse=True)
def no_child_is_left():
    "After a test, also one that failed, its processes end"
    yield
    end_children()


@pytest.fixture(scope="session")
def case(tmp_path_factory):
    "The packaged chest CT at 5 mm, two X-rays of 64 x 64 pixels, and the poses they were taken from"
    folder = tmp_path_factory.mktemp("case")
    chest = sitk.ReadImage(str(chest_path()))
    coarse = [5.0, 5.0, 5.0]
    size = [int(n * s / c) for n, s, c in zip(chest.GetSize(), chest.GetSpacing(), coarse)]
    chest = sitk.Resample(
        chest, size, sitk.Transform(), sitk.sitkLinear, chest.GetOrigin(), coarse, chest.GetDirection(), -1000
    )
    sitk.WriteImage(chest, str(folder / "ct.nii.gz"))
    poses = Pose.from_euler(torch.tensor(ROT), torch.tensor(XYZ))
    detector = Detector(1020, 64, 5.8, reverse_x_axis=True)
    xrays = simulate_files(folder / "ct.nii.gz", poses, detector, folder / "xrays")
    return SimpleNamespace(folder=folder, ct=folder / "ct.nii.gz", xrays=xrays, poses=poses, detector=detector)
