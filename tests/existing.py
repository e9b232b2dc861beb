"""Checkpoints and X-rays as the existing xvr has them, and what it answers (`data/existing.json`).

The answers were made with its own classes: unzip its wheel (`pip download --no-deps xvreg==0.1.0`) and run
`PYTHONPATH=WHEEL python tests/existing.py`. The tests need only the answers.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk
import torch

DATA = Path(__file__).with_name("data")
ANSWERS = DATA / "existing.json"
HEIGHT = 64
CONFIG = dict(
    volpath="cts", maskpath=None, outpath="models", warp=None, invert=False, ckptpath=None, batch_size=116, lr=2e-4,
    sdd=1020.0, height=HEIGHT, delx=6.0, orientation="AP", reverse_x_axis=False, model_name="test_resnet",
    norm_layer="batchnorm2d", parameterization="euler_angles", convention="ZXY", unit_conversion_factor=1000.0,
) | {f"{name}{end}": value for name in ("alpha", "beta", "gamma", "tx", "tz") for end, value in dict(min=-30.0, max=30.0).items()}  # fmt: skip
CONFIG |= dict(tymin=700.0, tymax=900.0)

# What differs from CONFIG
_KINDS = "axis_angle euler_angles se3_log_map quaternion rotation_6d rotation_9d rotation_10d quaternion_adjugate"
NETWORKS = {kind: dict(parameterization=kind) for kind in _KINDS.split()}
NETWORKS |= {"PA": dict(orientation="PA"), "XYZ": dict(convention="XYZ")}
NETWORKS |= {f"{kind}, no convention": dict(parameterization=kind, convention=None) for kind in ("rotation_6d",)}
NETWORKS |= {f"norm {n}": dict(norm_layer=n) for n in (None, "default", "batchnorm", "groupnorm1", "layernorm2d")}
NETWORKS |= {"resnet18 groupnorm": dict(model_name="resnet18", norm_layer="groupnorm")}
NETWORKS |= {f"convnext {n}": dict(model_name="test_convnext", norm_layer=n) for n in (None, "batchnorm", "default")}

# Rows, columns, sdd, pixel size, offsets of the detector
XRAYS = {
    "the model's": (HEIGHT, HEIGHT, 1020.0, 6.0, 0.0, 0.0),
    "finer": (256, 256, 1020.0, 1.5, 0.0, 0.0),
    "smaller": (48, 48, 1020.0, 6.0, 0.0, 0.0),
    "much smaller, odd": (91, 91, 1020.0, 2.05, 0.0, 0.0),
    "wider": (120, 193, 1100.0, 2.5, 0.0, 0.0),
    "higher, aside": (180, 143, 980.0, 2.5, 17.0, -8.0),
    "larger": (200, 200, 1020.0, 3.0, 0.0, 0.0),
}


def fill(state: dict) -> dict:
    "The weights of a network by a formula, so that none need be stored"
    for name, values in state.items():
        if "running" in name:  # statistics of batch normalisation
            values.copy_(torch.linspace(0.8, 1.2, len(values)) - (1.0 if "mean" in name else 0.0))
        if not values.is_floating_point() or values.dim() < 2:
            continue  # normalisation and biases as they are made: 1, 0
        steps = torch.arange(1, values.numel() + 1, dtype=torch.float64)
        wave = torch.sin(steps * 12.9898 + len(name)) * 43758.5453
        values.copy_(((wave - wave.floor() - 0.5) * 3 / values[0].numel() ** 0.5).reshape(values.shape))
        if "regression" in name:
            values.mul_(0.2 if "rot" in name else 0.05)
    return state


def picture(rows: int, columns: int) -> torch.Tensor:
    "An image in [0, 1], (1, 1, rows, columns)"
    y, x = torch.meshgrid(torch.linspace(-1, 1, rows), torch.linspace(-1, 1, columns), indexing="ij")
    image = 2 + torch.sin(5 * x + 1) * torch.cos(4 * y) + 0.4 * torch.sin(13 * x * y) + x / 2
    return ((image - image.min()) / (image.max() - image.min()))[None, None]


def write_warp(path) -> str:
    "A rigid transform in a file, from a template to a CT"
    turn = sitk.Euler3DTransform([5.0, -3, 8], 0.2, -0.1, 0.3, [30.0, -40, 12])
    rigid = sitk.AffineTransform(turn.GetMatrix(), turn.GetTranslation(), turn.GetCenter())
    sitk.WriteTransform(rigid, str(path))
    return str(path)


# Networks whose answers are compared through the command, on these X-rays
COMMANDS = {
    f"{kind} {orientation}": dict(parameterization=kind, orientation=orientation)
    for kind in ("euler_angles", "quaternion_adjugate", "se3_log_map")
    for orientation in ("AP", "PA")
}
TAKEN = ("the model's", "wider", "higher, aside")


def write_dicom(path, name: str) -> str:
    "An X-ray of `XRAYS` as a file, its values logarithms already, so that both read the same; without an offset"
    rows, columns, sdd, delx, *_ = XRAYS[name]
    tags = pydicom.dcmread(DATA / "xrays/xray_000.dcm")
    tags.Rows, tags.Columns, tags.ImagerPixelSpacing, tags.DistanceSourceToDetector = rows, columns, [delx, delx], sdd
    tags.PixelData = (3000 * picture(rows, columns)[0, 0].numpy()).round().astype(np.uint16).tobytes()
    tags.PixelIntensityRelationship, tags.PixelIntensityRelationshipSign = "LOG", -1
    del tags.EstimatedRadiographicMagnificationFactor, tags.PatientOrientation
    tags.save_as(path)
    return str(path)


def _network(config: dict):
    "A network of the existing xvr"
    from xvr.model.network import PoseRegressor

    names = ("model_name", "parameterization", "convention", "norm_layer", "height", "unit_conversion_factor")
    torch.manual_seed(0)
    model = PoseRegressor(**{k: config[k] for k in names}).eval()
    return _set(model, config)


def _set(model, config: dict, away: float = 800.0):
    "The network with weights by the formula, and biases near a pose of a C-arm"
    from diffdrr.pose import convert

    fill(model.state_dict())
    pose = convert(torch.tensor([[0.3, -0.2, 0.1]]), torch.tensor([[10.0, away, -20]]), parameterization="euler_angles", convention="ZXY")  # fmt: skip
    rot, xyz = pose.convert(config["parameterization"], config["convention"])
    model.rot_regression.bias.data.copy_(rot.flatten())
    model.xyz_regression.bias.data.copy_(xyz.flatten() / config["unit_conversion_factor"])
    return model


def _shim():
    "The CPU in place of a GPU"
    move = torch.nn.Module.to
    torch.nn.Module.cuda = torch.Tensor.cuda = lambda self, *_: self
    torch.nn.Module.to = lambda self, *a, **k: move(self, *("cpu" if x == "cuda" else x for x in a), **k)
    torch.compile = lambda module, *_, **__: module


def _registered(folder: Path) -> dict:
    "What its commands answer: its trainer writes the checkpoints, its registration reads them and the X-rays"
    from xvr.model import Trainer
    from xvr.register import ModelPose, Register

    ct, found = str(DATA / "ct.nii.gz"), {}
    unknown = ("ckptpath", "volpath", "outpath")
    for name, changes in COMMANDS.items():
        config = {k: v for k, v in (CONFIG | changes).items() if k not in unknown}
        trainer = Trainer(volpath=ct, outpath=str(folder), n_total_itrs=1, pretrained=False, **config)
        away = 800.0 if config["orientation"] == "AP" else -800.0
        _set(trainer.model, config, away)
        trainer.model_number = 0
        trainer._checkpoint(0)
        heads = {head: getattr(trainer.model, f"{head}_regression").bias.tolist() for head in ("rot", "xyz")}
        start = ModelPose(ckpt=str(folder / "0000.pth"), device="cpu", volume=ct)
        register = Register(initializer=start, imagepath=ct, device="cpu")
        answer = lambda x: register(write_dicom(folder / "x.dcm", x), linearize=False, init_only=True).init_pose
        found[name] = heads | {x: answer(x).matrix[0].tolist() for x in TAKEN}
    return found


def _answers() -> dict:
    from xvr.model.inference import _correct_pose, predict_pose

    _shim()
    intrinsics = lambda x: dict(zip(("sdd", "delx", "dely", "x0", "y0"), (x[2], x[3], x[3], x[4], x[5])))
    networks, xrays = {}, {}
    for name, changes in NETWORKS.items():
        config = CONFIG | changes
        model, x = _network(config), XRAYS["the model's"]
        pose = predict_pose(model, config, picture(*x[:2]), **intrinsics(x))
        biases = {head: getattr(model, f"{head}_regression").bias.tolist() for head in ("rot", "xyz")}
        networks[name] = biases | dict(pose=pose.matrix[0].tolist())
    model = _network(CONFIG)
    for name, x in XRAYS.items():
        pose = predict_pose(model, CONFIG, picture(*x[:2]), **intrinsics(x))
        xrays[name] = pose.matrix[0].tolist()
    pose = predict_pose(model, CONFIG, picture(HEIGHT, HEIGHT), **intrinsics(XRAYS["the model's"]))
    with tempfile.TemporaryDirectory() as folder:
        warp = write_warp(f"{folder}/warp.tfm")
        warped = [_correct_pose(pose, warp, str(DATA / "ct.nii.gz"), invert) for invert in (False, True)]
        registered = _registered(Path(folder))
    warped = [p.matrix[0].tolist() for p in warped]
    return dict(networks=networks, xrays=xrays, warped=warped, registered=registered)


if __name__ == "__main__":
    ANSWERS.write_text(json.dumps(_answers(), indent=None) + "\n")
