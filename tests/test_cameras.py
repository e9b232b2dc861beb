"OpenCV, RTK and this package put one point on one pixel"

from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from scipy.ndimage import center_of_mass
from scipy.spatial.transform import Rotation

from xvr.cameras import (  # fmt: skip
    _rtk_matrix,
    from_calibration,
    from_geometry,
    from_projection_matrix,
    from_rtk,
    from_xreg,
    read_rtk,
    to_calibration,
    to_rtk,
    to_xreg,
    write_rtk,
)
from xvr.detector import Detector, physical_geometry, project, world_from_patient
from xvr.pose import Pose

RNG = np.random.default_rng(0)
BEADS = RNG.uniform(-60, 60, (20, 3))


def random_projection() -> dict:
    "RTK's nine numbers"
    low, high = [700, 1100, -180, -40, -180, -30, -30, -60, -60], [900, 1500, 180, 40, 180, 30, 30, 60, 60]
    names = (
        "SourceToIsocenterDistance SourceToDetectorDistance GantryAngle OutOfPlaneAngle InPlaneAngle SourceOffsetX "
        "SourceOffsetY ProjectionOffsetX ProjectionOffsetY"
    )
    return dict(zip(names.split(), map(float, RNG.uniform(low, high))))


def rtk_geometry(rtk, projections):
    geometry = rtk.ThreeDCircularProjectionGeometry.New()
    order = (
        "SourceToIsocenterDistance SourceToDetectorDistance GantryAngle ProjectionOffsetX ProjectionOffsetY "
        "OutOfPlaneAngle InPlaneAngle SourceOffsetX SourceOffsetY"
    )
    for p in projections:
        geometry.AddProjection(*(p[name] for name in order.split()))
    return geometry


@pytest.fixture(scope="module")
def rtk():
    itk = pytest.importorskip("itk", reason="RTK comes with pip install itk-rtk, 1.7 GB installed")
    return itk.RTK if hasattr(itk, "RTK") else pytest.skip("ITK is here without RTK: pip install itk-rtk")


def written(rtk, geometry, path):
    "The file that RTK itself writes; `geometry` must outlive the writer, which does not hold it"
    writer = rtk.ThreeDCircularProjectionGeometryXMLFileWriter.New()
    writer.SetObject(geometry)
    writer.SetFilename(str(path))
    writer.WriteFile()
    return path


def told(path) -> np.ndarray:
    "The matrices in a geometry file, (N, 3, 4)"
    return np.array([[float(v) for v in m.text.split()] for m in ElementTree.parse(path).iter("Matrix")]).reshape(
        -1, 3, 4
    )


def test_opencv_projects_where_we_do():
    cv2 = pytest.importorskip("cv2", reason="OpenCV comes with pip install opencv-python-headless")
    worst = 0
    for _ in range(200):
        K = np.array(
            [
                [RNG.uniform(2000, 6000), 0, RNG.uniform(200, 800)],
                [0, RNG.uniform(2000, 6000), RNG.uniform(200, 800)],
                [0, 0, 1],
            ]
        )
        R, t = (
            Rotation.random(random_state=RNG).as_matrix(),
            np.array([*RNG.uniform(-50, 50, 2), RNG.uniform(600, 900)]),
        )
        theirs = cv2.projectPoints(BEADS, cv2.Rodrigues(R)[0], t, K, None)[0][:, 0]
        for orientation in (None, "AP", "PA"):
            detector, pose = from_calibration(K, R, t, 900, 1000, sdd=1200, orientation=orientation)
            worst = max(worst, np.abs(project(detector, pose, torch.tensor(BEADS[None]))[0].numpy() - theirs).max())
        again = from_projection_matrix(-2.5 * K @ np.column_stack([R, t]), 900, 1000, sdd=1200)
        worst = max(worst, np.abs(project(*again, torch.tensor(BEADS[None]))[0].numpy() - theirs).max())
        assert all(np.allclose(a, b) for a, b in zip(to_calibration(detector, pose), (K, R, t)))
    assert worst < 1e-6


