#!/usr/bin/env python3
"""What moves the optimum, effect by effect: how far each shifts the pose, along each axis, beside the deviation stated.

    python benchmarks/effects.py --cts FOLDER              # 29 effects on four views of four CTs
    python benchmarks/effects.py --cts FOLDER --views 1    # a short trial
    python benchmarks/effects.py summary                   # the tables of the CSV once more

Each X-ray is simulated from a CT by `xvr.simulation` with all effects off (one energy, no scatter, no noise, no blur,
16 bits; Siddon's method at the CT's full resolution), except for the one that its row names, and registered with that
CT from a start that is 3 degrees about each axis, 8 mm along x and y and 20 mm along the beam off, the same for all.
Files are written as DICOM and read as any X-ray. `rendering` is no X-ray: it is the image that the registration itself
draws. `all` is what `xvr simulate` does if nothing is set. What is shown is a window between two shares of the range of
values, of which the narrower is the narrowest, and the wider the middle, of those that `xvr.augmentation` draws.

`shift_` is the final pose less the true one along an axis of the camera (degrees about x, y and the beam, mm along x, y
and the beam), `deviation_` the standard deviation that the result states for it, `ratio_` the one divided by the other,
and `optimum_` the shift before the registration's last step. `error_mm` is the mTRE at points of bone; `moved_mm` is
the same from the final pose of the ideal X-ray of that view in place of the true pose, so it is due to the effect
alone. If that is more than 5 mm, the registration is repeated from the true pose, and ends `from_truth_mm` off: that
tells an optimum that moved from one that was not found. `flesh` is how far flesh was found from where the CT has it, in
standard deviations, 0 if it was not let move; `as_one_mm` is where the pose ends if the CT is taken as one body.

A wrong source-to-detector distance, pixel size or principal point changes the scale or place of everything in the
image, and the image does not show it. `demanded_` is the shift after which the wrong detector projects the points of
bone in the picture where the right one did, as nearly as it can (least squares). If everything is 1 % larger than it
was, the patient has to be 1 % of its distance, 8 mm, nearer to the source. `less demanded` in the tables is what is
left of the shift.

FOLDER holds abdopelvis_tcga-ov, abdopelvis_totalseg_3mm, chest_cptac-pda and chest_fnndsc (.nii.gz); `--more` adds
others. Written to benchmarks/effects.csv. In nbs/28_registration.ipynb, `_LEAST_SHOWN` was chosen after a look at it,
and that flesh is called aside by its motion across the beam after a look at such X-rays of fnndsc and tcga (and heads).
"""

from __future__ import annotations

import argparse
import csv
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from existing import write_rows
from many import provenance
from scipy import ndimage
from trust import SHORT, TURN, disturbance

from xvr.augmentation import EFFECTS as LOOKS
from xvr.detector import Detector, pose_from_angles, project
from xvr.evaluation import _off_truth
from xvr.metrics import mtre
from xvr.optimisers import GaussNewton, camera_axes
from xvr.pose import Pose
from xvr.registration import register
from xvr.renderer import render
from xvr.simulation import _SPECTRA, Exposure, expose, read_materials, transmission, write_dicom
from xvr.volume import Volume, bone_points, read_volume
from xvr.xray import Reading, Xray, read_xray

HERE = Path(__file__).resolve().parent
CTS = "chest_fnndsc", "chest_cptac-pda", "abdopelvis_tcga-ov", "abdopelvis_totalseg_3mm"
ANGLES = (0, 0), (35, 10), (90, 0), (-50, -15)  # Primary and secondary, degrees
DETECTOR = Detector(1020, 448, 400 / 448, orientation="AP", reverse_x_axis=True)
FAR = 800.0  # Source to the CT's centre, mm
START = 3.0, -3.0, 3.0, 8.0, -8.0, 20.0  # Degrees about, and mm along, the camera's axes
IDEAL = Exposure("70keV", scatter=0, photons=0, blur=0, bits=16)
TOP = 2**16 - 1
LOST = 5.0  # mm of mTRE from where the ideal X-ray ends; a result that is farther off is repeated from the true pose
# Attenuation at 70 keV, cm²/g, of iron, soft tissue and bone (NIST)
IRON, SOFT, BONE = 0.8, 0.193, 0.26


# Other CTs of the same patient


