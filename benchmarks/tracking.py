#!/usr/bin/env python3
"""Whether bones are followed through cines whose projector, beam and flesh are not xvr's.

    python benchmarks/tracking.py simulate --cts FOLDER                 # cines with their truths, a quarter of an hour
    python benchmarks/tracking.py judge --cts FOLDER                    # tracking and registration one by one

simulate  Cines of two calibrated views of 256 x 256 pixels by RTK's projector and `trust.py`'s beam, 16-bit TIFF:
          shoulder  Right humerus and scapula of chest_fnndsc: 120 frames, 40 degrees and 30 mm against each other, and
                    the scapula 15 degrees and 15 mm along the thorax, at changing speed. The bones are rigid. The flesh
                    is not: each place of it follows the bones and the thorax by how near they are, so no rigid model of
                    it is exact. In a third of the frames the bones cover each other in view 1.
          forearm   Radius and ulna of the wrist sample, 40 degrees and 30 mm, in that sample's two cameras, no flesh.
          lost      The shoulder's first 40 frames: the humerus is not there in frames 12 to 21, and in view 1 frame 26
                    is black, frame 30 a copy of the one before, and the lower half of frame 34 is of frame 110.

The CT ends above the humerus's head. Its last slice is continued along the shaft, ever smaller, for 80 mm, so that neither
X-rays nor renderings show the cut. Labels come from thresholds: humerus and scapula touch at 180 HU and are apart at 320.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROWS, OVERSAMPLING = 256, 2  # Pixels of a side of the images, rays along each side of a pixel
FILL = 40.0  # Hounsfield units of what takes a bone's place in the flesh
NOTHING = -1000.0  # Of files: air, and where a bone is not
STEP, FLESH_STEP, COARSE = 1.2, 2.0, 6.0  # Edges of the voxels that are projected, and of the motion's grid, mm
STIFF = 3.0  # The flesh is as rigid as a bone so near to it, mm


# The projector's part runs in the environment of `existing.py`, without xvr


def excess(hu, kind: str):
    "Densities of soft tissue and of bone, g/cm³, of a bone above those of what fills its place"
    import numpy as np
    from trust import materials

    return [a - b for a, b in zip(materials(hu - NOTHING + FILL, kind), materials(np.array([FILL], "f4"), kind))]


def as_images(densities, like) -> list:
    "ITK's images on the grid of another"
    import itk
    import numpy as np

    images = [itk.image_from_array(np.ascontiguousarray(d, "f4")) for d in densities]
    for image in images:
        image.CopyInformation(like)
    return images


def grid_points(image, size) -> "np.ndarray":
    "Places of so many points spread over an image from corner to corner, LPS mm, (*size, 3) in the order of the array"
    import itk
    import numpy as np

    direction, spacing = itk.array_from_matrix(image.GetDirection()), np.array(image.GetSpacing())
    ends = np.array(itk.size(image)) - 1
    at = np.stack(np.meshgrid(*[np.linspace(0, e, n) for e, n in zip(ends[::-1], size)], indexing="ij"), -1)
    return (at[..., ::-1] * spacing) @ direction.T + np.array(image.GetOrigin())


def distances_of(body: dict) -> list:
    "Of each voxel from each labelled bone, and from the other bones, mm"
    import numpy as np
    from existing import axis_aligned
    from scipy.ndimage import distance_transform_edt

    labels, spacing, _ = axis_aligned(body["labels"])
    values = axis_aligned(body["ct"])[0]
    parts = [labels == 1, labels == 2, (values > HARD) & (labels != 1) & (labels != 2)]
    return [distance_transform_edt(~part, spacing[::-1]).astype("f4") for part in parts]


class Flesh:
    "The CT without its bones, bent"

    def __init__(self, body: dict):
        import itk
        import numpy as np
        import torch
        from existing import axis_aligned
        from trust import on_another_grid

        self.like = on_another_grid(body["file"], FLESH_STEP)
        values, self.spacing, self.origin = axis_aligned(body["file"])
        self.values = torch.tensor(np.ascontiguousarray(values))[None, None]
        self.size = [*itk.size(self.like)][::-1]
        coarse = [math.ceil(n * FLESH_STEP / COARSE) + 1 for n in self.size]
        self.coarse = grid_points(self.like, coarse)
        self.distances = distances_of(body)

    def sampled(self, values, places):
        "Values of the CT's grid, or of one over the same box, at places, LPS mm"
        import torch
        from torch.nn.functional import grid_sample

        size = torch.tensor(self.values.shape[:1:-1])
        at = (places - torch.tensor(self.origin)) / torch.tensor(self.spacing) / (size - 1) * 2 - 1
        return grid_sample(values, at[None].float(), padding_mode="border", align_corners=True)[0, 0]

    def bent(self, inverses):
        "Hounsfield units when what was at x has moved by the bones' motions, given their inverses; the thorax rests"
        import numpy as np
        import torch
        from torch.nn.functional import interpolate

        back = [self.coarse @ np.array(m)[:3, :3].T + np.array(m)[:3, 3] for m in [*inverses, np.eye(4)]]
        far = [self.sampled(torch.tensor(d)[None, None], torch.tensor(b)).numpy() for d, b in zip(self.distances, back)]
        weights = [((f - STIFF).clip(0) + 0.1) ** -2.0 for f in far]
        places = sum(w[..., None] * b for w, b in zip(weights, back)) / sum(weights)[..., None]
        field = torch.tensor(places).permute(3, 0, 1, 2)[None]
        fine = interpolate(field, self.size, mode="trilinear", align_corners=True)[0].permute(1, 2, 3, 0)
        return self.sampled(self.values, fine).numpy()


def load_bodies(job: dict) -> dict:
    "Each bone's images to project, and the flesh"
    import itk
    from trust import on_another_grid

    bodies = {}
    for name, body in job["bodies"].items():
        if "labels" in body:
            bodies[name] = Flesh(body)
            continue
        turned = on_another_grid(body["file"], body["step"])
        bodies[name] = as_images(excess(itk.array_from_image(turned), job["kind"]), turned)
    return bodies


def project(job: dict):
    "Soft tissue and bone along each ray, g/cm², of each body: beside the name of each frame and view"
    import numpy as np
    from existing import line_integrals
    from trust import materials

    bodies = load_bodies(job)
    for frame in job["frames"]:
        images = dict(bodies)
        for name, body in bodies.items():
            if isinstance(body, Flesh):
                images[name] = as_images(materials(body.bent(frame["inverses"]), job["kind"]), body.like)
        for view in frame["views"]:
            integral = lambda image, name: line_integrals(image, view["geometry"][name], ROWS * OVERSAMPLING) / 10
            areas = {name: np.stack([integral(image, name) for image in pair]) for name, pair in images.items()}
            np.savez(view["file"] + ".part.npz", **{name: a.astype("f4") for name, a in areas.items()})
            os.replace(view["file"] + ".part.npz", view["file"])
            print(view["file"], flush=True)


# The shoulder's CT, continued and labelled


SEEDS = dict(humerus=(30, 88, 122), scapula=(40, 76, 100))  # Voxels, RAS
SOFT, HARD = 180, 320  # Hounsfield units
LOWEST, CONTINUED, THINNER = 40, 40, 0.985  # First slice that is kept, slices added, size of each to the one below it
ASIDE = 40  # Voxels of air that are added beside the arm


def labelled(hu):
    "1 in the humerus, 2 in the scapula: what hangs together at 180 HU, by the nearer of the parts at 320"
    import numpy as np
    from scipy import ndimage

    either, hard = (ndimage.label(hu > limit)[0] for limit in (SOFT, HARD))
    both = either == either[SEEDS["humerus"]]
    far = [ndimage.distance_transform_edt(hard != hard[seed]) for seed in SEEDS.values()]
    humerus, scapula = both & (far[0] <= far[1]), both & (far[0] > far[1])
    humerus = ndimage.binary_closing(np.pad(humerus, 8, "edge"), iterations=5)[8:-8, 8:-8, 8:-8] & ~scapula
    slices = [ndimage.binary_fill_holes(part) for part in np.moveaxis(humerus, 2, 0)]
    humerus = np.stack(slices, 2) & ~scapula
    scapula |= ndimage.binary_closing(scapula, iterations=2) & ~humerus
    return np.where(humerus, 1, np.where(scapula, 2, 0)).astype("u1")


def more_slices(last, middles, count: int, scale: float, outside: float):
    "Slices that go on as the last one, ever smaller, from its middle along a line; `middles` of it and of the fifth below"
    import numpy as np
    from scipy import ndimage

    slope, slices = (middles[1] - middles[0]) / 5, []
    for n in range(1, count + 1):
        size = scale**-n
        offset = middles[1] - size * (middles[1] + n * slope)
        slices.append(ndimage.affine_transform(last, [size] * 2, offset, order=1, cval=outside))
    return np.stack(slices, 2)


def continued(hu, labels):
    "CT and labels with more slices, along the humerus's shaft"
    import numpy as np
    from scipy import ndimage

    middles = [np.array(ndimage.center_of_mass(labels[..., k] == 1)) for k in (-6, -1)]
    bone = labels[..., -1] == 1
    top = np.where(bone, hu[..., -1], np.minimum(hu[..., -1], FILL))
    more = more_slices(top, middles, CONTINUED, THINNER, NOTHING)
    more_bone = more_slices(bone.astype("f4"), middles, CONTINUED, THINNER, 0.0) > 0.5
    return np.concatenate([hu, more], 2), np.concatenate([labels, more_bone.astype("u1")], 2)


def without_table(hu):
    "The patient alone, in air"
    import numpy as np
    from scipy import ndimage

    parts, _ = ndimage.label(ndimage.binary_opening(hu > -300, iterations=2))
    body = ndimage.binary_dilation(parts == np.bincount(parts.ravel())[1:].argmax() + 1, iterations=3)
    body = np.stack([ndimage.binary_fill_holes(part) for part in np.moveaxis(body, 2, 0)], 2)
    return np.where(body, hu, NOTHING)


def write_ct(source: Path, folder: Path):
    "The shoulder's CT and its labels, as a tracker gets them"
    import nibabel
    import numpy as np

    image = nibabel.as_closest_canonical(nibabel.load(source))
    hu = without_table(np.asarray(image.dataobj).astype("f4"))
    room = [(ASIDE, 0), (0, 0), (0, 0)]
    padded = np.pad(hu, room, constant_values=NOTHING), np.pad(labelled(hu), room)
    hu, labels = (a[..., LOWEST:] for a in continued(*padded))
    affine = image.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ [-ASIDE, 0, LOWEST]
    write_nifti(folder / "ct.nii.gz", hu.round().astype("i2"), affine)
    write_nifti(folder / "labels.nii.gz", labels, affine)
    write_parts(folder, hu, labels, affine)


def write_nifti(path: Path, values, affine):
    import nibabel

    nibabel.save(nibabel.Nifti1Image(values, affine), path)


def cropped(excess, affine):
    "A bone's file: what is not zero and a border, and its affine"
    import numpy as np

    there = np.argwhere(excess)
    low, high = (there.min(0) - 2).clip(0), there.max(0) + 3
    moved = affine.copy()
    moved[:3, 3] += affine[:3, :3] @ low
    return excess[tuple(map(slice, low, high))] + np.float32(NOTHING), moved


def write_parts(folder: Path, hu, labels, affine):
    "Each bone with a voxel around it, above what fills its place, and the flesh with the places filled"
    import numpy as np
    from scipy import ndimage

    far = [ndimage.distance_transform_edt(labels != n) for n in (1, 2)]
    flesh = hu.copy()
    for n, name in enumerate(SEEDS):
        near = (far[n] <= np.sqrt(2)) & (far[n] <= far[1 - n] - n * 1e-6)
        write_nifti(folder / f"{name}.nii.gz", *cropped(np.where(near, hu - FILL, 0), affine))
        flesh[near] = FILL
    write_nifti(folder / "flesh.nii.gz", flesh, affine)


# How the bones move


FRAMES = 120
AT_REST = 0.4  # Share of the motion that is done where the bones are as in the CT


def progress(wave: float):
    "Shares of the motion that are done, (FRAMES,), 0 in the CT's posture: the speed changes by a factor of nine"
    import numpy as np

    at = np.linspace(0, 1, FRAMES)
    return at - 0.8 * np.sin(2 * np.pi * wave * at) / (2 * np.pi * wave) - AT_REST


def screw(share, axis, degrees: float, pivot, shift):
    "Turns about an axis through a point, and shifts, (FRAMES, 4, 4)"
    import numpy as np
    from scipy.spatial.transform import Rotation

    axis = np.array(axis, float) / np.linalg.norm(axis)
    motion = np.tile(np.eye(4), (len(share), 1, 1))
    motion[:, :3, :3] = Rotation.from_rotvec(np.radians(degrees) * share[:, None] * axis).as_matrix()
    motion[:, :3, 3] = pivot - motion[:, :3, :3] @ pivot + share[:, None] * np.array(shift)
    return motion


SLIDE = 0.8, 0.5, -0.33  # To the patient's left, to the front, up


def shoulder_motions(points: dict) -> dict:
    "Each bone's motion from the CT's posture, in the world, (FRAMES, 4, 4)"
    import numpy as np

    middle = points["scapula"].mean(0)
    scapula = screw(progress(1), (0.2, 1.0, 0.1), 15, middle, (7.0, -5.0, 12.3))
    slide = 30 / np.linalg.norm(SLIDE) * np.array(SLIDE)
    humerus = screw(progress(2), (0.35, 0.9, 0.25), 40, points["humerus"].mean(0), slide)
    return dict(humerus=scapula @ humerus, scapula=scapula)


# The shoulder


DOWN = 1300.0, 900.0  # From the source to the detector and to the middle between the bones, mm
FIELD = 290.0  # Edge of the detector, mm
VIEWS = 5.0, -55.0  # Turns of the two cameras about the patient's long axis, degrees
LOOK = dict(kilovolt=75, blur=0.3, scatter=0.35, spread=40, photons=1000, saturated=0, disturbance=None)


def place_of(mask, volume):
    "Points of a mask in the volume's world, (N, 3)"
    import numpy as np

    index = np.argwhere(np.asarray(mask))[:, ::-1]
    turn = volume.world_from_voxel.numpy()
    return index @ turn[:3, :3].T + turn[:3, 3]


def shoulder(cts: Path, out: Path) -> dict:
    "The scene: files, cameras in the laboratory, where each bone is at rest there, its points, and its motion"
    import numpy as np
    import torch

    from xvr.detector import Detector
    from xvr.pose import Pose
    from xvr.volume import read_volume

    folder = out / "shoulder"
    if not (folder / "flesh.nii.gz").exists():
        write_ct(cts / "chest_fnndsc.nii.gz", folder)
    volume = read_volume(folder / "ct.nii.gz", folder / "labels.nii.gz")
    points = {name: place_of(volume.labels == n, volume) for n, name in enumerate(SEEDS, 1)}
    middle = np.eye(4)
    middle[:3, 3] = sum(p.mean(0) for p in points.values()) / 2
    at = [Pose.from_euler(torch.tensor([[turn, 0.0, 0.0]]).double(), [[0.0, DOWN[1], 0.0]]) for turn in VIEWS]
    return dict(
        name="shoulder",
        detectors=[Detector(DOWN[0], ROWS, FIELD / ROWS, orientation="AP", reverse_x_axis=True)] * 2,
        cameras=[middle @ pose.matrix[0].double().numpy() for pose in at],
        bases={name: np.eye(4) for name in SEEDS},
        centres={name: volume.centre.tolist() for name in SEEDS},
        points=points,
        motions=shoulder_motions(points),
        water=0.0,
    )


# The forearm


BONES = dict(radius="rad", ulna="uln")
EDGES = 0.39625, 0.39625, 0.625  # Of the stacks' voxels, mm
WATER_AT = 1024.0  # Value of water in the stacks
# Camera 1 in each bone's frame, in frame 158 of the sample: a rotation vector and a translation, mm, as in
# tests/test_single_bone.py
FOUND = dict(
    radius=([-2.969626, -0.849032, -0.084769], [555.847, -871.826, -117.544]),
    ulna=([1.834566, 2.439495, 0.285321], [1015.109, 285.071, 120.952]),
)
WINDOWS = ((560, 1020), (480, 1020))  # First column and row of each camera's pixels that are kept
KEPT, SHAFT = 560, 60  # Pixels of the sample's 1760 along each side, slices by which the shafts go on


def stack_of(wrist: Path, name: str):
    "Values of a bone, (D, H, W)"
    import numpy as np
    import SimpleITK as sitk

    return sitk.GetArrayFromImage(sitk.ReadImage(str(wrist / f"{BONES[name]}_dcm_cropped.tif"))).astype(np.float32)


def bone_of(wrist: Path, name: str):
    "A bone above water, as the tutorial has it"
    import torch

    from xvr.volume import make_volume

    excess = (stack_of(wrist, name) - WATER_AT).clip(0) / 4095
    return make_volume(torch.tensor(excess), torch.diag(torch.tensor([*EDGES, 1.0])))


def camera_of(wrist: Path, number: int):
    "A camera of the sample, binned, with square pixels"
    import numpy as np

    from xvr.cameras import from_calibration

    lines = [line.split(",") for line in (wrist / f"xr_calib_wrist_cam0{number + 1}.txt").read_text().splitlines()]
    rows = np.array([[float(v) for v in line] for line in lines if len(line) == 3])
    K, R, t = rows[0:3], rows[3:6], [float(line[0]) for line in lines[-3:]]
    K[1, 1] = K[0, 0]
    left, top = WINDOWS[number]
    K[:2, 2] = (K[:2, 2] - (left, top) + 0.5) * ROWS / KEPT - 0.5
    K[[0, 1], [0, 1]] *= ROWS / KEPT
    return from_calibration(K, R, t, ROWS, ROWS, sdd=1800)


def write_bone(wrist: Path, name: str, path: Path):
    "A bone above water in water, its shaft continued"
    import numpy as np
    from scipy import ndimage

    excess = np.moveaxis((stack_of(wrist, name) - WATER_AT).clip(0), [0, 1, 2], [2, 1, 0])
    middles = [np.array(ndimage.center_of_mass(excess[..., k])) for k in (-6, -1)]
    longer = np.concatenate([excess, more_slices(excess[..., -1], middles, SHAFT, 1.0, 0.0)], 2)
    # RAS as `make_volume` takes the stack's axes
    write_nifti(path, *cropped(longer, np.diag([*EDGES, 1.0])))


def forearm_motions(points: dict) -> dict:
    "Each bone's motion in camera 1's frame: the radius turns about the ulna's length and slides along it"
    import numpy as np

    middle = points["ulna"].mean(0)
    along = np.linalg.svd(points["ulna"] - middle, full_matrices=False)[2][0]
    aside = points["radius"].mean(0) - middle
    chord = 2 * np.linalg.norm(aside - aside @ along * along) * math.sin(math.radians(20))
    ulna = screw(progress(1), (0.6, 0.3, 0.7), 8, middle, (6.0, 5.0, 6.0))
    radius = screw(progress(2), along, 40, middle, math.sqrt(30**2 - chord**2) * along)
    return dict(radius=ulna @ radius, ulna=ulna)


def forearm(wrist: Path, out: Path) -> dict:
    "The scene, as `shoulder` returns it; the laboratory is camera 1's frame"
    import numpy as np
    from scipy.spatial.transform import Rotation

    bases, points, centres = {}, {}, {}
    for name, (turn, shift) in FOUND.items():
        if not (path := out / "forearm" / f"{name}.nii.gz").exists():
            write_bone(wrist, name, path)
        volume, bone_from_camera = bone_of(wrist, name), np.eye(4)
        bone_from_camera[:3, :3], bone_from_camera[:3, 3] = Rotation.from_rotvec(turn).as_matrix(), shift
        bases[name], centres[name] = np.linalg.inv(bone_from_camera), volume.centre.tolist()
        points[name] = place_of(volume.density > 0.05, volume)
    cameras = [camera_of(wrist, n) for n in (0, 1)]
    poses = [pose.matrix[0].double().numpy() for _, pose in cameras]
    placed = {name: p @ bases[name][:3, :3].T + bases[name][:3, 3] for name, p in points.items()}
    return dict(
        name="forearm",
        detectors=[detector for detector, _ in cameras],
        cameras=[np.eye(4), np.linalg.inv(poses[0]) @ poses[1]],
        bases=bases,
        centres=centres,
        points=points,
        motions=forearm_motions(placed),
        water=4.0,
    )


# Cines


def pose_of(scene: dict, bone: str, view: int, frame: int):
    "The camera's pose as seen from a bone, (4, 4)"
    import numpy as np

    return np.linalg.inv(scene["motions"][bone][frame] @ scene["bases"][bone]) @ scene["cameras"][view]


def seen_from(scene: dict, view: int, pose, centre) -> dict:
    "A camera in the coordinates of a body's file, as the projector takes it"
    import torch

    from xvr.detector import physical_geometry
    from xvr.pose import Pose

    return physical_geometry(scene["detectors"][view], Pose(torch.tensor(pose)[None]), centre) | dict(size=ROWS)


def patient_inverses(scene: dict, frame: int) -> list:
    "The inverse of each bone's motion in the CT's patient coordinates, LPS mm"
    import numpy as np
    import torch

    from xvr.detector import world_from_patient

    (centre, *_) = scene["centres"].values()
    world = world_from_patient(torch.tensor(centre)).matrix[0].numpy()
    moved = [np.linalg.inv(world) @ np.linalg.inv(scene["motions"][bone][frame]) @ world for bone in SEEDS]
    return [m.tolist() for m in moved]


def job_of(scene: dict, folder: Path, frames: list[int]) -> dict:
    "What the projector is asked for"
    bent = scene["name"] == "shoulder"
    step = STEP if bent else min(EDGES)
    place = lambda name: str((folder / f"{name}.nii.gz").resolve())
    bodies = {bone: dict(file=place(bone), step=step) for bone in scene["motions"]}
    if bent:
        bodies["flesh"] = dict(file=place("flesh"), labels=place("labels"), ct=place("ct"))
    job = dict(kind="mixed", bodies=bodies, frames=[])
    for n in frames:
        views = [dict(file=str((folder / f"{n:04d}_{v}.npz").resolve()), geometry={}) for v in (0, 1)]
        for v, view in enumerate(views):
            for bone, centre in scene["centres"].items():
                view["geometry"][bone] = seen_from(scene, v, pose_of(scene, bone, v, n), centre)
            view["geometry"]["flesh"] = seen_from(scene, v, scene["cameras"][v], centre)
        job["frames"].append(dict(views=views, inverses=patient_inverses(scene, n) if bent else []))
    return job


def taken(areas: dict, scene: dict, view: int, frame: int):
    "What the detector stores"
    import numpy as np
    from trust import disturbance, exposed, through

    soft, bone = sum(area.astype("f8") for area in areas.values())
    beam = through(soft + scene["water"], bone, LOOK, disturbance(None, len(soft), None))
    draw = np.random.default_rng([view, frame, len(scene["name"])])
    return exposed(beam, scene["detectors"][view].delx, LOOK, draw, ROWS)


def file_of(folder: Path, view: int, frame: int) -> Path:
    return folder / f"view{view + 1}" / f"{frame:04d}.tif"


def write_frame(path: Path, stored):
    "A 16-bit TIFF, whole or not at all"
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    Image.fromarray(stored).save(part, "TIFF")
    part.replace(path)


GONE = range(12, 22)  # Frames without the humerus in the cine "lost"


def project_frames(scene: dict, out: Path, environment: Path, frames: list[int]):
    "Frames that are not there yet"
    import numpy as np
    from existing import python_of
    from tqdm import tqdm

    folder = out / scene["name"]
    todo = [n for n in frames if not all(file_of(folder, v, n).exists() for v in (0, 1))]
    if not todo:
        return
    command = [python_of(environment), __file__, "--project"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        child.stdin.write(json.dumps(job_of(scene, folder, todo)))
        child.stdin.close()
        for line in tqdm(child.stdout, total=2 * len(todo), desc=scene["name"], unit="X-ray"):
            frame, view = map(int, Path(line.strip()).stem.split("_"))
            store(scene, out, view, frame, dict(np.load(line.strip())))
            os.unlink(line.strip())
    if child.returncode:
        raise SystemExit("the projector failed; its message is above")


def store(scene: dict, out: Path, view: int, frame: int, areas: dict):
    "An X-ray, and if it is needed the same without the humerus"
    if scene["name"] == "shoulder" and frame in GONE:
        rest = {name: area for name, area in areas.items() if name != "humerus"}
        write_frame(file_of(out / "lost", view, frame), taken(rest, scene, view, frame))
    write_frame(file_of(out / scene["name"], view, frame), taken(areas, scene, view, frame))


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["simulate", "judge"])
    parser.add_argument("--cts", type=Path, required=True, help="folder of chest_fnndsc.nii.gz")
    parser.add_argument("--wrist", type=Path, help="folder of the wrist sample; no forearm if not given")
    parser.add_argument("--outpath", type=Path, default=Path("tracking-run"))
    parser.add_argument("--environment", type=Path, help="of existing.py; OUTPATH/environment if not given")
    parser.add_argument("--frames", type=int, nargs="*", help="only these")
    return parser.parse_args()


def main():
    asked = parse()
    from existing import make_environment

    environment = (asked.environment or asked.outpath / "environment").absolute()
    make_environment(environment)
    for name in ("shoulder", "forearm"):
        (asked.outpath / name).mkdir(parents=True, exist_ok=True)
    frames = asked.frames or [*range(FRAMES)]
    project_frames(shoulder(asked.cts, asked.outpath), asked.outpath, environment, frames)
    if asked.wrist:
        project_frames(forearm(asked.wrist, asked.outpath), asked.outpath, environment, frames)


if __name__ == "__main__":
    if sys.argv[1:] == ["--project"]:
        project(json.load(sys.stdin))
    else:
        main()