def test_rtk_matrices_are_ours(rtk, tmp_path):
    projections = [random_projection() for _ in range(150)]
    geometry = rtk_geometry(rtk, projections)
    path = written(rtk, geometry, tmp_path / "theirs.xml")
    theirs, read = told(path), read_rtk(path)
    assert len(read) == len(theirs) == 150
    for projection, P, back in zip(projections, theirs, read):
        assert np.allclose(_rtk_matrix(projection), P, rtol=1e-9, atol=1e-6) and np.allclose(
            _rtk_matrix(back), P, rtol=1e-9, atol=1e-6
        )
        spacing = tuple(RNG.uniform(0.3, 3, 2) * RNG.choice([-1, 1], 2))
        x, y, w = P @ np.column_stack([BEADS, np.ones(20)]).T
        expected = np.column_stack([x / w / spacing[0] + (80 - 1) / 2, y / w / spacing[1] + (60 - 1) / 2])
        assert (
            np.abs(project(*from_rtk(back, 60, 80, spacing), torch.tensor(BEADS[None]))[0].numpy() - expected).max()
            < 1e-6
        )


def test_rtk_reads_what_we_write(rtk, tmp_path):
    detectors = [
        Detector(
            *RNG.uniform(1000, 1400, 1),
            60,
            0.8,
            80,
            1.3,
            *RNG.uniform(-20, 20, 2),
            orientation=RNG.choice(["AP", "PA"]),
            reverse_x_axis=bool(RNG.integers(2)),
        )
        for _ in range(100)
    ]
    poses = Pose.from_euler(
        torch.tensor(RNG.uniform(-80, 80, (100, 3))), torch.tensor(RNG.uniform(-20, 20, (100, 3)) + [0, -800, 0])
    )
    numbers, spacings = zip(*(to_rtk(d, poses[n : n + 1]) for n, d in enumerate(detectors)))
    write_rtk(tmp_path / "ours.xml", numbers)
    reader = rtk.ThreeDCircularProjectionGeometryXMLFileReader.New()
    reader.SetFilename(str(tmp_path / "ours.xml"))
    reader.GenerateOutputInformation()
    written(rtk, reader.GetOutputObject(), tmp_path / "theirs.xml")
    for n, (P, detector, spacing) in enumerate(zip(told(tmp_path / "theirs.xml"), detectors, spacings)):
        x, y, w = P @ np.column_stack([BEADS, np.ones(20)]).T
        theirs = np.column_stack([x / w / spacing[0] + (80 - 1) / 2, y / w / spacing[1] + (60 - 1) / 2])
        assert np.abs(project(detector, poses[n : n + 1], torch.tensor(BEADS[None]))[0].numpy() - theirs).max() < 1e-6