def thick(volume: Volume, mm: float = 6.0) -> Volume:
    "The mean of two or three slices in place of each"
    grid = volume.world_from_voxel.clone()
    n = max(2, round(mm / volume.spacing[2].item()))
    count = len(volume.density) // n
    density = volume.density[: count * n].unflatten(0, (count, n)).mean(1)
    grid[:3, 3] += (n - 1) / 2 * grid[:3, 2]
    grid[:3, 2] *= n
    return replace(volume, density=density, world_from_voxel=grid, labels=None, _levels={})


def turned(volume: Volume) -> Volume:
    "The CT interpolated by cubic splines on a grid of the same spacing that is turned"
    turn = Pose.from_euler(torch.tensor([[4.0, 6.0, 9.0]]), torch.zeros(1, 3)).matrix[0, :3, :3].double()
    size, step = torch.tensor(volume.shape) * volume.spacing, volume.spacing
    wide = (turn.abs().mT @ size / step).ceil() + 1
    grid = torch.eye(4, dtype=torch.float64)
    grid[:3, :3] = turn * step
    grid[:3, 3] = -grid[:3, :3] @ (wide - 1) / 2
    there = (volume.voxel_from_world @ grid).numpy()
    matrix, shape = there[:3, :3][::-1, ::-1], wide.int().tolist()[::-1]
    values = ndimage.affine_transform(volume.density.numpy(), matrix, there[:3, 3][::-1], shape, order=3)
    density = torch.from_numpy(values).clamp(0, 1)
    return replace(volume, density=density, world_from_voxel=grid, labels=None, _levels={})


def with_moved_flesh(volume: Volume, shift: Callable) -> Volume:
    "Bones (above 150 HU, and the gaps in them) stay, all else moves, and has no gaps where bones were"
    low, high = volume.hu_range
    values = volume.density.numpy()
    bone = ndimage.binary_closing(values > (150 - low) / (high - low), iterations=2)
    near = lambda values: ndimage.gaussian_filter(values, (6 / volume.spacing).tolist()[::-1])
    around = near(values * ~bone) / near((~bone).astype("f4")).clip(1e-3)
    moved = shift(np.where(bone, around, values).astype("f4"), volume.spacing.numpy()[::-1])
    return replace(volume, density=torch.from_numpy(np.where(bone, values, moved)), labels=None, _levels={})


def along(values: np.ndarray, spacing: np.ndarray, mm: float = 6.0) -> np.ndarray:
    "Moved along the patient"
    steps, last = round(mm / spacing[0]), len(values) - 1
    return values[(np.arange(len(values)) - steps).clip(0, last)]


def deformed(values: np.ndarray, spacing: np.ndarray, seed: int, mm: float = 4.0, length: float = 40.0) -> np.ndarray:
    "Moved by a smooth field: as a whole by 2.5 mm along each axis, and 4 mm otherwise in every 40 mm (deviations)"
    draw, step = np.random.default_rng([seed, 6]), length / spacing
    coarse = [max(4, math.ceil(n / s) + 3) for n, s in zip(values.shape, step)]
    at = np.meshgrid(*(np.arange(n) / s + 1 for n, s in zip(values.shape, step)), indexing="ij")
    place = [*np.meshgrid(*(np.arange(n, dtype="f4") for n in values.shape), indexing="ij")]
    for axis, size in enumerate(spacing):
        waves = ndimage.gaussian_filter(draw.standard_normal(coarse), 1.0)
        moved = draw.normal(0, 2.5) + mm / waves.std() * ndimage.map_coordinates(waves, at, order=3, mode="nearest")
        place[axis] = place[axis] - moved.astype("f4") / size
    return ndimage.map_coordinates(values, place, order=1, mode="nearest")


# Effects


@dataclass(frozen=True)
class Effect:
    "One way in which an X-ray or a CT is not what the registration draws"

    exposure: Exposure = IDEAL
    seen: str = "own"  # The CT that is X-rayed
    known: str = "own"  # The CT that is registered
    between: str | None = None  # What is in the beam besides the patient, of `trust.disturbance`
    stored: Callable = lambda image: image  # On what the detector stores
    linearize: bool | None = None  # As in `Reading`
    xray: Callable = lambda xray: xray  # On what is read
    detector: dict | None = None  # What is wrong about the detector


