"The scene of a result as other programs read it: where the X-ray, the camera and the bones are"

import io
import json
import zipfile
from importlib.util import find_spec
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
import SimpleITK as sitk
import trimesh

from xvr.batch import Files, register_files
from xvr.initialisers import fixed
from xvr.pose import Pose
from xvr.registration import MultiView
from xvr.report import report
from xvr.scene import Scene

NEAR = 0.01  # mm
RAS = np.array([-1, -1, 1])


@pytest.fixture(scope="module")
def made(case, tmp_path_factory):
    "A result with a report, its scene unpacked, and the corners of its X-ray by its geometry, LPS mm"
    out = tmp_path_factory.mktemp("scene")
    start = fixed(Pose.from_euler([[13.0, 3, 1]], [[8.0, -790, -8]]))
    register_files(case.xrays[:1], case.ct, start, out, files=Files(report=True, saveimg=True, verbose=0))
    folder = out / case.xrays[0].stem
    with zipfile.ZipFile(folder / "scene.mrb") as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
        archive.extractall(out / "unpacked")
    found = json.loads((folder / "result.json").read_text())
    first, column, row, source = (
        np.array(found["geometry"][k]) for k in ("detector_origin", "column_step", "row_step", "source")
    )
    ends = [(-0.5, -0.5), (63.5, -0.5), (63.5, 63.5), (-0.5, 63.5)]
    corners = np.array([first + x * column + y * row for x, y in ends])
    nodes = ElementTree.fromstring(files["scene/scene.mrml"])
    return SimpleNamespace(
        folder=folder, files=files, nodes=nodes, found=found, corners=corners, source=source, unpacked=out / "unpacked"
    )


def test_its_files_are_those_that_it_names(made):
    named = {f"scene/{node.get('fileName')}" for node in made.nodes if node.get("fileName")}
    assert named == set(made.files) - {"scene/scene.mrml"} and len(named) == 7
    ids = [node.get("id") for node in made.nodes]
    links = [link.partition(":")[2] for n in made.nodes for link in (n.get("references") or "").split(";") if link]
    assert len(ids) == len(set(ids)) and set(links) <= set(ids)


def test_the_slice_is_the_detector(made):
    image = sitk.ReadImage(str(made.unpacked / "scene/Data/xray_1.nrrd"))
    wide, high, deep = image.GetSize()
    places = [(-0.5, -0.5, 0), (wide - 0.5, -0.5, 0), (wide - 0.5, high - 0.5, 0), (-0.5, high - 0.5, 0)]
    corners = [image.TransformContinuousIndexToPhysicalPoint(place) for place in places]
    assert deep == 1 and np.abs(corners - made.corners).max() < NEAR
    assert np.linalg.det(np.reshape(image.GetDirection(), (3, 3))) == pytest.approx(1)


def test_the_plane_is_the_detector(made):
    plane = trimesh.load(io.BytesIO(made.files["scene/Data/xray_1.ply"]), file_type="ply", process=False)
    rows = round(len(plane.vertices) ** 0.5)
    assert np.abs(plane.vertices[[0, rows - 1, -1, -rows]] - made.corners).max() < NEAR
    assert b"comment SPACE=LPS" in made.files["scene/Data/xray_1.ply"][:200]


def test_landmarks_and_camera_are_at_the_source(made):
    markup = json.loads(made.files["scene/Data/landmarks.mrk.json"])["markups"][0]
    points = {point["label"]: np.array(point["position"]) for point in markup["controlPoints"]}
    assert markup["coordinateSystem"] == "LPS" and np.abs(points["source"] - made.source).max() < NEAR
    assert np.abs(points["centre of the CT"] - np.array(made.found["centre"])).max() < NEAR
    for name, corner in zip(("top left", "top right", "bottom right", "bottom left"), made.corners):
        assert np.abs(points[f"{name} corner"] - corner).max() < NEAR
    view = next(node for node in made.nodes if node.get("name").startswith("source of"))
    position, focus = (np.array(view.get(k).split(), float) * RAS for k in ("position", "focalPoint"))
    assert np.abs(position - made.source).max() < NEAR and np.abs(focus - made.corners.mean(0)).max() < NEAR


def test_the_transform_is_that_of_pose_tfm(made):
    node = next(node for node in made.nodes if node.tag == "LinearTransform")
    matrix = np.array(node.get("matrixTransformToParent").split(), float).reshape(4, 4)
    pose = sitk.ReadTransform(str(made.folder / "pose.tfm"))
    for point in np.random.default_rng(0).uniform(-500, 500, (5, 3)):
        assert np.abs((matrix @ [*point, 1])[:3] * RAS - pose.TransformPoint(point)).max() < NEAR


