#!/usr/bin/env python3
"""Whether bones are followed through cines whose projector, beam and flesh are not xvr's.

    python benchmarks/tracking.py simulate --cts FOLDER                 # cines with their truths, a quarter of an hour
    python benchmarks/tracking.py judge --cts FOLDER                    # tracking and registration one by one

simulate  Cines of two calibrated views of 256 x 256 pixels by RTK's projector and `trust.py`'s beam, 16-bit TIFF:
          shoulder  Right humerus and scapula of chest_fnndsc: 120 frames, 40 degrees and 30 mm against each other, and
                    the scapula 15 degrees and 15 mm along the thorax, at changing speed. The bones are rigid. The
                    flesh is not: each place of it follows the bones and the thorax by how near they are, so no rigid
                    model of it is exact. In a third of the frames the bones cover each other in view 1.
          forearm   Radius and ulna of the wrist sample, 40 degrees and 30 mm, in that sample's two cameras, no flesh.
          lost      The shoulder's first 40 frames: the humerus is not there in frames 12 to 21, and in view 1 frame 26
                    is black, frame 30 a copy of the one before, and the lower half of frame 34 is of frame 110.
          The CT ends above the humerus's head. Its last slice is continued along the shaft, ever smaller, for 80 mm, so
          that neither X-rays nor renderings show the cut. Labels come from thresholds: humerus and scapula touch at
          180 HU and are apart at 320.
judge     Methods, with two views and with view 1 alone, all from starts 2 degrees and 2 mm off in the first frame:
          alone         Each bone, as `cut_out` makes it, and frame by itself, from the frame before. A person puts a
                        bone back that ends more than 5 mm off.
          behind        The same with the rest of the CT at rest behind it.
          tracked       `xvr.track`, the bones together; tracked_rest with the rest of the CT behind them.
          `tracking_rows.csv` has a row for each frame and bone: mTRE over points of the bone's surface in view 1's
          camera, turns and the shift of the bone's middle in that camera's axes, their stated deviations, the error of
          the motion of the first bone as the second sees it, and seconds of the CPU for this bone. `tracking.csv` has
          medians over the frames in which the bone was found; `within` counts frames within 0.5 mm and 0.5 degrees,
          `lost` those without a pose or more than 5 mm off, `held_95` how often intervals hold along each axis. Frames
          without a bone (`gone`) and those with a fault count apart; `found_again` is the first good one after a gap.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

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


def grid_points(image, size):
    "Places of so many points spread over an image from corner to corner, LPS mm, (*size, 3) in the order of the array"
    import itk
    import numpy as np

    direction, spacing = itk.array_from_matrix(image.GetDirection()), np.array(image.GetSpacing())
    ends = np.array(itk.size(image)) - 1
    at = np.stack(np.meshgrid(*[np.linspace(0, e, n) for e, n in zip(ends[::-1], size)], indexing="ij"), -1)
    return (at[..., ::-1] * spacing) @ direction.T + np.array(image.GetOrigin())


def distances_of(body: dict) -> list:
    "Of each voxel from each labelled bone, and from the other bones, mm"
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
    "Slices that go on as the last one, ever smaller, along a line; `middles` of it and of the fifth below"
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
LOOK = dict(kilovolt=75, blur=0.3, scatter=0.35, spread=40, photons=4000, saturated=0, disturbance=None)


def place_of(mask, volume):
    "Points of a mask in the volume's world, (N, 3)"
    import numpy as np

    index = np.argwhere(np.asarray(mask))[:, ::-1]
    turn = volume.world_from_voxel.numpy()
    return index @ turn[:3, :3].T + turn[:3, 3]


def shoulder(cts: Path, out: Path) -> dict:
    "The scene: files, cameras in the laboratory, where each bone is at rest there, its points, and its motion"
    import numpy as np

    from xvr.detector import Detector
    from xvr.volume import read_volume

    folder = out / "shoulder"
    if not (folder / "flesh.nii.gz").exists():
        write_ct(cts / "chest_fnndsc.nii.gz", folder)
    volume = read_volume(folder / "ct.nii.gz", folder / "labels.nii.gz")
    points = {name: place_of(volume.labels == n, volume) for n, name in enumerate(SEEDS, 1)}
    scene = dict(name="shoulder", points=points, motions=shoulder_motions(points), water=0.0)
    scene["detectors"] = [Detector(DOWN[0], ROWS, FIELD / ROWS, orientation="AP", reverse_x_axis=True)] * 2
    scene["cameras"] = cameras_about(sum(p.mean(0) for p in points.values()) / 2)
    scene["bases"] = {name: np.eye(4) for name in SEEDS}
    return scene | dict(centres={name: volume.centre.tolist() for name in SEEDS})


def cameras_about(middle) -> list:
    "Both cameras of the shoulder, which look at a point of the world"
    import numpy as np
    import torch

    from xvr.pose import Pose

    place = np.eye(4)
    place[:3, 3] = middle
    at = [Pose.from_euler(torch.tensor([[turn, 0.0, 0.0]]).double(), [[0.0, DOWN[1], 0.0]]) for turn in VIEWS]
    return [place @ pose.matrix[0].double().numpy() for pose in at]


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

    for name in BONES:
        if not (path := out / "forearm" / f"{name}.nii.gz").exists():
            write_bone(wrist, name, path)
    volumes, bases = {name: bone_of(wrist, name) for name in BONES}, {name: base_of(name) for name in BONES}
    points = {name: place_of(volume.density > 0.05, volume) for name, volume in volumes.items()}
    placed = {name: p @ bases[name][:3, :3].T + bases[name][:3, 3] for name, p in points.items()}
    scene = dict(name="forearm", points=points, motions=forearm_motions(placed), bases=bases, water=4.0)
    detectors, poses = zip(*(camera_of(wrist, number) for number in (0, 1)))
    first, second = (pose.matrix[0].double().numpy() for pose in poses)
    scene |= dict(detectors=[*detectors], cameras=[np.eye(4), np.linalg.inv(first) @ second])
    return scene | dict(centres={name: volume.centre.tolist() for name, volume in volumes.items()})


def base_of(name: str):
    "Where a bone is in camera 1's frame at rest, (4, 4)"
    import numpy as np
    from scipy.spatial.transform import Rotation

    bone_from_camera = np.eye(4)
    bone_from_camera[:3, :3] = Rotation.from_rotvec(FOUND[name][0]).as_matrix()
    bone_from_camera[:3, 3] = FOUND[name][1]
    return np.linalg.inv(bone_from_camera)


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
    from tqdm import tqdm

    folder = out / scene["name"]
    todo = [n for n in frames if not all(file_of(folder, v, n).exists() for v in (0, 1))]
    if not todo:
        return
    for path in tqdm(projected(job_of(scene, folder, todo), environment), scene["name"], 2 * len(todo), unit="X-ray"):
        frame, view = map(int, path.stem.split("_"))
        store(scene, out, view, frame, dict(np.load(path)))
        path.unlink()


def projected(job: dict, environment: Path):
    "The files of the projector, each when it is there"
    from existing import python_of

    command = [python_of(environment), __file__, "--project"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        child.stdin.write(json.dumps(job))
        child.stdin.close()
        yield from (Path(line.strip()) for line in child.stdout)
    if child.returncode:
        raise SystemExit("the projector failed; its message is above")


def store(scene: dict, out: Path, view: int, frame: int, areas: dict):
    "An X-ray, and if it is needed the same without the humerus"
    if scene["name"] == "shoulder" and frame in GONE:
        rest = {name: area for name, area in areas.items() if name != "humerus"}
        write_frame(file_of(out / "lost", view, frame), taken(rest, scene, view, frame))
    write_frame(file_of(out / scene["name"], view, frame), taken(areas, scene, view, frame))


# Truths, and the cine with faults


LOST = range(40)  # Frames of the cine "lost"
FAULTS = {26: "black", 30: "copy", 34: "torn"}  # In view 1
TORN_BY = 110  # The frame that a torn one's lower half is of


def write_lost(out: Path):
    "The frames of the cine with faults that are not there yet"
    import numpy as np
    from PIL import Image

    read = lambda view, frame: np.asarray(Image.open(file_of(out / "shoulder", view, frame)))
    for view in (0, 1):
        for frame in LOST:
            stored = read(view, frame).copy()
            fault = FAULTS.get(frame) if view == 0 else None
            if fault == "black":
                stored = np.random.default_rng(frame).normal(20, 5, stored.shape).clip(1).astype("<u2")
            if fault == "copy":
                stored = read(view, frame - 1)
            if fault == "torn":
                stored[ROWS // 2 :] = read(view, TORN_BY)[ROWS // 2 :]
            if frame not in GONE:
                write_frame(file_of(out / "lost", view, frame), stored)


def covered(scene: dict, frame: int) -> float:
    "The share of the smaller shadow that is in the other's too, in view 1"
    import numpy as np
    import torch

    from xvr.detector import project
    from xvr.pose import Pose

    shadows, small = [], scene["detectors"][0].resize(COVER_ROWS)
    for bone, points in scene["points"].items():
        pose = Pose(torch.tensor(pose_of(scene, bone, 0, frame))[None])
        at = project(small, pose, torch.tensor(points)[None])[0].round().long().numpy()
        shadow = np.zeros((COVER_ROWS, COVER_ROWS), bool)
        at = at[((at >= 0) & (at < COVER_ROWS)).all(1)]
        shadow[at[:, 1], at[:, 0]] = True
        shadows.append(shadow)
    return float((shadows[0] & shadows[1]).sum() / min(shadow.sum() for shadow in shadows))


COVER_ROWS = 96
COVERED = 0.33  # Share of the smaller shadow; with more, one bone covers the other


def truth_of(scene: dict, name: str, frames) -> dict:
    "Poses of the cameras as each bone sees them, [view][frame], and what else is known about a cine"
    poses = {
        bone: [[pose_of(scene, bone, view, n).tolist() for n in frames] for view in (0, 1)] for bone in scene["motions"]
    }
    lost = name == "lost"
    return dict(
        name=name,
        bones=poses,
        centres=scene["centres"],
        detectors=[detector.to_dict() for detector in scene["detectors"]],
        cameras=[camera.tolist() for camera in scene["cameras"]],
        covered=[covered(scene, n) for n in frames],
        gone=dict(humerus=[*GONE]) if lost else {},
        faults={str(frame): fault for frame, fault in FAULTS.items()} if lost else {},
        look=LOOK,
    )


def write_truths(scenes: list[dict], out: Path):
    "Beside the frames; `tracking_truth.json` is no name that a reader of X-rays looks for"
    for scene in scenes:
        cines = {scene["name"]: range(FRAMES)} | (dict(lost=LOST) if scene["name"] == "shoulder" else {})
        for name, frames in cines.items():
            (out / name / "tracking_truth.json").write_text(json.dumps(truth_of(scene, name, frames)))


# Registration frame by frame


ALONG = 5.0  # mTRE, mm: a bone that is farther off is lost, and a person puts it back


def read_frame(case: dict, view: int, frame: int):
    "An X-ray as a person would read it who knows the distances"
    from xvr.xray import Reading, read_xray

    detector = case["detectors"][view]
    how = dict(sdd=detector.sdd, delx=detector.delx, dely=detector.dely, x0=detector.x0, y0=detector.y0)
    how |= dict(orientation=detector.orientation, reverse_x_axis=detector.reverse_x_axis)
    return read_xray(file_of(case["folder"], view, frame), Reading(linearize=True, **how))


def load_case(name: str, out: Path, wrist: Path | None) -> dict:
    "A cine with its truth, and the volumes that a tracker gets"
    import numpy as np

    from xvr.bones import cut_out
    from xvr.detector import Detector
    from xvr.volume import read_volume

    case = json.loads((out / name / "tracking_truth.json").read_text())
    case["detectors"] = [Detector.from_dict(detector) for detector in case["detectors"]]
    case |= dict(folder=out / name, rest=None, poses={b: np.array(p) for b, p in case["bones"].items()})
    if name == "forearm":
        return case | dict(volumes={bone: bone_of(wrist, bone) for bone in BONES})
    ct, labels = out / "shoulder" / "ct.nii.gz", out / "shoulder" / "labels.nii.gz"
    whole = read_volume(ct, labels)
    return case | dict(rest=whole, volumes={bone: cut_out(whole, [n]) for n, bone in enumerate(SEEDS, 1)})


def surface(volume, count: int = 1000):
    "Points of a bone's surface in its world, mm, (N, 3)"
    import numpy as np
    import torch
    from scipy.ndimage import binary_erosion, binary_fill_holes

    inside = binary_fill_holes(volume.density.numpy() > 0.05)
    points = place_of(inside & ~binary_erosion(inside), volume)
    return torch.tensor(np.random.default_rng(0).permutation(points)[:count])


def known(case: dict, bone: str, frame: int) -> list:
    "The true poses of both cameras as a bone sees them"
    import torch

    from xvr.pose import Pose

    return [Pose(torch.tensor(case["poses"][bone][view, frame])[None]) for view in (0, 1)]


def aside(pose, middle, degrees: float = 2.0, millimetres: float = 2.0):
    "A motion that puts a start beside the truth, about a bone's middle"
    import numpy as np
    import torch

    from xvr.pose import Pose

    share = np.array([1.0])
    motion = screw(share, (1.0, -1.0, 1.0), degrees, middle.numpy(), [millimetres / math.sqrt(3)] * 3)
    return Pose(torch.tensor(motion)) @ pose


class Seen(NamedTuple):
    "A bone in a frame"

    pose: Any  # Of the first view's camera, (1,); None if the bone was not found
    covariance: Any  # In the camera's axes, about the world's origin, degrees and mm, (6, 6)
    verdict: str
    probability: float
    seconds: float  # Of the CPU


def one_by_one(case: dict, views: int, behind: bool):
    "Each bone and frame by itself: (frame, bone, Seen)"
    from xvr.optimisers import Structure

    rest = tuple(pose_of_matrix(camera).float() for camera in case["cameras"][:views])
    structure = Structure(whole=case["rest"], poses=rest) if behind else Structure()
    for bone in case["volumes"]:
        start = [aside(pose, case["points"][bone].mean(0)) for pose in known(case, bone, 0)[:views]]
        for frame in range(len(case["covered"])):
            seen, start = registered(case, bone, frame, start, structure)
            yield frame, bone, seen


def registered(case: dict, bone: str, frame: int, start: list, structure) -> tuple:
    "A bone in a frame, and where the next one starts"
    from xvr.metrics import mtre
    from xvr.registration import register_together

    xrays = [read_frame(case, view, frame) for view in range(len(start))]
    began = time.process_time()
    results = register_together(xrays, case["volumes"][bone], [p.float() for p in start], structure=structure)
    seconds, one, truth = time.process_time() - began, results[0], known(case, bone, frame)
    off = mtre(one.final.double(), truth[0], case["points"][bone]).item()
    seen = Seen(one.final, one.covariance, one.verdict, one.probability, seconds)
    return seen, [r.final for r in results] if off < ALONG else truth[: len(start)]


def pose_of_matrix(matrix):
    "The pose of a matrix, float64, (1,)"
    import torch

    from xvr.pose import Pose

    return Pose(torch.tensor(matrix, dtype=torch.float64)[None])


# What is measured


TURN = 180 / math.pi  # Degrees
SHORT = "turn_x", "turn_y", "turn_beam", "shift_x", "shift_y", "depth"
RIGHT = 0.5  # mm and degrees
HELD = {95: 1.96, 50: 0.6745}  # Standard deviations


def at_middle(detector, pose, truth, middle):
    "Turns (degrees) and the shift of a bone's middle (mm) from the truth, in the true camera's axes, (6,)"
    import torch

    from xvr.optimisers import camera_axes
    from xvr.pose import Pose, log

    motion = Pose(pose.matrix.double() @ torch.linalg.inv(truth.matrix))
    shift = motion.matrix[0, :3, :3] @ middle + motion.matrix[0, :3, 3] - middle
    axes = camera_axes(detector, truth)[0, :3, :3]
    return torch.cat([log(motion)[0, :3] @ axes * TURN, shift @ axes]).numpy()


def deviations_at_middle(detector, covariance, truth, middle):
    "Standard deviations of the same, from those of turns and shifts about the world's origin"
    import torch

    from xvr.optimisers import camera_axes

    x, y, z = (middle @ camera_axes(detector, truth)[0, :3, :3]).tolist()
    change = torch.eye(6, dtype=torch.float64)
    change[3:, :3] = -torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64) / TURN
    return (change @ covariance.double() @ change.T).diagonal().clamp(min=0).sqrt().numpy()


def row_of(case: dict, bone: str, frame: int, seen: Seen) -> dict:
    "How far a bone is off in a frame; NaN if it was not found"
    import numpy as np

    from xvr.metrics import mtre

    row = dict(covered=int(case["covered"][frame] > COVERED), gone=int(frame in case["gone"].get(bone, [])))
    row |= dict(fault=case["faults"].get(str(frame), ""), verdict=seen.verdict, probability=seen.probability)
    off, stated, far = np.full(6, math.nan), np.full(6, math.nan), math.nan
    if seen.pose is not None:
        truth, points, detector = known(case, bone, frame)[0], case["points"][bone], case["detectors"][0]
        off = at_middle(detector, seen.pose, truth, points.mean(0))
        stated = deviations_at_middle(detector, seen.covariance, truth, points.mean(0))
        far = mtre(seen.pose.to(truth.matrix.dtype), truth, points).item()
    row |= dict(mtre_mm=far, turn_deg=float(np.linalg.norm(off[:3])), cpu_s=seen.seconds)
    row |= {f"off_{axis}": value for axis, value in zip(SHORT, off.tolist())}
    return row | {f"stated_{axis}": value for axis, value in zip(SHORT, stated.tolist())}


def relative(case: dict, frame: int, finals: dict) -> dict:
    "How far the motion of one bone as the other sees it is off: the turn, and the place of the first one's middle"
    import numpy as np

    if any(final is None for final in finals.values()):
        return dict(relative_deg=math.nan, relative_mm=math.nan)
    first, second = finals
    motion = lambda poses: poses[second] @ np.linalg.inv(poses[first])
    true = motion({bone: known(case, bone, frame)[0].matrix[0].numpy() for bone in finals})
    found = motion({bone: final.matrix[0].double().numpy() for bone, final in finals.items()})
    middle = np.array([*case["points"][first].mean(0).tolist(), 1.0])
    turn = np.trace(found[:3, :3] @ true[:3, :3].T).clip(-1, 3)
    return dict(
        relative_deg=math.degrees(math.acos((turn - 1) / 2)),
        relative_mm=float(np.linalg.norm((found @ middle - true @ middle)[:3])),
    )


def alone(case: dict, views: int):
    return one_by_one(case, views, behind=False)


def behind(case: dict, views: int):
    return one_by_one(case, views, behind=True)


class Clocked(list):
    "A list that keeps the CPU's time of each look-up"

    def __init__(self, items):
        super().__init__(items)
        self.times = []

    def __getitem__(self, n):
        self.times.append(time.process_time())
        return super().__getitem__(n)

    def seconds(self) -> list[float]:
        "From each look-up to the next, and from the last until now"
        return [b - a for a, b in zip(self.times, [*self.times[1:], time.process_time()])]


def tracked(case: dict, views: int, rest: bool = False):
    "All frames by `track`, the bones together: (frame, bone, Seen)"
    from xvr.tracking import track

    xrays = [Clocked(read_frame(case, view, n) for n in range(len(case["covered"]))) for view in range(views)]
    starts = {bone: aside(known(case, bone, 0)[0], case["points"][bone].mean(0)) for bone in case["volumes"]}
    rig = [pose_of_matrix(camera) for camera in case["cameras"][:views]]
    more = dict(whole=case["rest"], patient=rig[0]) if rest else {}
    found = track(xrays, case["volumes"], starts, rig=rig, **more)
    for n, seconds in enumerate(xrays[0].seconds()):
        yield from ((n, bone, seen_in(found, case, bone, n, seconds / len(starts))) for bone in starts)


def seen_in(found, case: dict, bone: str, frame: int, seconds: float) -> Seen:
    "A bone in a frame of what was tracked"
    from xvr.optimisers import camera_axes

    pose = found.poses[bone][frame : frame + 1]
    axes = camera_axes(case["detectors"][0], known(case, bone, frame)[0])[0]
    covariance = change_units(axes.mT @ found.covariance_of(bone)[frame] @ axes)
    probability = found.probability[frame, found.names.index(bone)].item()
    there = pose if pose.matrix.isfinite().all() else None
    return Seen(there, covariance, found.verdicts[frame][bone][0], probability, seconds)


def change_units(covariance):
    "From rad to degrees"
    import torch

    unit = torch.tensor([TURN] * 3 + [1.0] * 3, dtype=torch.float64)
    return unit[:, None] * covariance * unit


def tracked_rest(case: dict, views: int):
    return tracked(case, views, rest=True)


METHODS = dict(alone=alone, behind=behind, tracked=tracked, tracked_rest=tracked_rest)
WITH_REST = "behind", "tracked_rest"


def judged(case: dict, method: str, views: int) -> list[dict]:
    "A row for each frame and bone"
    from tqdm import tqdm

    rows, finals = [], {}
    about = dict(cine=case["name"], method=method, views=views)
    for frame, bone, seen in tqdm(METHODS[method](case, views), desc=" ".join(map(str, about.values()))):
        rows.append(about | dict(frame=frame, bone=bone) | row_of(case, bone, frame, seen))
        finals.setdefault(frame, {})[bone] = seen.pose
    order = lambda poses: {bone: poses[bone] for bone in case["volumes"]}
    return [row | relative(case, row["frame"], order(finals[row["frame"]])) for row in rows]


def share(values) -> str:
    "How many of how many"
    values = [*values]
    return f"{sum(values)}/{len(values)}"


def root_mean_square(values) -> float:
    return math.sqrt(sum(v * v for v in values) / len(values)) if values else math.nan


def summary_of(rows: list[dict]) -> dict:
    "What the acceptance asks, over some frames of a bone"
    import numpy as np

    good = [row for row in rows if row["mtre_mm"] < ALONG]
    found = [row for row in rows if not math.isnan(row["mtre_mm"])]
    median = lambda name: float(np.median([abs(row[name]) for row in found])) if found else math.nan
    table = dict(frames=len(rows), median_mm=median("mtre_mm"), median_deg=median("turn_deg"))
    table |= dict(within=share(row["mtre_mm"] < RIGHT and row["turn_deg"] < RIGHT for row in rows))
    table |= dict(lost=len(rows) - len(good), rms_mm=root_mean_square([r["mtre_mm"] for r in good]))
    table |= {name: median(f"off_{name}") for name in SHORT}
    table |= dict(verdicts=counted(row["verdict"] for row in rows))
    for percent, limit in HELD.items():
        held = [np.mean([abs(r[f"off_{a}"]) < limit * r[f"stated_{a}"] for r in good]) for a in SHORT] if good else []
        table[f"held_{percent}"] = " ".join(f"{value:.2f}" for value in held)
    return table | {name: median(name) for name in ("relative_deg", "relative_mm", "cpu_s")}


def counted(words) -> str:
    "How often each word is there"
    words = [*words]
    return ", ".join(f"{words.count(word)} {word}" for word in sorted(set(words)))


def found_again(rows: list[dict]) -> int | str:
    "The first frame after a gap in which a bone is within half a millimetre"
    last = max((row["frame"] for row in rows if row["gone"]), default=None)
    after = [
        r["frame"] for r in rows if last is not None and r["frame"] > last and r["mtre_mm"] < RIGHT > r["turn_deg"]
    ]
    return min(after, default="")


def summary(rows: list[dict]) -> list[dict]:
    "Rows for each cine, method, number of views and bone: all frames, and some of them apart"
    table, keys = [], ("cine", "method", "views", "bone")
    for key in dict.fromkeys(tuple(row[k] for k in keys) for row in rows):
        own = [row for row in rows if tuple(row[k] for k in keys) == key]
        plain = [row for row in own if not row["gone"] and not row["fault"]]
        parts = dict(
            all=plain, covered=[r for r in plain if r["covered"]], apart=[r for r in plain if not r["covered"]]
        )
        parts |= dict(gone=[r for r in own if r["gone"]], fault=[r for r in own if r["fault"]])
        about = dict(zip(keys, key)) | dict(found_again=found_again(own))
        table += [about | dict(which=which) | summary_of(some) for which, some in parts.items() if some]
    return table


def brief(row: dict) -> dict:
    return {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in row.items()}


def judge(asked):
    "The rows that are asked for anew, and the summary of all that are there"
    import torch
    from existing import write_rows
    from trust import stamp

    torch.set_num_threads(1)
    for name in asked.cines:
        case = load_case(name, asked.outpath, asked.wrist)
        case["points"] = {bone: surface(volume) for bone, volume in case["volumes"].items()}
        methods = [m for m in asked.methods if case["rest"] or m not in WITH_REST]
        for method, views in itertools.product(methods, asked.views):
            rows = [brief(row) for row in judged(case, method, views)]
            write_rows(rows, asked.outpath / f"rows_{name}_{method}_{views}.csv")
    rows = [row for file in sorted(asked.outpath.glob("rows_*.csv")) for row in read_rows(file)]
    write_rows(rows, HERE / "tracking_rows.csv")
    write_rows([brief(row) | stamp() for row in summary(rows)], HERE / "tracking.csv")
    for row in summary(rows):
        print("  ".join(f"{k} {v}" for k, v in brief(row).items()))


def read_rows(file: Path) -> list[dict]:
    "The rows of earlier runs"
    import csv

    words, whole = ("cine", "method", "bone", "fault", "verdict"), ("views", "frame", "covered", "gone")
    kind = lambda k: str if k in words else int if k in whole else float
    with open(file, newline="") as stream:
        return [{k: kind(k)(v) for k, v in row.items()} for row in csv.DictReader(stream)]


def simulate(asked):
    "All cines and their truths"
    from existing import make_environment

    began, environment = os.times(), (asked.environment or asked.outpath / "environment").absolute()
    make_environment(environment)
    for name in ("shoulder", "forearm"):
        (asked.outpath / name).mkdir(parents=True, exist_ok=True)
    scenes = [shoulder(asked.cts, asked.outpath)]
    scenes += [forearm(asked.wrist, asked.outpath)] if asked.wrist else []
    for scene in scenes:
        project_frames(scene, asked.outpath, environment, [*range(FRAMES)])
    write_lost(asked.outpath)
    write_truths(scenes, asked.outpath)
    spent = sum(os.times()[:4]) - sum(began[:4])
    print(f"{spent:.0f} s of the CPU, {os.times().elapsed - began.elapsed:.0f} s")


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["simulate", "judge"])
    parser.add_argument("--cts", type=Path, required=True, help="folder of chest_fnndsc.nii.gz")
    parser.add_argument("--wrist", type=Path, help="folder of the wrist sample; no forearm if not given")
    parser.add_argument("--outpath", type=Path, default=Path("tracking-run"))
    parser.add_argument("--environment", type=Path, help="of existing.py; OUTPATH/environment if not given")
    parser.add_argument("--cines", nargs="*", default=["shoulder"], help="shoulder, forearm, lost")
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=[*METHODS], help="to judge anew")
    parser.add_argument("--views", type=int, nargs="*", choices=[1, 2], default=[2, 1])
    return parser.parse_args()


def main():
    asked = parse()
    dict(simulate=simulate, judge=judge)[asked.part](asked)


if __name__ == "__main__":
    if sys.argv[1:] == ["--project"]:
        project(json.load(sys.stdin))
    else:
        main()