def displayed(name: str, **values) -> Callable:
    "A look of `xvr.augmentation`, as a function of an X-ray"
    look = {key: torch.tensor([value]) for key, value in values.items()}

    def change(xray: Xray) -> Xray:
        low, high = xray.image.min(), xray.image.max()
        return replace(xray, image=LOOKS[name].apply((xray.image - low) / (high - low), look))

    return change


def saturated(image):
    "The brightest tenth of the pixels all at the detector's largest value"
    return (image * (TOP / image.quantile(0.9))).round().clamp(max=TOP)


with_ = lambda **changes: Effect(replace(IDEAL, **changes))
EFFECTS = {
    "ideal": Effect(),
    "rendering": Effect(),
    "spectrum 80 kV": with_(spectrum="80kV"),
    "scatter 10 %": with_(scatter=0.1),
    "scatter 50 %": with_(scatter=0.5),
    "noise, 20000 photons": with_(photons=20000.0),
    "noise, 2000 photons": with_(photons=2000.0),
    "blur 0.2 mm": with_(blur=0.2),
    "blur 1 mm": with_(blur=1.0),
    "8 bits": with_(bits=8),
    "all": Effect(Exposure()),
    "saturated, a tenth": Effect(stored=saturated),
    "gamma 0.5": Effect(xray=displayed("contrast", gamma=0.5)),
    "shown: 12 to 82 %": Effect(xray=displayed("saturation", low=0.125, high=0.825)),
    "shown: 25 to 65 %": Effect(xray=displayed("saturation", low=0.25, high=0.65)),
    "no logarithm": Effect(linearize=False),
    "CT of 6 mm slices": Effect(known="thick"),
    "CT on a turned grid": Effect(known="turned"),
    "flesh moved 6 mm": Effect(seen="flesh"),
    "flesh deformed": Effect(seen="deformed"),
    "all, flesh deformed": Effect(Exposure(), seen="deformed"),
    "arm": Effect(between="arm"),
    "rod of 12 pixels": Effect(between="rod"),
    "round field": Effect(between="round"),
    "collimator 60 mm": with_(collimator=60.0),
    "distance 1 % long": Effect(detector=dict(sdd=DETECTOR.sdd * 1.01)),
    "pixel 1 % large": Effect(detector=dict(delx=DETECTOR.delx * 1.01, dely=DETECTOR.dely * 1.01)),
    "beam 5 mm off in x": Effect(detector=dict(x0=5.0)),
    "beam 5 mm off in y": Effect(detector=dict(y0=5.0)),
}


def rounded(pose: Pose) -> Pose:
    return Pose(pose.matrix.float())


@dataclass(eq=False)
class View:
    "One camera, and the same patient as other CTs"

    ct: str
    number: int
    pose: Pose
    points: torch.Tensor
    volumes: dict[str, Volume]
    materials: dict
    clear: dict = field(default_factory=dict)  # Transmission of the patient alone, by CT and spectrum

    def beam(self, effect: Effect) -> torch.Tensor:  # (H, W), 1 in the open beam
        "The share of the beam that passes"
        key = seen, spectrum = effect.seen, effect.exposure.spectrum
        if key not in self.clear:
            patient = self.materials[seen], DETECTOR, rounded(self.pose)
            self.clear[key] = transmission(*patient, _SPECTRA[spectrum])
        draw = np.random.default_rng([self.number, 5])
        iron, _, soft, bone, part = map(torch.from_numpy, disturbance(effect.between, DETECTOR.height, draw))
        return self.clear[key] * (part * torch.exp(-(IRON * iron + SOFT * soft + BONE * bone))).float()

    def taken(self, name: str) -> Xray:
        "The X-ray with one effect"
        effect = EFFECTS[name]
        if name == "rendering":
            return Xray(render(self.volumes["own"], DETECTOR, rounded(self.pose)), DETECTOR)
        stored = effect.stored(expose(self.beam(effect), DETECTOR, effect.exposure, seed=self.number))
        with tempfile.TemporaryDirectory() as folder:
            write_dicom(file := Path(folder) / "xray.dcm", stored, DETECTOR, self.pose, effect.exposure)
            xray = effect.xray(read_xray(file, Reading(orientation="AP", linearize=effect.linearize)))
        return replace(xray, detector=replace(xray.detector, **effect.detector or {}))

    def start(self) -> Pose:
        off = torch.tensor(START, dtype=torch.float64) / torch.tensor([TURN] * 3 + [1.0] * 3, dtype=torch.float64)
        return self.pose.perturb((camera_axes(DETECTOR, self.pose)[0] @ off)[None])

    def demanded(self, wrong: Detector) -> torch.Tensor:  # As trust.SHORT, degrees and mm, (6,)
        "The shift after which the wrong detector projects the points in the picture where the right one did"
        axes, pose = camera_axes(DETECTOR, self.pose)[0], self.pose
        place = project(DETECTOR, pose, self.points[None])[0]
        points = self.points[((place > 0) & (place < DETECTOR.height - 1)).all(-1)]
        step = torch.diag(torch.tensor([1e-5] * 3 + [1e-3] * 3, dtype=torch.float64))
        at = lambda p: project(wrong, p, points[None])
        aim = project(DETECTOR, self.pose, points[None])
        for _ in range(5):
            slopes = (at(pose.perturb(step @ axes.mT)) - at(pose)).flatten(1).mT / step.diagonal()
            found = torch.linalg.lstsq(slopes, (aim - at(pose)).flatten()[:, None]).solution
            pose = pose.perturb((axes @ found).mT)
        return _off_truth(DETECTOR, pose, self.pose)[0]


