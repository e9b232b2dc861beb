"Where the camera is, by a file's tags: against the camera that the X-ray was simulated with"

import json

import numpy as np
import pydicom
import pytest
import torch

from xvr.batch import Files, register_files
from xvr.cameras import from_geometry
from xvr.detector import Detector, physical_geometry, pose_from_angles, project
from xvr.initialisers import from_dicom
from xvr.renderer import render
from xvr.similarity import ncc
from xvr.simulation import Exposure, angles_from_pose, read_materials, simulate_xray, write_dicom
from xvr.volume import read_volume
from xvr.xray import Reading, read_xray

IDEAL = Exposure(scatter=0, photons=0, blur=0)
MARKS = 60 * torch.cat([torch.eye(3), -torch.eye(3), torch.tensor([[1.0, 2, 3]])])[None]


@pytest.fixture(scope="module")
def ct(case):
    return read_volume(case.ct)


@pytest.fixture(scope="module")
def materials(case):
    return read_materials(case.ct)


@pytest.mark.parametrize("stated", [True, False], ids=["stated", "assumed"])
@pytest.mark.parametrize("angles", [(0, 0), (35, -20), (90, 0), (-160, 10)])
def test_orientation_names_one_camera(ct, materials, tmp_path, angles, stated):
    "Columns run to the patient's left where the file states it; where it does not, column 0 is taken as the left"
    plate, pose = Detector(1020, 64, 5.8, 72, 5.2, reverse_x_axis=stated), pose_from_angles(*angles, 750)
    write_dicom(tmp_path / "x.dcm", simulate_xray(materials, plate, pose, IDEAL), plate, pose, IDEAL)
    if not stated:
        tags = pydicom.dcmread(tmp_path / "x.dcm")
        del tags.PatientOrientation
        tags.save_as(tmp_path / "x.dcm")
    geometry = physical_geometry(plate, pose, torch.zeros(3))
    expected = project(plate, pose, MARKS)
    for orientation in ("PA", "AP"):
        xray = read_xray(tmp_path / "x.dcm", Reading(orientation=orientation))
        assert torch.allclose(project(xray.detector, xray.pose, MARKS), expected, atol=1e-3)
        assert ncc(render(ct, xray.detector, xray.pose), xray.image).item() > 0.98
        same, there = from_geometry(geometry, 64, 72, orientation=orientation)
        assert xray.detector.orientation == same.orientation and xray.detector.reverse_x_axis == same.reverse_x_axis
        assert torch.allclose(xray.pose.matrix, there.matrix.float(), atol=2e-3)
        assert np.allclose(angles_from_pose(there, orientation)[:2], angles, atol=1e-3)
        assert len(xray.notes) == (0 if stated else 1)


def test_the_side_that_is_assumed_can_be_set(case, tmp_path):
    "In both orientations the note names the value of `reverse_x_axis` that moves column 0 to the patient's right"
    tags = pydicom.dcmread(case.xrays[0])
    stated = {side: read_xray(case.xrays[0], Reading(orientation=side)) for side in ("PA", "AP")}
    del tags.PatientOrientation
    tags.save_as(tmp_path / "x.dcm")
    for side, remedy in (("PA", True), ("AP", False)):
        xray = read_xray(tmp_path / "x.dcm", Reading(orientation=side))
        assert xray.detector.reverse_x_axis is not remedy and ("as False" in xray.notes[-1]) is not remedy
        mended = read_xray(tmp_path / "x.dcm", Reading(orientation=side, reverse_x_axis=remedy))
        assert mended.detector == stated[side].detector and mended.notes == []


def test_without_angles_a_frontal_beam_is_the_zero_poses(case, tmp_path):
    tags = pydicom.dcmread(case.xrays[0])
    del tags.PositionerPrimaryAngle
    tags.save_as(tmp_path / "x.dcm")
    for side in ("PA", "AP"):
        xray = read_xray(tmp_path / "x.dcm", Reading(orientation=side))
        assert xray.pose is None and xray.detector.reverse_x_axis  # columns run to the left, seen from either side


def test_registration_from_the_tags_in_both_orientations(case, tmp_path):
    true = json.loads(case.xrays[0].with_suffix(".json").read_text())["geometry"]
    for side in ("PA", "AP"):
        reading, files = Reading(orientation=side), Files(verbose=0)
        register_files([case.xrays[0]], case.ct, from_dicom(), tmp_path / side, reading=reading, files=files)
        result = json.loads((tmp_path / side / case.xrays[0].stem / "result.json").read_text())
        assert result["similarity"]["initial"] > 0.93 and result["similarity"]["final"] > 0.93
        assert np.allclose(result["geometry"]["source"], true["source"], atol=1)
        assert np.allclose(result["geometry"]["detector_origin"], true["detector_origin"], atol=1)
