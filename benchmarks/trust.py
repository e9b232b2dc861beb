#!/usr/bin/env python3
"""Whether verdict, probability and intervals hold on CTs and X-rays that had no part in choosing them."""

from __future__ import annotations

import argparse
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


def on_another_grid(path):
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
    step = max(min(spacing) * 0.75, 0.9)
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


def exposed(beam, pitch: float, look: dict, draw):
    "What the detector stores of a beam"
    import numpy as np

    from existing import READ_NOISE, blurred

    finer = len(beam) // SIZE
    beam = blurred(beam, look["blur"] * finer / pitch)  # focal spot and detector, mm
    beam = beam.reshape(SIZE, finer, SIZE, finer).mean((1, 3))
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

    from xvr.simulation import SPECTRA, transmission

    iron, iodine, soft, bone, part = extra
    beam = transmission(read, case["detector"], case["truth"].float(), SPECTRA[case["look"]["spectrum"]]).numpy()
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


def make(paths: dict, out: Path, environment: Path, plain: int, disturbed: int, simulators=SIMULATORS, every=1):
    "All X-rays of all CTs"
    from xvr.simulation import read_materials
    from xvr.volume import read_volume
    from tqdm import tqdm

    (out / "xrays").mkdir(parents=True, exist_ok=True)
    cases = []
    for ct, path in paths.items():
        volume, read, todo = read_volume(path), None, []
        for simulator in simulators:
            names = [None] * plain + [d for d in DISTURBANCES for _ in range(disturbed)]
            some = [drawn_case(ct, path, volume, n, simulator, d) for n, d in enumerate(names) if n % every == 0]
            for case in some:
                case["centre"] = volume.centre
            cases += some
            todo += [c for c in some if not (out / "xrays" / f"{c['name']}.json").exists()]
        foreign = [c for c in todo if c["simulator"] == "rtk"]
        own = [c for c in todo if c["simulator"] == "ours"]
        if own:
            read = read_materials(path)
        for case in tqdm(own, desc=f"{ct} ours"):
            write(case, out, lambda extra: seen_by_ours(case, read, extra), SIZE)
        if foreign:
            project_and_write(ct, path, foreign, out, environment)
    return cases


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
        for line in tqdm(child.stdout, total=len(views), desc=f"{ct} rtk"):
            if case := group.get(line.strip()):
                soft, bone = np.load(line.strip()).astype("f8")
                write(case, out, lambda extra: through(soft, bone, case["look"], extra), SIZE * OVERSAMPLING)
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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["make"])
    parser.add_argument("--cts", type=Path, required=True)
    parser.add_argument("--more", type=Path, nargs="*", default=[])
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--simulators", nargs="*", default=SIMULATORS)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--plain", type=int, default=24)
    parser.add_argument("--disturbed", type=int, default=3)
    parser.add_argument("--outpath", type=Path, default=Path("trust-run"))
    parser.add_argument("--environment", type=Path)
    asked = parser.parse_args()
    paths = read_cts(asked.cts, asked.more)
    paths = {k: v for k, v in paths.items() if not asked.only or k in asked.only}
    make(paths, asked.outpath, asked.environment, asked.plain, asked.disturbed, asked.simulators, asked.every)


if __name__ == "__main__":
    if sys.argv[1:] == ["--project"]:
        project(json.load(sys.stdin))
    else:
        main()