def views_of(ct: str, path: Path, count: int) -> list[View]:
    own = read_volume(path)
    volumes = dict(own=own, thick=thick(own), turned=turned(own))
    materials = dict(own=read_materials(own), flesh=read_materials(with_moved_flesh(own, along)))
    points = bone_points(own).double()
    poses = [Pose(pose_from_angles(*angles, FAR, "AP").matrix.double()) for angles in ANGLES[:count]]
    seeds = (int.from_bytes(ct.encode()[:6]) + n for n in range(len(poses)))
    bent = (dict(deformed=read_materials(with_moved_flesh(own, partial(deformed, seed=seed)))) for seed in seeds)
    return [View(ct, n, pose, points, volumes, materials | b) for (n, pose), b in zip(enumerate(poses), bent)]


def rows_of(view: View, names: list[str]):
    "A row for each effect"
    ideal = None
    for name in dict.fromkeys(["ideal", *names]):
        xray, start = view.taken(name), view.start()
        result = register(xray, view.volumes[EFFECTS[name].known], rounded(start))
        final, optimum = (Pose(p.matrix.double()) for p in (result.final, result.trajectory[-2]["poses"][0]))
        ideal = ideal or final
        distance = lambda pose, other: mtre(pose, other, view.points).item()
        off = _off_truth(DETECTOR, final, view.pose)[0]
        stated = torch.tensor([*result.deviation.values()], dtype=torch.float64)
        axes = dict(shift=off, deviation=stated, ratio=off / stated, demanded=view.demanded(xray.detector))
        axes["optimum"] = _off_truth(DETECTOR, optimum, view.pose)[0]
        row = dict(ct=view.ct, view=view.number, effect=name, start_mm=distance(start, view.pose))
        row |= dict(error_mm=distance(final, view.pose), moved_mm=distance(final, ideal))
        row |= dict(verdict=result.verdict, probability=result.probability, from_truth_mm=math.nan)
        row |= dict(flesh=result.evidence.get("flesh", 0.0), as_one_mm=math.nan)
        if "flesh" in name:
            as_one = GaussNewton()(view.volumes["own"], [xray], [rounded(start)]).poses[0]
            row["as_one_mm"] = distance(Pose(as_one.matrix.double()), view.pose)
        if row["moved_mm"] > LOST and not EFFECTS[name].detector:
            again = register(xray, view.volumes[EFFECTS[name].known], rounded(view.pose))
            row["from_truth_mm"] = distance(Pose(again.final.matrix.double()), view.pose)
        row |= {f"{what}_{axis}": v for what, values in axes.items() for axis, v in zip(SHORT, values.tolist())}
        yield {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in row.items()}


# Tables


def read(file: Path) -> list[dict]:
    words = "ct", "effect", "verdict", "versions", "commit", "date"
    with open(file, newline="") as stream:
        return [{k: v if k in words else float(v) for k, v in row.items()} for row in csv.DictReader(stream)]


