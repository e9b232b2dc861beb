"""What is not rendering, on a device that is not there: nothing mixes devices, and a step waits for few numbers

tests/test_devices.py starts it: a device is registered for the whole process."""

import os
from functools import partial

import pytest
import SimpleITK as sitk
import torch
from pretended import THERE, Kernels, pretending
from test_devices import RANGES, SMALL

from xvr import batch, commands, models, renderer, training
from xvr.batch import Files, register_files
from xvr.commands import finetune, train
from xvr.detector import Detector
from xvr.initialisers import Starts, from_dicom, from_model, from_result, search
from xvr.losses import Losses
from xvr.models import Network, new_network
from xvr.optimisers import Adam, GaussNewton, Structure
from xvr.phantom import grid_affine, thorax, voxelise
from xvr.picker import PosePicker
from xvr.pose import Pose
from xvr.registration import MultiView, Structures, register, register_together
from xvr.renderer import render
from xvr.sampling import Views
from xvr.simulation import read_materials, simulate_files
from xvr.training import Run, Schedule, make_patient
from xvr.volume import make_volume
from xvr.watching import Wandb, Watch
from xvr.xray import Xray, read_xray

DETECTOR = Detector(1020, 64, 6.0, reverse_x_axis=True)
POSE, START = Pose.from_euler([[5.0, 3, 1]], [[3.0, -800, 5]]), Pose.from_euler([[8.0, 1, 0]], [[10.0, -810, 0]])


@pytest.fixture(scope="module")
def volume():
    affine = grid_affine((48, 48, 48), 9.0)
    density = voxelise(thorax(), (48, 48, 48), affine, samples=1)
    return make_volume(density, affine, (density > 0.3).long())


@pytest.fixture
def there(monkeypatch):
    "Kernels of the pretended device; its generators are the CPU's"
    generator, fused = torch.Generator, renderer._fused
    monkeypatch.setattr(renderer, "_FUSED", (*renderer._FUSED, THERE.type))
    monkeypatch.setattr(renderer, "_fused", lambda device: Kernels() if device == THERE.type else fused(device))
    monkeypatch.setattr(torch, "Generator", lambda *device: generator())
    monkeypatch.setattr(training, "pick_device", lambda device: THERE)


def same(ours, theirs):
    return (ours.final.matrix - theirs.final.matrix).abs().max() < 1e-3 and torch.allclose(
        ours.covariance, theirs.covariance, rtol=1e-3
    )


@pytest.mark.parametrize(
    "optimizer",
    [GaussNewton(rows=(16, 64)), GaussNewton(rows=(32,), similarity="mi+gncc"), Adam(scales=(2,), max_n_itrs=3)],
    ids=["plan", "mi+gncc", "adam"],
)
def test_registration(volume, there, optimizer):
    weight = torch.ones(1, 1, 64, 64)
    weight[..., :10] = 0
    xray = Xray(render(volume, DETECTOR, POSE), DETECTOR, weight=weight)
    expected = register(xray, volume, START, optimizer=optimizer)
    with pretending() as waits:
        result = register(xray, volume.to(THERE), START, optimizer=optimizer)
        assert result.final.matrix.device.type == result.images["final"].device.type == "cpu"
    assert same(result, expected)
    steps = len(expected.trajectory)
    assert sum(waits.values()) < 100 + 16 * steps, (steps, waits)


def test_registration_of_two_views(volume, there):
    side = Pose.from_euler([[80.0, 0, 0]], [[0.0, 0, 0]]) @ POSE
    xrays = [Xray(render(volume, DETECTOR, p), DETECTOR) for p in (POSE, side)]
    options = dict(slack=(2.0, 10.0), optimizer=GaussNewton(rows=(32,)))
    expected = register_together(xrays, volume, [POSE, side], **options)
    with pretending():
        results = register_together(xrays, volume.to(THERE), [POSE, side], **options)
    assert all(map(same, results, expected))


@pytest.mark.parametrize(
    "part", [lambda v: Structure(whole=v, poses=(POSE,)), lambda v: Structure()], ids=["the rest behind it", "alone"]
)
def test_registration_of_a_part(volume, there, part):
    xray, optimizer = Xray(render(volume, DETECTOR, POSE), DETECTOR), GaussNewton(rows=(32,))
    expected = register(xray, volume, POSE, structure=part(volume), optimizer=optimizer)
    with pretending():
        result = register(xray, volume.to(THERE), POSE, structure=part(volume.to(THERE)), optimizer=optimizer)
    assert same(result, expected)


