#!/usr/bin/env python3
"""Compare CTs with simulated localizers and a real one: false alarms, what is found in spoilt copies, and the intervals.

    python benchmarks/localizer.py --data ../shared/data

The simulation shares no code with xvr: numpy and scipy in float64, two energies, scatter, noise, and half of the images
sharpened. Sizes that files state are wrong by what is usual (0.5 % of a pixel across, 0.7 % along the table, 1 % of the
source's distance, 0.7 mm of the fan's middle), and the patient has moved (1 degree, 2 mm about and along each axis). Each
localizer is compared with its CT (a part of it, in slices of 4 to 6 mm), with a spoilt copy of it, and with another CT.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import subprocess
import tempfile
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import torch
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial.transform import Rotation

from xvr.localizer import _compare, _Localizer, _read_localizer
from xvr.volume import read_volume

HERE = Path(__file__).resolve().parent
CTS = "chest_cptac-pda", "chest_fnndsc", "abdopelvis_tcga-ov", "abdopelvis_totalseg_3mm"
# Directions (RAS) of the columns and of the beam
VIEWS = dict(above=([-1, 0, 0], [0, -1, 0]), left=([0, -1, 0], [1, 0, 0]), below=([-1, 0, 0], [0, 1, 0]),
             right=([0, -1, 0], [-1, 0, 0]))  # fmt: skip
ALONG, SID, PITCH = np.array([0.0, 0, -1]), 570.0, 1.5


def ct_of(path: Path, folder: Path):
    "Hounsfield units at 2 to 3 mm, their affine (RAS), and the part of them that is the CT"
    image = nibabel.as_closest_canonical(nibabel.load(path))
    hu, affine = np.clip(np.asarray(image.dataobj, np.float32), -1000, 3000), image.affine
    if abs(affine[0, 0]) < 1.2:
        x, y = (n // 2 * 2 for n in hu.shape[:2])
        hu = hu[:x, :y].reshape(x // 2, 2, y // 2, 2, -1).mean((1, 3))
        affine = affine @ np.array([[2, 0, 0, 0.5], [0, 2, 0, 0.5], [0, 0, 1, 0], [0, 0, 0, 1]])
    step, count = abs(affine[2, 2]), hu.shape[2]
    thick = max(1, round(5 / step))
    kept = int(min(count * 0.75, 260 / step)) // thick * thick
    first = (count - kept) // 2
    part = hu[:, :, first : first + kept].reshape(*hu.shape[:2], -1, thick).mean(-1)
    place = affine @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, thick, first + (thick - 1) / 2], [0, 0, 0, 1]])
    nibabel.save(nibabel.Nifti1Image(part.round().astype(np.int16), place), folder / "ct.nii.gz")
    return hu, affine, read_volume(folder / "ct.nii.gz", no_cache=True)


def simulate(hu, affine, centre, view, random) -> tuple[_Localizer, dict]:
    "A localizer as its file states it, and the truth"
    across, beam = map(np.array, VIEWS[view])
    truth = dict(arc=bool(random.integers(2)), sharp=bool(random.integers(2)), across=random.normal() * 0.005)
    truth |= dict(along=random.normal() * 0.007, source=random.normal() * 0.01, fan=random.normal() * 0.7)
    turn, shift = Rotation.from_rotvec(np.deg2rad(random.normal(size=3))), 2 * random.normal(size=3)
    middle, sid = centre + random.normal(size=3) * [10, 10, 5], SID * np.exp(truth["source"])
    height = int(min(hu.shape[2] * affine[2, 2] * 1.05, 320) / PITCH)
    columns, rows = ((np.arange(n) - (n - 1) / 2) * PITCH for n in (340, height))
    columns, rows = columns * np.exp(truth["across"]) - truth["fan"], rows * np.exp(truth["along"])
    angle = columns / sid if truth["arc"] else np.arctan(columns / sid)
    rays = np.sin(angle)[:, None] * across + np.cos(angle)[:, None] * beam
    steps, inverse = np.arange(sid - 320, sid + 320, 2.0)[:, None, None], np.linalg.inv(affine)
    water, bone, sums = np.clip(1 + hu / 1000, 0, None), np.clip((hu - 150) / 1000, 0, None), []
    for row in rows:
        points = middle + truth["fan"] * across + row * ALONG - sid * beam + steps * rays
        points = (points - shift - centre) @ turn.as_matrix() + centre
        places = (points @ inverse[:3, :3].T + inverse[:3, 3]).reshape(-1, 3).T
        sums.append([2 * map_coordinates(v, places, order=1).reshape(len(steps), -1).sum(0) for v in (water, bone)])
    water, bone = np.moveaxis(np.array(sums), 1, 0)
    beam_left = 0.5 * np.exp(-0.0227 * water - 0.03 * bone) + 0.5 * np.exp(-0.0184 * water - 0.012 * bone)
    beam_left += 0.01 * gaussian_filter(beam_left, 15)
    beam_left += 0.001 * random.standard_normal(beam_left.shape) * np.sqrt(np.clip(beam_left, 1e-4, None))
    values = np.clip(-400 * np.log(np.clip(beam_left, 1e-5, None)), 0, 4000)
    values = np.clip(2 * values - gaussian_filter(values, 1.2), 0, 4000) if truth["sharp"] else values
    place = np.eye(4)
    place[:3] = np.column_stack([across, ALONG, np.cross(across, ALONG), middle])
    image = torch.tensor(values.round(), dtype=torch.float32)[None, None]
    side = 1 if np.cross(across, ALONG) @ beam > 0 else -1
    stated = torch.from_numpy(place), (PITCH, PITCH), SID, 1040.0, side, True, Path(f"{view}.dcm")
    back = turn.inv()
    return _Localizer(image, *stated), truth | dict(
        turn=back.as_rotvec(), shift=lambda c: back.apply(c - shift - centre) + centre - c
    )


def resized(volume, scales):
    "The CT with a wrong spacing; its first voxel stays where it is"
    matrix, corner = volume.world_from_voxel.clone(), volume.world_from_voxel[:3, 3] + volume.centre
    matrix[:3, :3] *= torch.tensor(scales, dtype=torch.float64)
    half = matrix[:3, :3] @ (torch.tensor(volume.shape, dtype=torch.float64) - 1) / 2
    matrix[:3, 3] = -half
    return replace(volume, world_from_voxel=matrix, centre=corner + half, _levels={})


def reversed_along(volume, *axes):  # Of the density, [z, y, x]
    return replace(volume, density=volume.density.flip(axes), _levels={})


def tabled(volume, mm):
    return replace(volume, centre=volume.centre + torch.tensor([0.0, 0, mm], dtype=torch.float64), _levels={})


SPOILT = {
    "mirrored left to right": lambda v: reversed_along(v, 2),
    "turned about the head-feet axis": lambda v: reversed_along(v, 1, 2),
    "mirrored front to back": lambda v: reversed_along(v, 1),
    "slices in the opposite order": lambda v: reversed_along(v, 0),
    "pixel spacing + 10 %": lambda v: resized(v, (1.1, 1.1, 1)),
    "slice spacing - 10 %": lambda v: resized(v, (1, 1, 0.9)),
    "table + 30 mm": lambda v: tabled(v, 30.0),
}


def row_of(name, case, localizer, volume, truth=None) -> dict:
    found = _compare(localizer, volume)
    row = dict(localizer=name, view=localizer.view, ct=case, ok=found.ok, in_place=round(found.in_place, 3))
    row |= dict(gain=round(found.gain, 4), arc=found.fit.trial.arc, problems="; ".join(found.problems))
    turns, shifts, *deviations = (x.numpy() for x in found.motion())
    if truth is not None:
        turns, shifts = turns - np.rad2deg(truth["turn"]), shifts - truth["shift"](volume.centre.numpy())
    values = zip(("turn", "shift"), (turns, shifts), deviations)
    named = {f"{k}_{a}": (v, d) for k, vs, ds in values for a, v, d in zip("xyz", vs, ds)}
    for key, (value, deviation) in named.items():
        row |= {key: round(float(value), 3), f"{key}_sd": round(float(deviation), 3)}
    print({k: row[k] for k in ("localizer", "view", "ct", "ok", "problems")}, flush=True)
    return row


def simulated(data: Path, views: int):
    "Rows of all simulated localizers; the errors are those of the found motion"
    with tempfile.TemporaryDirectory() as folder:
        cts = {name: ct_of(data / f"ct/{name}.nii.gz", Path(folder)) for name in CTS}
    spoilt = list(SPOILT)
    for n, (name, (hu, affine, volume)) in enumerate(cts.items()):
        for m in range(views):
            random, view = np.random.default_rng(1000 + 10 * n + m), [*VIEWS][(n + m) % 4]
            localizer, truth = simulate(hu, affine, volume.centre.numpy(), view, random)
            label, kind = f"{name} {m}", spoilt[(n * views + m) % len(spoilt)]
            yield row_of(label, "its own", localizer, volume, truth) | dict(truly_arc=truth["arc"])
            yield row_of(label, kind, localizer, SPOILT[kind](volume))
            yield row_of(label, "another", localizer, cts[CTS[(n + 1 + m % 3) % len(CTS)]][2])


def real(data: Path):
    "Rows of the real localizer; the motion is that against what the files state"
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(data / "localizer/ct_5mm_series.zip") as series:
            series.extractall(folder)
        volume = read_volume(folder, no_cache=True)
    localizer = _read_localizer(data / "localizer/scout.dcm")
    yield row_of("skull phantom, real", "its own", localizer, volume)
    for kind, spoil in SPOILT.items():
        yield row_of("skull phantom, real", kind, localizer, spoil(volume))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=HERE.parents[1] / "shared/data")
    parser.add_argument("--views", type=int, default=3, help="localizers of each CT")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=HERE).stdout
    stamp = dict(date=datetime.date.today().isoformat(), commit=commit.strip())
    rows = [row | stamp for part in (real(args.data), simulated(args.data, args.views)) for row in part]
    with open(HERE / "localizer.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(k for row in rows for k in row)))
        writer.writeheader()
        writer.writerows(rows)
    own = [row for row in rows if row["ct"] == "its own" and "truly_arc" in row]
    wrong = [row for row in rows if row["ct"] != "its own"]
    print(f"right ones that are ok: {sum(r['ok'] for r in own)} of {len(own)}; wrong ones that are not: "
          f"{sum(not r['ok'] for r in wrong)} of {len(wrong)}")  # fmt: skip
    for key in ("turn_x", "turn_y", "turn_z", "shift_x", "shift_y", "shift_z"):
        held = sum(abs(r[key]) < 1.96 * r[f"{key}_sd"] for r in own)
        print(
            f"{key}: median error {np.median([abs(r[key]) for r in own]):.3f}, 95 % intervals hold {held} of {len(own)}"
        )


if __name__ == "__main__":
    main()