def test_bones_lie_in_the_ct(made, case):
    bones, ct = Scene.saved_surface(made.folder / "scene.mrb"), sitk.ReadImage(str(case.ct))
    assert len(bones.faces) > 2000 and (made.folder / "scene.mrb").stat().st_size < 1e6
    indices = [ct.TransformPhysicalPointToContinuousIndex(point) for point in bones.vertices.tolist()]
    assert np.min(indices) > -1 and (np.max(indices, 0) < ct.GetSize()).all()
    values = sitk.GetArrayFromImage(ct)
    x, y, z = np.clip(np.rint(indices).astype(int), 0, np.array(ct.GetSize()) - 1).T
    assert np.median(values[z, y, x]) > np.median(values) + 500  # Hounsfield units


def test_a_report_written_again_has_the_scene(made):
    page = made.folder / "report.html"
    before, written = page.read_text(), (made.folder / "scene.mrb").read_bytes()
    page.unlink()
    report(made.folder)
    glb = lambda text: text.partition('id="scene-glb">')[2].partition("<")[0]
    assert len(glb(page.read_text())) > 10_000 and abs(len(glb(page.read_text())) - len(glb(before))) < 5000
    assert (made.folder / "scene.mrb").read_bytes() == written


def test_views_of_one_patient_share_a_scene(case, made, tmp_path):
    start = fixed(Pose.from_euler([[13.0, 3, 1]], [[8.0, -790, -8]]))
    views = [tmp_path / name for name in ("a.dcm", "b.dcm")]
    for view in views:
        view.write_bytes(case.xrays[0].read_bytes())
    together = dict(multiview=MultiView(together=True), files=Files(report=True, verbose=0))
    register_files(views, case.ct, start, tmp_path / "out", **together)
    with zipfile.ZipFile(tmp_path / "out/scene.mrb") as archive:
        names = {name.partition("Data/")[2] for name in archive.namelist()}
        archive.extractall(tmp_path)
    assert {"xray_1.nrrd", "xray_2.nrrd", "camera_1.ply", "camera_2.ply", "bones.ply"} <= names
    image = sitk.ReadImage(str(tmp_path / "scene/Data/xray_2.nrrd"))
    found = json.loads((tmp_path / "out/b/result.json").read_text())["geometry"]
    shift = 0.5 * (np.array(found["column_step"]) + found["row_step"])
    corner = image.TransformContinuousIndexToPhysicalPoint((-0.5, -0.5, 0))
    assert np.abs(corner - (np.array(found["detector_origin"]) - shift)).max() < NEAR


@pytest.mark.skipif(find_spec("slicer") is None, reason="the libraries of 3D Slicer are not installed: slicer-core")
def test_3d_slicer_reads_it(made):
    import slicer
    import vtk
    from vtk.util.numpy_support import vtk_to_numpy

    scene = slicer.vtkMRMLScene()
    for name in ("vtkMRMLMarkupsFiducialNode", "vtkMRMLMarkupsFiducialDisplayNode", "vtkMRMLMarkupsJsonStorageNode"):
        scene.RegisterNodeClass(getattr(slicer, name)())
    scene.SetURL(str(made.unpacked / "scene/scene.mrml"))
    scene.SetRootDirectory(str(made.unpacked / "scene"))
    assert scene.Import() == 1
    corners = made.corners * RAS
    plane = scene.GetFirstNodeByName("xray 1")
    points = vtk_to_numpy(plane.GetPolyData().GetPoints().GetData())
    rows = round(len(points) ** 0.5)
    assert np.abs(points[[0, rows - 1, -1, -rows]] - corners).max() < NEAR
    assert plane.GetPolyData().GetPointData().GetArray("RGBA") and plane.GetDisplayNode().GetScalarVisibility()
    volume, matrix = scene.GetFirstNodeByClass("vtkMRMLScalarVolumeNode"), vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    size = volume.GetImageData().GetDimensions()
    ends = [(-0.5, -0.5, 0, 1), (size[0] - 0.5, -0.5, 0, 1), (size[0] - 0.5, size[1] - 0.5, 0, 1)]
    assert np.abs([matrix.MultiplyPoint(end)[:3] for end in ends] - corners[:3]).max() < NEAR
    marks = scene.GetFirstNodeByName("landmarks")
    places = {marks.GetNthControlPointLabel(n): marks.GetNthControlPointPositionWorld(n) for n in range(7)}
    assert np.abs(places["source"] - made.source * RAS).max() < NEAR
    assert np.abs(places["top left corner"] - corners[0]).max() < NEAR
    assert scene.GetFirstNodeByName("bones").GetPolyData().GetNumberOfCells() > 2000
    assert scene.GetFirstNodeByName("overview").GetLayoutName() == "1"