def test_a_bead_falls_on_one_pixel(rtk):
    "A soft sphere through RTK's Joseph projector; its centroid, OpenCV's and our pixel"
    itk, cv2 = (
        pytest.importorskip("itk"),
        pytest.importorskip("cv2", reason="OpenCV comes with pip install opencv-python-headless"),
    )
    kind, (height, width), worst = itk.Image[itk.F, 3], (120, 160), 0
    for _ in range(12):
        projection, (sx, sy), centre = random_projection(), RNG.uniform(1.2, 2.5, 2), RNG.uniform(-15, 15, 3)
        grid = np.stack(np.meshgrid(*[np.arange(-24, 25.0)] * 3, indexing="ij"), -1)[
            ..., ::-1
        ]  # z, y, x of points 1 mm apart, stored as (x, y, z)
        ball = 1 / (1 + np.exp((np.linalg.norm(grid - (centre - centre.round()), axis=-1) - 5) * 2))
        bead = centre.round() + (grid * ball[..., None]).sum((0, 1, 2)) / ball.sum()
        volume = itk.image_from_array(ball.astype(np.float32))
        volume.SetOrigin(centre.round() - 24)
        empty = itk.image_from_array(np.zeros((1, height, width), np.float32))
        empty.SetSpacing([sx, sy, 1.0])
        origin = (
            RNG.uniform(-30, 30, 2)
            - np.array([width - 1, height - 1]) / 2 * [sx, sy]
            - [projection["ProjectionOffsetX"], projection["ProjectionOffsetY"]]
        )
        empty.SetOrigin([*origin, 0.0])
        projector = rtk.JosephForwardProjectionImageFilter[kind, kind].New()
        projector.SetInput(0, empty)
        projector.SetInput(1, volume)
        geometry = rtk_geometry(rtk, [projection])
        projector.SetGeometry(geometry)
        projector.Update()
        row, column = center_of_mass(itk.array_from_image(projector.GetOutput())[0])
        assert 10 < row < height - 10 and 10 < column < width - 10
        detector, pose = from_rtk(projection, height, width, (sx, sy), origin)
        ours = project(detector, pose, torch.tensor(bead[None, None]))[0, 0].numpy()
        K, R, t = (
            m.numpy() for m in to_calibration(detector, pose)
        )  # mirrored: OpenCV sees it after a flip left to right
        K[0, 2] = width - 1 - K[0, 2]
        R, t = np.diag([-1, 1, 1]) @ R, t * [-1, 1, 1]
        theirs = cv2.projectPoints(bead[None], cv2.Rodrigues(R)[0], t, K, None)[0][0, 0]
        worst = max(worst, *np.abs(ours - [column, row]), *np.abs(ours - [width - 1 - theirs[0], theirs[1]]))
    print(f"a bead in 12 projections: at most {worst:.3f} pixels apart")
    assert worst < 0.05


def test_xreg_file(tmp_path):
    h5py = pytest.importorskip("h5py", reason="h5py reads xReg's files: pip install h5py")
    poses = Pose.from_euler(
        torch.tensor(RNG.uniform(-80, 80, (100, 3))), torch.tensor(RNG.uniform(-20, 20, (100, 3)) + [0, -800, 0])
    )
    for n in range(100):
        detector = Detector(1020, 60, 0.8, 80, 1.3, 5, -9, orientation=["AP", "PA"][n % 2], reverse_x_axis=n % 3 > 0)
        with h5py.File(tmp_path / "camera.h5", "w") as file:
            for name, value in to_xreg(detector, poses[n : n + 1]).items():
                file[name] = value
        with h5py.File(tmp_path / "camera.h5") as file:
            again = from_xreg(file)
        assert np.allclose(
            project(*again, torch.tensor(BEADS[None])), project(detector, poses[n : n + 1], torch.tensor(BEADS[None]))
        )


def test_one_camera_by_every_way():
    "World, patient coordinates, K R t, RTK and xReg: 100 random cameras come back as they were"
    for n in range(100):
        detector = Detector(
            RNG.uniform(900, 1500),
            60,
            RNG.uniform(0.3, 2),
            80,
            RNG.uniform(0.3, 2),
            *RNG.uniform(-30, 30, 2),
            orientation=["AP", "PA"][n % 2],
            reverse_x_axis=n % 3 > 0,
        )
        pose = Pose.from_euler(
            torch.tensor(RNG.uniform(-80, 80, (1, 3))), torch.tensor(RNG.uniform(-20, 20, (1, 3)) + [0, -800, 0])
        )
        centre = torch.tensor(RNG.uniform(-300, 300, 3))
        inside = world_from_patient(centre).inverse() @ pose
        numbers, spacing = to_rtk(detector, inside)
        ways = [
            from_geometry(physical_geometry(detector, pose, centre), 60, 80, centre, detector.orientation),
            from_calibration(*to_calibration(detector, pose), 60, 80, detector.sdd, detector.orientation),
            *(
                (d, world_from_patient(centre) @ p)
                for d, p in [
                    from_rtk(numbers, 60, 80, spacing, orientation=detector.orientation),
                    from_xreg(to_xreg(detector, inside), orientation=detector.orientation),
                ]
            ),
        ]
        for back, there in ways:
            assert torch.allclose(there.matrix, pose.matrix, atol=1e-6)
            assert all(
                np.isclose(back.to_dict()[k], v) if isinstance(v, float) else back.to_dict()[k] == v
                for k, v in detector.to_dict().items()
            )