def test_picker(volume, there):
    weight = torch.ones(1, 1, 64, 64)
    weight[..., :10] = 0
    xray = Xray(render(volume, DETECTOR, POSE), DETECTOR, weight=weight)
    expected, files = PosePicker(volume, xray, pose=START), []
    with pretending():
        picker = PosePicker(volume.to(THERE), xray, pose=START)
        for p in (expected, picker):
            p.shift(3, 2, 1)
            p.turn(1, 2, 3)
            files.append(p.jpeg())
            p.refine()
        picker.preset("AP")
        picker.undo()
        assert picker.similarity() == pytest.approx(expected.similarity(), abs=1e-3)
    assert files[0] == files[1] and picker.numbers == pytest.approx(expected.numbers, abs=1e-2)


def test_simulation(there, tmp_path):
    affine = grid_affine((48, 48, 48), 9.0)
    materials = read_materials(
        make_volume(voxelise(thorax(), (48, 48, 48), affine, samples=1), affine, hu_range=(-1000.0, 1000.0))
    )
    with pretending():
        files = simulate_files(materials.to(THERE), POSE, DETECTOR, tmp_path / "there")
    here = simulate_files(materials, POSE, DETECTOR, tmp_path / "here")
    assert torch.equal(*(read_xray(f[0]).image for f in (files, here)))


def test_training(volume, there):
    views = Views(**RANGES, sdd=1020, height=32, delx=12.0, reverse_x_axis=True)
    with pretending() as waits:
        torch.manual_seed(0)
        model = new_network(Network(model_name="test_resnet"), views)
        losses = Losses(weight_geo=0.1, weight_dice=1.0, weight_mvc=0.1)
        patient, schedule = make_patient(volume, views.spacing, None), Schedule(batch_size=8, n_epochs=1)
        run = Run(model, [patient], views, losses=losses, schedule=schedule)
        for _ in range(8):
            run.training_step()
        waits.clear()
        run.training_step()
        assert run.recent[-1]["loss"] > 0 and sum(waits.values()) <= 12, waits


@pytest.fixture
def commanded(there, case, monkeypatch, tmp_path):
    "Registers an X-ray from files, where `auto` finds a GPU"
    # it asks tensors for addresses, which these have not
    monkeypatch.setattr(commands, "check_memory", lambda run: None)
    for module in (batch, commands, models, training):
        monkeypatch.setattr(module, "pick_device", lambda device: THERE)
    return partial(register_files, case.xrays[:1], case.ct, files=Files(verbose=0))


@pytest.fixture
def on_the_cpu(commanded, monkeypatch):
    "Registers as `commanded` does, where `auto` finds no GPU"

    def register(*args, **options):
        with monkeypatch.context() as here:
            here.setattr(batch, "pick_device", lambda device: torch.device("cpu"))
            return commanded(*args, **options)

    return register


def test_what_commands_do(commanded, on_the_cpu, case, tmp_path):
    "Training, finetuning and registration from files"
    short = dict(optimizer=GaussNewton(rows=(16,)))
    expected = on_the_cpu(from_dicom(), tmp_path / "here", **short)
    with pretending():
        train(case.ct, tmp_path / "model", **SMALL, watch=Watch(val_views=3))
        last, schedule = tmp_path / "model/last.pth", Schedule(batch_size=4, n_epochs=1, n_batches_per_epoch=2)
        finetune(case.ct, tmp_path / "tuned", last, schedule=schedule, wandb=Wandb(no_wandb=True))
        commanded(from_model(last, antipodal=True), tmp_path / "model_only", starts=Starts(init_only=True))
        found = commanded(from_dicom(), tmp_path / "dicom", files=Files(saveimg=True, verbose=0), **short)
    assert same(found[0], expected[0]) and len(list(tmp_path.glob("*/*/result.json"))) == 3


@pytest.mark.skipif("slow" not in os.environ.get("NBDEV_FLAGS", "").split(), reason="NBDEV_FLAGS=slow pytest runs it")
def test_other_ways_to_register(commanded, on_the_cpu, case, tmp_path):
    "From files: to the end, by a search, from results, bone by bone, views together"
    bone = sitk.ReadImage(str(case.ct)) > 300
    sitk.WriteImage(bone, str(tmp_path / "bone.nii.gz"))
    expected = on_the_cpu(from_dicom(), tmp_path / "here")
    with pretending():
        found = commanded(from_dicom(), tmp_path / "dicom")
        commanded(search(n_poses=200), tmp_path / "search", starts=Starts(2))
        commanded(from_dicom(), tmp_path / "adam", optimizer=Adam(max_n_itrs=3))
        commanded(from_result(tmp_path / "dicom"), tmp_path / "restart")
        each = Structures(tmp_path / "bone.nii.gz", [1], each=True)
        commanded(from_dicom(), tmp_path / "each", structures=each)
        together = dict(multiview=MultiView(together=True), files=Files(verbose=0))
        register_files(case.xrays, case.ct, from_dicom(), tmp_path / "together", **together)
    assert same(found[0], expected[0]) and len(list(tmp_path.glob("*/*/result.json"))) == 9