def columns(rows: list[dict], name: str) -> np.ndarray:  # (rows, axes)
    return np.array([[row[f"{name}_{axis}"] for axis in SHORT] for row in rows])


def groups(rows: list[dict]):
    "Each effect with its rows, shifts and deviations; what a wrong geometry demands is subtracted in a second line"
    for name in dict.fromkeys(row["effect"] for row in rows):
        some = [row for row in rows if row["effect"] == name]
        shift, stated, demanded = (columns(some, k) for k in ("shift", "deviation", "demanded"))
        yield name, some, shift, stated
        if EFFECTS[name].detector:
            yield "  less demanded", None, shift - demanded, stated


def summary(rows: list[dict]):
    "Print how far each effect shifts the pose, and how that compares with the deviation stated"
    known = [row for row in rows if not math.isnan(row["deviation_depth"])]
    cases = len({(row["ct"], row["view"]) for row in rows})
    print(f"Shift from the true pose, median and largest of {cases} X-rays; in: share of shifts")
    print(
        "along six axes within 1.96 deviations (where the pose has not failed); mTRE and\n"
        "moved: medians; ok: verdicts\n"
    )
    print(f"{'':22}{'across mm':>12}{'depth mm':>14}{'turns °':>12}{'in':>5}{'mTRE':>6}{'moved':>6}{'ok':>3}")
    for name, some, shift, stated in groups(rows):
        sizes = np.hypot(*shift[:, 3:5].T), abs(shift[:, 5]), np.linalg.norm(shift[:, :3], axis=1)
        cells = "".join(
            f"{np.median(s):{w}.2f}{s.max():{w}.{2 - (s.max() >= 99.5)}f}" for s, w in zip(sizes, (6, 7, 6))
        )
        ratio = abs(shift / stated)[np.isfinite(stated).all(1)]
        line = f"{name:22}{cells}" + (f"{(ratio < 1.96).mean():5.0%}" if len(ratio) else f"{'–':>5}")
        if some:
            median = lambda key: np.median([row[key] for row in some])
            line += f"{median('error_mm'):6.2f}{median('moved_mm'):6.2f}{sum(r['verdict'] == 'ok' for r in some):3d}"
        print(line)
    print("\nMedian of |shift| over the deviation stated (0.67 if exact); z is the beam\n")
    print(
        f"{'':22}" + "".join(f"{axis:>9}" for axis in ("about x", "about y", "about z", "along x", "along y", "depth"))
    )
    for name, _, shift, stated in groups(known):
        print(f"{name:22}" + "".join(f"{value:9.2f}" for value in np.median(abs(shift / stated), axis=0)))
    print("\nBeyond 5 mm: CT, view, effect, mTRE, verdict, and mTRE from the true pose\n")
    for row in rows:
        if not math.isnan(row["from_truth_mm"]):
            line = "{ct:24}{view:2.0f}  {effect:21}{error_mm:6.1f}  {verdict:9}{from_truth_mm:6.1f}"
            print(line.format(**row))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=["measure", "summary"], default="measure")
    parser.add_argument("--cts", type=Path, help="the folder")
    parser.add_argument("--only", nargs="+", default=CTS, help="CTs of the folder, by name")
    parser.add_argument("--more", type=Path, nargs="*", default=[], help="further CTs, NIfTI")
    parser.add_argument("--views", type=int, default=len(ANGLES), help=f"of each CT, at most {len(ANGLES)}")
    parser.add_argument("--effects", nargs="+", choices=[*EFFECTS], default=[*EFFECTS], metavar="EFFECT")
    parser.add_argument("--table", type=Path, default=HERE / "effects.csv")
    asked = parser.parse_args()
    if asked.part == "measure":
        if not asked.cts and not asked.more:
            parser.error("give --cts FOLDER, or --more with CTs")
        paths = [asked.cts / f"{name}.nii.gz" for name in asked.only] if asked.cts else []
        rows, about = [], provenance()
        for path in [*paths, *asked.more]:
            for view in views_of(path.name.split(".")[0], path, asked.views):
                for row in rows_of(view, asked.effects):
                    rows.append(row | about)
                    print("{ct} {view} {effect}: {error_mm:.2f} mm, {verdict}".format(**row), flush=True)
                write_rows(rows, asked.table)
    summary(read(asked.table))


if __name__ == "__main__":
    main()
