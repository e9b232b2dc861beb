"Whole commands, and what they say when something is wrong. The lessons are in nbs/43_cli.ipynb."

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import av
import click
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import torch
import yaml
from click.testing import CliRunner
from PIL import Image

from xvr import __version__, cli
from xvr.batch import register_files
from xvr.conventions import XvrError
from xvr.initialisers import Starts
from xvr.metrics import mtre
from xvr.pose import Pose
from xvr.volume import bone_points, read_volume

# What the project was asked to offer, as its help was given
SEED = dict(
    re.findall(
        r"^\$ xvr (.+?) --help\n(.*?)(?=^\$|\Z)", Path(__file__).with_name("seed_help.txt").read_text(), re.M | re.S
    )
)
REGISTER = ("model", "dicom", "fixed", "restart", "search")


def xvr(*args, width=80):
    "Run a command in this process: exit code, stdout, stderr"
    result = CliRunner().invoke(
        cli.xvr, [str(a) for a in args], prog_name="xvr", terminal_width=width, max_content_width=width
    )
    return result.exit_code, result.stdout, result.stderr


def complaint(*args, code=1):
    "The one line that a command that cannot work leaves"
    got, _, err = xvr(*args)
    lines = [line for line in err.splitlines() if line.startswith("xvr: error: ")]
    assert got == code, err
    assert len(lines) == 1 and err.strip().splitlines()[-1] == lines[0], err
    assert "Traceback" not in err
    return lines[0]


def flat(text):
    return " ".join(text.split())


def every_command(group=cli.xvr, before=()):
    "Each command's words, and the command"
    for name in group.list_commands(None):
        command = group.get_command(None, name)
        yield from (
            every_command(command, (*before, name))
            if isinstance(command, click.Group)
            else [((*before, name), command)]
        )


@pytest.mark.parametrize("command", SEED)
def test_help_reads_as_asked(command):
    code, out, _ = xvr(*command.split(), "--help-all", width=200)
    assert code == 0
    for line in SEED[command].strip().splitlines():
        assert flat(line) in flat(out)


@pytest.mark.parametrize(
    "command",
    [
        "",
        "train",
        "restart",
        "finetune",
        "register",
        "animate",
        "simulate",
        "dcm2nii",
        "info",
        "check",
        "pick",
        "demo",
        "preregister",
        "evaluate",
        *(f"register {name}" for name in REGISTER),
    ],
)
def test_help_fits_80_columns(command):
    for option in ("--help", "--help_all" if command.startswith("register ") else "--help"):
        code, out, _ = xvr(*command.split(), option)
        assert code == 0
        assert max(len(line) for line in out.splitlines()) <= 80


def test_help_explains_what_is_common_and_names_the_rest():
    for words, command in every_command():
        short = xvr(*words, "--help")[1]
        names = [max(p.opts, key=len) for p in command.params if isinstance(p, click.Option)]
        assert all(re.search(rf"{name}\b", short) for name in names), words
        assert short.count("\nExample:\n  xvr ") == short.count("\nNext:\n  ") == 1, words
        assert ("--help-all" in short) == (len(command.params) > cli._FEW + 1) == bool(command.rare), words
    short, whole = (xvr("register", "model", option)[1] for option in ("--help", "--help-all"))
    assert len(short.splitlines()) < 85 and "Adam, gradient ascent" not in short and "Adam, gradient ascent" in whole


def examples():
    every = {" ".join(words): command for words, command in every_command()}
    lines = [line for pair in cli._EXAMPLES.values() for line in pair if re.fullmatch("xvr .*[^.]", line)]
    for line in lines:
        path = " ".join(shlex.split(line)[1:3])
        path = path if path in every else path.split(" ")[0]
        if path in every and "--help" not in line:
            yield pytest.param(every[path], shlex.split(line)[1 + len(path.split()) :], id=line)


@pytest.mark.parametrize("command, words", examples())
def test_examples_are_understood(command, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where files and folders of these names are
    for path in (Path(word) for word in words if not word.startswith("-")):
        (path.parent if path.suffix else path).mkdir(parents=True, exist_ok=True)
        if path.suffix:
            path.touch()
    needs = {p.name for p in command.params if p.required}
    ctx = command.make_context("xvr", list(words), resilient_parsing=False)
    assert all(ctx.params[name] not in (None, ()) for name in needs)


@pytest.mark.parametrize(
    "command", ["train", "finetune", "simulate", "demo", *(f"register {name}" for name in REGISTER)]
)
def test_every_command_takes_device_seed_and_debug(command):
    out = xvr(*command.split(), "--help" if command == "demo" else "--help-all")[1]
    assert all(name in out for name in ("--device ", "--seed INTEGER", "--debug"))


def test_every_option_has_a_heading():
    for words, command in every_command():
        assert set(command.groups["Other"]) <= {"config", "debug", "help_all"}, words
        assert sorted(k for names in command.groups.values() for k in names) == sorted(p.name for p in command.params)
    names = " ".join([*cli._FIRST.values(), *cli._LAST.values()]).split()
    assert len(names) == len(set(names)) and set(names) <= {
        p.name for _, command in every_command() for p in command.params
    }
    out = xvr("register", "model", "--help-all")[1]
    adam = out[out.index("  Adam, ") :].split("\n\n")[0]
    assert re.findall(r"^    --(\w+)", adam, re.M) == ADAM


ADAM = "scales parameterization convention lr_rot lr_xyz patience threshold max_n_itrs max_n_plateaus".split()


def test_every_option_has_help():
    for words, command in every_command():
        assert not [p.name for p in command.params if isinstance(p, click.Option) and not p.help], words


def test_an_option_that_classes_share_has_one_default():
    for words, command in every_command():
        defaults = {}
        for s in command.settings:
            for name, p in s.fields.items():
                assert defaults.setdefault(name, p.default) == p.default, (words, name)


def test_version():
    assert xvr("--version")[:2] == (0, f"xvr, version {__version__}\n")


def test_nothing_typed_is_answered_with_help():
    code, out, err = xvr()
    assert code == 2 and "Commands:" in err


def test_unknown_option_and_command():
    assert "--heigth" in (line := complaint("train", "--heigth", 3, code=2)) and "; did you mean '--height'?" in line
    assert "'trian'; did you mean 'train'?" in complaint("trian", code=2)
    line = complaint("register", "modle", code=2)
    assert "did you mean 'model'?" in line and "xvr register --help" in line
    assert "one of model, dicom, fixed, restart, search" in complaint("register", "xray.dcm", "-v", "ct.nii.gz", code=2)


def test_all_that_is_missing_is_told_at_once(tmp_path):
    line = complaint("train", "-i", tmp_path, code=2)
    assert all(name in line for name in ("--outpath", "--r1", "--tz", "--sdd", "--delx")) and "--inpath" not in line
    assert "XRAY..." in (line := complaint("register", "model", code=2)) and "--ckptpath" in line


def test_too_few_values():
    assert "'--rot' takes 3 values, but 2 were given" in complaint(
        "register", "fixed", "--rot", 0, 0, "--xyz", 0, -800, 0, code=2
    )
    assert "'--r1' takes 2 values, but 1 was given" in complaint("train", "--r1", 0, "-v", code=2)
    assert "'-i' requires an argument" in complaint("train", "-i", code=2)


def test_bad_values():
    assert "'9' is not one of '8', '10'" in complaint("simulate", "--bits", 9, code=2)
    assert "'x' is not a valid float" in complaint("train", "--sdd", "x", code=2)
    assert "siddon" in complaint("train", "--renderer", "raster", code=2)
    assert "1,2,3" in complaint("register", "model", "--labels", "1;2", code=2)


def test_interrupt(monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_call", stop)
    code, _, err = xvr("demo")
    assert code == 130 and err.strip() == "xvr: interrupted"


# What a command says of input that it cannot use


def register(case, kind, *xrays, out="out", **options):
    "Arguments of a registration at the first pose, or by another start"
    start = {"fixed": ["--rot", 10, 5, 0, "--xyz", 0, -800, 0]}.get(kind, [])
    extra = [word for key, value in options.items() for word in (f"--{key}", value)]
    return ["register", kind, *(xrays or case.xrays[:1]), "-v", case.ct, "-o", case.folder / out, *start, *extra]


def test_missing_file(case, tmp_path):
    assert "absent.dcm" in complaint(*register(case, "fixed", tmp_path / "absent.dcm"), code=2)
    line = complaint(
        "register",
        "fixed",
        case.xrays[0],
        "-v",
        tmp_path / "absent.nii.gz",
        "-o",
        tmp_path,
        "--rot",
        0,
        0,
        0,
        "--xyz",
        0,
        -800,
        0,
        code=2,
    )
    assert "--volume" in line and "absent.nii.gz" in line


def test_not_an_image(case, tmp_path):
    notes = tmp_path / "notes.dcm"
    notes.write_text("no image")
    assert "notes.dcm" in complaint(*register(case, "fixed", notes, out="bad1"))
    assert "notes.dcm" in complaint(
        "register", "fixed", case.xrays[0], "-v", notes, "-o", tmp_path / "o", "--rot", 0, 0, 0, "--xyz", 0, -800, 0
    )


AT = ["--rot", 0, 0, 0, "--xyz", 0, -800, 0]


@pytest.mark.parametrize("axes", [1, 5])
def test_metaimage_of_another_number_of_axes(case, tmp_path, axes):
    sitk.WriteImage(sitk.ReadImage(str(case.ct)), str(tmp_path / "ct.mha"))
    content = (tmp_path / "ct.mha").read_bytes()
    (tmp_path / "ct.mha").write_bytes(content.replace(b"NDims = 3", b"NDims = %d" % axes, 1))
    for command in (
        ["info", tmp_path / "ct.mha"],
        ["simulate", "-v", tmp_path / "ct.mha", "-o", tmp_path / "out", *AT],
    ):
        line = complaint(*command)
        assert "ct.mha" in line and f"{axes} axes" in line


def test_dicom_without_distances(case, tmp_path):
    tags = pydicom.dcmread(case.xrays[0])
    del tags.DistanceSourceToDetector, tags.DistanceSourceToPatient, tags.EstimatedRadiographicMagnificationFactor
    tags.save_as(tmp_path / "bare.dcm")
    assert "--sdd" in complaint(*register(case, "fixed", tmp_path / "bare.dcm", out="bad2"))
    assert "--sid" in complaint(*register(case, "dicom", tmp_path / "bare.dcm", out="bad3", sdd=1020))
    del tags.PositionerPrimaryAngle
    tags.save_as(tmp_path / "noangle.dcm")
    assert "PositionerPrimaryAngle" in complaint(
        *register(case, "dicom", tmp_path / "noangle.dcm", out="bad4", sdd=1020)
    )


def test_picture_without_geometry(case, tmp_path):
    Image.fromarray(np.arange(64 * 64, dtype=np.uint8).reshape(64, 64)).save(tmp_path / "x.png")
    assert "--sdd" in complaint(*register(case, "fixed", tmp_path / "x.png", out="bad5"))
    assert "--delx" in complaint(*register(case, "fixed", tmp_path / "x.png", out="bad5", sdd=1020))


BEFORE_THE_CT = {  # What is wrong, and what is said of it
    "register fixed x.png --rot 0 0 0 --xyz 0 -800 0": "--sdd and --delx",
    "register search x.png": "--sdd and --delx",
    "register dicom x.png --sdd 1000 --delx 1": "PositionerPrimaryAngle",
    "register fixed x.png --sdd 1000 --delx 1 --crop 64 --rot 0 0 0 --xyz 0 -800 0": "--crop of 64 pixels",
    "register fixed x.png --sdd 1000 --delx 1 --labels 1 --rot 0 0 0 --xyz 0 -800 0": "--mask",
    "register fixed x.png y.png --sdd 1000 --delx 1 --together --rig pose.json --pose pose.json": "1 poses for 2 X-rays",
    "register fixed x.png --pose pose.json -o there": "--resume",
    "register restart y.png --sdd 1000 --delx 1 --result there": "there",
    "track x.png -m ct.nii.gz --labels radius": "--sdd and --delx",
    "track x.png -m ct.nii.gz --labels radius --sdd 1000 --delx 1": "--pose",
    "pick x.png": "--sdd and --delx",
    "pick x.png --sdd 1000 --delx 1 --labels 1": "--mask",
    "pick x.png --sdd 1000 --delx 1 --pose y.png": "y.png",
    "pick x.png y.png --sdd 1000 --delx 1 --rig y.png": "y.png is",
    "simulate -o xrays --primary 0 --secondary 0 --sid 800": "--resume",
}


@pytest.mark.parametrize("line", BEFORE_THE_CT)
def test_what_was_typed_is_checked_before_the_ct_is_read(line, case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("x.png", "y.png"):
        Image.fromarray(np.arange(64 * 64, dtype=np.uint8).reshape(64, 64)).save(name)
    case.poses[:1].save(tmp_path / "pose.json")
    for name in ("there/x", "xrays"):
        Path(name).mkdir(parents=True)
    Path("xrays/xray_000.dcm").touch()
    Path("ct.nii.gz").write_text("this is no CT, which is said if it is read")
    words = line.split() + ["-v", "ct.nii.gz"] + ([] if "-o" in line.split() else ["-o", "new"])
    found = complaint(*words)
    assert BEFORE_THE_CT[line] in found and "ct.nii.gz" not in found


def test_one_good_xray_is_enough_to_begin(case, tmp_path):
    "The others are registered, and the bad one is named at the end"
    Image.fromarray(np.arange(64 * 64, dtype=np.uint8).reshape(64, 64)).save(tmp_path / "x.png")
    bad_first = register(case, "fixed", tmp_path / "x.png", case.xrays[0], out="one_good")
    assert "1 of 2 X-rays got no result: x.png" in complaint(*bad_first)
    assert (case.folder / "one_good" / case.xrays[0].stem / "result.json").exists()


def test_folder_without_images(case, tmp_path):
    (tmp_path / "x.txt").touch()
    assert "--pattern" in complaint(*register(case, "fixed", tmp_path, out="bad6"))


def test_not_a_checkpoint(case, tmp_path):
    (tmp_path / "words.pth").write_text("no checkpoint")
    torch.save({"weights": torch.zeros(3)}, tmp_path / "other.pth")
    for name in ("words.pth", "other.pth"):
        line = complaint(*register(case, "model", out="bad7", ckptpath=tmp_path / name))
        assert name in line and "checkpoint" in line


def test_volume_not_visible(case):
    line = complaint(
        "register",
        "fixed",
        case.xrays[0],
        "-v",
        case.ct,
        "-o",
        case.folder / "bad8",
        "--rot",
        0,
        0,
        0,
        "--xyz",
        900,
        -800,
        0,
    )
    assert "not visible" in line
    assert not (case.folder / "bad8" / case.xrays[0].stem).exists()


@pytest.mark.parametrize("start", [[], ["--rot", 0, 0, 0], ["--rot", 0, 0, 0, "--xyz", 0, -800, 0, "--pose", __file__]])
def test_fixed_needs_one_start(case, start):
    assert "--pose FILE" in complaint(
        "register", "fixed", case.xrays[0], "-v", case.ct, "-o", case.folder / "bad9", *start, code=2
    )


def test_error_with_traceback(case, tmp_path):
    (tmp_path / "x.txt").touch()
    result = CliRunner().invoke(cli.xvr, [str(a) for a in [*register(case, "fixed", tmp_path, out="bad10"), "--debug"]])
    assert result.exit_code == 1 and "`pattern`" in str(result.exception) and not result.stderr.startswith("xvr: error")


def test_python_reads_a_parameter_and_a_terminal_a_flag(case, tmp_path):
    (tmp_path / "x.txt").touch()
    with pytest.raises(XvrError) as raised:
        register_files([tmp_path], case.ct, None, tmp_path / "out")
    assert "`pattern`" in str(raised.value) and "--" not in str(raised.value)
    line = complaint(*register(case, "fixed", tmp_path, out="bad11"))
    assert "--pattern" in line and "`" not in line
    with pytest.raises(XvrError) as raised:
        Starts(starts=0)
    assert "`starts`" in str(raised.value) and "--" not in str(raised.value)
    assert "--starts" in complaint(*register(case, "fixed", out="bad11"), "--starts", 0)


@pytest.mark.parametrize("typed, value", [([], None), (["--linearize"], True), (["--no_linearize"], False)])
@pytest.mark.parametrize("option", ["linearize", "reverse_x_axis"])
def test_three_states_reach_the_reader(case, tmp_path, option, typed, value):
    typed = [word.replace("linearize", option) for word in typed]
    code, _, err = xvr(*register(case, "fixed", out=tmp_path / "out"), "--init-only", *typed)
    assert code == 0, err
    result = json.loads((tmp_path / "out" / case.xrays[0].stem / "result.json").read_text())
    assert result["settings"]["reading"][option] is value
    assert yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())["reading"][option] is value
    again = ["register", "fixed", "--config", tmp_path / "out" / "config.yaml", "-o", tmp_path / "again"]
    assert xvr(*again)[0] == 0
    assert yaml.safe_load((tmp_path / "again" / "config.yaml").read_text())["reading"][option] is value


@pytest.mark.parametrize("text, value", [
    ("# xvr register fixed, version 0.1.0, some day\nlinearize: false", None),  # it had two states, of which this was none
    ("# xvr register fixed, version 0.1.0, some day\nlinearize: true", True),
    ("linearize: false", False),  # by hand
    ("reading: {linearize: false}", False),
    ("# xvr register fixed, version 0.1.0, some day\nreading:\n  linearize: false", False),
    ("reading: {linearize: null}", None),
])  # fmt: skip
def test_three_states_in_a_file(case, tmp_path, text, value):
    (tmp_path / "run.yaml").write_text(text)
    asked = [*register(case, "fixed", out=tmp_path / "out"), "--init-only", "--config", tmp_path / "run.yaml"]
    code, _, err = xvr(*asked)
    assert code == 0, err
    assert yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())["reading"]["linearize"] is value
    assert xvr(*asked, "--linearize", "-o", tmp_path / "typed")[0] == 0
    assert yaml.safe_load((tmp_path / "typed" / "config.yaml").read_text())["reading"]["linearize"]


@pytest.mark.parametrize("text, said", [
    ("reading:\n  cropp: 3", "line 2: section 'reading' has no option 'cropp'; did you mean 'crop'?"),
    ("reading:\n  starts: 3", "line 2: section 'reading' has no option 'starts'"),
    ("readings: {crop: 3}", "line 1: xvr register fixed has no option 'readings'"),
    ("crop: 3\nreading: {crop: 3}", "line 2: 'crop' is in line 1 too"),
    ("reading:\n  crop: far", "line 2: Invalid value for '--crop': 'far'"),
    ("reading: 3", "line 1: xvr register fixed has no option 'reading'"),
    ("reading: [crop]", "line 1: xvr register fixed has no option 'reading'"),
    ("reading:\n  crop: {left: 3}", "line 2: 'crop' takes a value"),
    ("starts: [2]", "line 1: 'starts' takes one value"),
])  # fmt: skip
def test_bad_sections(case, tmp_path, text, said):
    (tmp_path / "run.yaml").write_text(text)
    line = complaint(*register(case, "fixed", out=tmp_path / "out"), "--config", tmp_path / "run.yaml", code=2)
    assert said in line and not (tmp_path / "out").exists()


def test_a_section_and_an_option_of_one_name(case, tmp_path):
    for text in ("starts: 2", "starts:\n  starts: 2\nadam:\ngaussnewton:\n  similarity: mncc"):
        (tmp_path / "run.yaml").write_text(text)
        folder = tmp_path / text[7:9].strip()
        code, _, err = xvr(*register(case, "fixed", out=folder), "--config", tmp_path / "run.yaml")
        assert code == 0, err
        kept = yaml.safe_load((folder / "config.yaml").read_text())
        assert kept["starts"]["starts"] == 2 and kept["optimizer"] == "gauss-newton"


@pytest.fixture
def folder(tmp_path):
    "A result folder with four steps at two levels, drawn at random"
    draw = lambda *shape: np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    images = {}
    for rows, steps in ((16, [0, 1, 2]), (32, [3])):
        images |= {
            f"xray_{rows}": draw(rows, rows + 4),
            f"drr_{rows}": draw(len(steps), rows, rows + 4),
            f"step_{rows}": np.array(steps),
        }
    folder = tmp_path / "xray_000"
    folder.mkdir()
    (folder / "result.json").write_text(json.dumps(dict(xray="xray_000.dcm")))
    (folder / "trajectory.csv").write_text("rows,iteration,similarity\n16,0,0.3\n16,1,0.8\n16,2,0.9\n32,0,0.7\n")
    np.savez(folder / "frames.npz", **images)
    return folder


def test_cannot_animate(folder, tmp_path):
    assert ".mp4" in complaint("animate", "-i", folder, "-o", tmp_path / "film.avi")
    assert "--skip" in complaint("animate", "-i", folder, "-o", tmp_path / "film.gif", "--skip", 0)
    assert "absent" in complaint("animate", "-i", tmp_path / "absent", "-o", tmp_path / "film.gif", code=2)
    (folder / "frames.npz").unlink()
    line = complaint("animate", "-i", folder, "-o", tmp_path / "film.gif")
    assert str(folder) in line and "frames.npz" in line
    assert not list(tmp_path.glob("*film*"))


REQUIRED = {
    "train": ["-i", "-o", "--r1", "--r2", "--r3", "--tx", "--ty", "--tz", "--sdd", "--height", "--delx"], "restart": ["-c"], "finetune": ["-i", "-o", "-c"],
    "preregister": ["-i", "-t", "-o"], "animate": ["-i", "-o"], "simulate": ["-v", "-o"], "dcm2nii": ["-i"], "register model": ["-v", "-c", "-o"], "register dicom": ["-v", "-o"],
}  # fmt: skip


@pytest.mark.parametrize("command", REQUIRED)
def test_what_is_required_is_asked_for(case, command):
    values = (
        {"-o": [case.folder / "required"]}
        | {name: [100] for name in ("--sdd", "--height", "--delx")}
        | {name: [0, 1] for name in ("--r1", "--r2", "--r3", "--tx", "--ty", "--tz")}
    )
    for left_out in REQUIRED[command]:
        given = [
            word for name in REQUIRED[command] if name != left_out for word in (name, *values.get(name, [case.ct]))
        ]
        line = complaint(*command.split(), *([case.xrays[0]] if "register" in command else []), *given, code=2)
        assert f"Missing option '{left_out}'" in line


def test_a_name_that_is_nearly_right_and_a_swapped_ct(case, tmp_path):
    xray = case.xrays[0]
    wrong = xray.with_name(xray.name.replace("_", ""))
    line = complaint("register", "dicom", wrong, "-v", case.ct, code=2)
    assert f"'{wrong}' does not exist; did you mean {xray}?" in line
    line = complaint("register", "dicom", xray.with_name("q"), "-v", case.ct, code=2)
    assert "does not exist" in line and "did you mean" not in line
    slices = read_volume(case.ct).density.shape[0]
    line = complaint("register", "dicom", case.ct, "-v", xray, "-o", tmp_path / "out")
    assert (
        f"if its {slices} frames are the slices of a CT, give it as --volume; if not, give it in mm with --sdd" in line
    )
    line = complaint("register", "search", case.ct, "-v", xray, "-o", tmp_path / "out", "--sdd", 1000, "--delx", 1)
    assert line.endswith(" x 1; one picture is an X-ray, not a CT")


def test_cannot_convert(case, tmp_path):
    assert "--outpath" in complaint("dcm2nii", "-i", tmp_path)
    assert "absent" in complaint("dcm2nii", "-i", tmp_path / "absent", "--list", code=2)
    line = complaint("dcm2nii", "-i", case.xrays[0].parent, "-o", tmp_path / "ct.nii.gz")
    assert "no volume" in line and not list(tmp_path.iterdir())


def test_info(case, tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    code, out, err = xvr("info", case.ct, case.xrays[0], case.xrays[0].with_suffix(".json"))
    assert code == 0 and max(map(len, out.splitlines())) <= 80, err
    assert (
        "oblique" not in out
        and "primary 10.0, secondary 5.0" in out
        and "column 0 at the patient's right" in out
        and "1 pose" in out
    )
    assert "notes.txt" in complaint("info", case.ct, tmp_path / "notes.txt")
    assert "absent" in complaint("info", tmp_path / "absent", code=2)


# What works


def result_of(case, out, n=0):
    return json.loads((case.folder / out / case.xrays[n].stem / "result.json").read_text())


def close(result, case, n=0, mm=2.0, degrees=0.5):
    "Whether a result is where the X-ray was taken, across the beam"
    rot, xyz = (x[n] for x in case.poses.to_euler())
    found = result["final"]
    off = np.abs(np.array(found["rot"]) - rot.numpy()).max(), np.abs(np.array(found["xyz"]) - xyz.numpy())[[0, 2]].max()
    return off[0] < degrees and off[1] < mm


def test_register_fixed(case):
    start = ["--rot", 13, 3, 1, "--xyz", 8, -790, -8]
    code, out, err = xvr(
        "register", "fixed", case.xrays[0], "-v", case.ct, "-o", case.folder / "fixed", *start, "--saveimg"
    )
    assert code == 0, err
    result, folder = result_of(case, "fixed"), case.folder / "fixed" / case.xrays[0].stem
    assert np.allclose(result["initial"]["rot"], [13, 3, 1], atol=1e-3) and close(result, case)
    assert {p.name for p in folder.iterdir()} >= {
        "result.json",
        "pose.tfm",
        "trajectory.csv",
        "parameters.pt",
        "overlay.png",
    }
    assert "--resume" in complaint(*register(case, "fixed", out="fixed"))
    assert (
        xvr("register", "fixed", case.xrays[0], "-v", case.ct, "-o", case.folder / "equalized", *start, "--equalize")[0]
        == 0
    )
    equalized = result_of(case, "equalized")
    assert (
        equalized["settings"]["reading"]["equalize"]
        and equalized["final"] != result["final"]
        and close(equalized, case)
    )


def test_register_by_a_window(case):
    """The CT's own window gives what its Hounsfield units give, and another one another similarity"""
    options = ["--init_only", "--window"]
    start = ["register", "fixed", case.xrays[0], "-v", case.ct, "--rot", 10, 5, 0, "--xyz", 0, -800, 0, "-o"]
    low, high = read_volume(case.ct).hu_range
    runs = {"hu": [], "same": [*options, low, high], "bone": [*options, 300, 1200]}
    for name, extra in runs.items():
        assert xvr(*start, case.folder / f"window_{name}", *(extra or ["--init_only"]))[0] == 0
    hu, same, bone = (result_of(case, f"window_{name}")["similarity"]["final"] for name in runs)
    assert abs(hu - same) < 2e-4 < abs(hu - bone)  # a window has no threshold for air: 1.1e-4
    assert "from low to high" in complaint(*start, case.folder / "window_no", *options, 2, 1)


def test_register_fixed_from_pose_file(case, tmp_path):
    case.poses[0].save(tmp_path / "pose.json")
    arguments = [
        "register",
        "fixed",
        case.xrays[0],
        "-v",
        case.ct,
        "-o",
        case.folder / "file",
        "--pose",
        tmp_path / "pose.json",
        "--init-only",
    ]
    assert xvr(*arguments)[0] == 0
    assert np.allclose(result_of(case, "file")["final"]["matrix"], case.poses[0].matrix[0], atol=1e-4)


def test_register_dicom_folder(case):
    code, out, err = xvr(*register(case, "dicom", case.xrays[0].parent, out="dicom"))
    assert code == 0, err
    assert all(close(result_of(case, "dicom", n), case, n) for n in range(2))
    assert all(path.name in out for path in case.xrays)


@pytest.mark.parametrize("extra, name, note", [
    ([], "gaussnewton", ""),
    (["--lr-rot", 0.02, "--max_n_itrs", 5], "adam", "--lr_rot and --max_n_itrs are options of adam: optimizer is adam"),
    (["--optimizer", "adam", "--scales", "8,4", "--max_n_itrs", 3], "adam", ""),
    (["--optimizer", "gauss_newton", "--patience", 3], "gaussnewton", "no effect with gauss-newton"),
])  # fmt: skip
def test_option_of_adam_selects_adam(case, tmp_path, extra, name, note):
    code, _, err = xvr(*register(case, "fixed", out=tmp_path), *extra)
    result = json.loads((tmp_path / case.xrays[0].stem / "result.json").read_text())
    assert code == 0 and {"adam", "gaussnewton"} & set(result["settings"]) == {name}
    assert note in err and (note or "adam" not in err)


def test_register_search_then_restart_and_animate(case, tmp_path):
    code, out, err = xvr(*register(case, "search", out="search"), "--within", 20, "--offset", 30, "--n_poses", 300)
    assert code == 0 and close(result_of(case, "search"), case), err
    code, out, err = xvr(*register(case, "restart", out="again", result=case.folder / "search"))
    assert code == 0 and close(result_of(case, "again"), case), err
    before, after = (
        json.loads((case.folder / name / case.xrays[0].stem / "result.json").read_text())
        for name in ("search", "again")
    )
    assert np.allclose(before["final"]["matrix"], after["initial"]["matrix"]) and after["verdict"] == "ok"
    code, out, err = xvr("animate", "-i", case.folder / "search" / case.xrays[0].stem, "-o", tmp_path / "film.gif")
    assert code == 0 and (tmp_path / "film.gif").stat().st_size > 1000, err


def test_register_together_starts_similarity_and_weights(case, tmp_path):
    Image.fromarray(np.full((64, 64), 255, np.uint8)).save(tmp_path / "all.png")
    extra = [
        "--together",
        "--starts",
        4,
        "--similarity",
        "lncc+gncc",
        "--weights",
        tmp_path / "all.png",
        "--bone_attenuation_multiplier",
        1.5,
    ]
    code, out, err = xvr(*register(case, "dicom", case.xrays[0].parent, out="together"), *extra)
    assert code == 0 and all(close(result_of(case, "together", n), case, n) for n in range(2)), err
    result = json.loads((case.folder / "together" / case.xrays[1].stem / "result.json").read_text())
    assert result["views"] == [path.name for path in case.xrays] and len(result["covariance"]["matrix"]) == 6


def test_views_that_are_calibrated(case, tmp_path):
    case.poses.save(tmp_path / "rig.json")
    views, adam = case.xrays[0].parent, ["--optimizer", "adam", "--max_n_itrs", 3]
    line = complaint(*register(case, "dicom", views, out="adam"), "--together", *adam)
    assert "--calibrated" in line and not (case.folder / "adam").exists()
    for out, kind, extra in [
        ("exact", "dicom", ["--calibrated", "--sid", 800]),
        ("rig", "fixed", ["--rig", tmp_path / "rig.json"]),
        ("adam", "dicom", ["--calibrated", *adam]),
    ]:
        code, _, err = xvr(*register(case, kind, views, out=out), "--together", *extra)
        assert code == 0, err
    assert all(close(result_of(case, "rig", n), case, n) for n in range(2))


def test_register_each_bone_and_search_from_the_side(case, tmp_path):
    labels = sitk.GetImageFromArray((sitk.GetArrayFromImage(sitk.ReadImage(str(case.ct))) > 200).astype("uint8"))
    labels.CopyInformation(sitk.ReadImage(str(case.ct)))
    sitk.WriteImage(labels, str(tmp_path / "mask.nii.gz"))
    bones = ["--mask", tmp_path / "mask.nii.gz", "--labels", 1, "--each", "--margin", 20]
    code, _, err = xvr(
        *register(case, "fixed", out="bones"), *bones, "--starts", 3, "--starts_rot", 2, "--starts_xyz", 5
    )
    assert code == 0 and {p.name for p in (case.folder / "bones").iterdir()} == {
        case.xrays[0].stem,
        f"{case.xrays[0].stem}_label_1",
        "config.yaml",
    }, err
    line = complaint(*register(case, "fixed", out="no"), *bones[:2], "--labels", "1,7", "--each")
    assert "[7]" in line and not (case.folder / "no").exists()
    code, _, err = xvr(*register(case, "search", out="side"), "--view", "lateral", "--n_poses", 64, "--init_only")
    turned = json.loads((case.folder / "side" / case.xrays[0].stem / "result.json").read_text())["final"]["rot"][0]
    assert code == 0 and 45 <= abs(turned) <= 135, err


def test_bad_input_of_registration(case, tmp_path):
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(tmp_path / "none.png")
    Image.fromarray(np.full((8, 8), 255, np.uint8)).save(tmp_path / "small.png")
    case.poses[0].save(tmp_path / "rig.json")
    for extra, said in [
        (["--similarity", "mncc+nc"], "'nc'"), (["--weights", tmp_path / "none.png"], "black"), (["--weights", tmp_path / "small.png"], "8 x 8"),
        (["--rig", tmp_path / "rig.json"], "--together"), (["--starts", 0], "--starts"), (["--each"], "--labels"),
    ]:  # fmt: skip
        assert said in complaint(*register(case, "fixed", out="bad"), *extra)
    assert "1 poses for 2" in complaint(
        *register(case, "fixed", case.xrays[0].parent, out="bad"), "--together", "--rig", tmp_path / "rig.json"
    )
    assert "no result" in complaint(*register(case, "restart", out="bad", result=tmp_path))
    assert not (case.folder / "bad").exists()


def test_train_then_register(case, tmp_path):
    ranges = ["--r1", -20, 20, "--r2", -10, 10, "--r3", -2, 2, "--tx", -10, 10, "--ty", -820, -760, "--tz", -10, 10]
    small = [
        "--height",
        32,
        "--delx",
        11.6,
        "--sdd",
        1020,
        "--reverse_x_axis",
        "--batch_size",
        4,
        "--n_epochs",
        1,
        "--n_batches_per_epoch",
        3,
    ]
    code, out, err = xvr(
        "train", "-i", case.ct, "-o", tmp_path / "models", *ranges, *small, "--device", "cpu", "--window", -799, 1500
    )
    assert code == 0, err
    checkpoint = max((tmp_path / "models").glob("*.pth"), key=lambda path: path.stat().st_mtime)
    assert torch.load(checkpoint, weights_only=True)["config"]["stock"]["window"] == [
        -799,
        1500,
    ]  # and restart finds the same volume by it
    before = torch.load(checkpoint, weights_only=True)["scheduler"]["step"]
    code, out, err = xvr("restart", "-c", checkpoint, "--n_epochs", 2, "--device", "cpu")
    assert code == 0 and torch.load(checkpoint, weights_only=True)["scheduler"]["step"] == 2 * before, err
    assert "restart" in complaint("train", "-i", case.ct, "-o", tmp_path / "models", *ranges, *small)
    code, out, err = xvr(
        "finetune",
        "-i",
        case.ct,
        "-o",
        tmp_path / "tuned",
        "-c",
        checkpoint,
        *small[-6:],
        "--rescale",
        0.5,
        "--device",
        "cpu",
    )
    tuned = torch.load(tmp_path / "tuned" / "last.pth", weights_only=True)
    assert code == 0 and tuned["scheduler"]["step"] == before and tuned["config"]["views"]["height"] == 16, err
    code, out, err = xvr(
        "register", "model", case.xrays[0], "-v", case.ct, "-c", checkpoint, "-o", tmp_path / "out", "--init_only"
    )
    assert code == 0, err
    assert (tmp_path / "out" / case.xrays[0].stem / "result.json").exists()
    code, out, err = xvr(
        "register", "model", case.xrays[0], "-v", case.ct, "-c", checkpoint, "-o", tmp_path / "both", "--antipodal"
    )
    assert code == 0 and (tmp_path / "both" / case.xrays[0].stem / "result.json").exists(), err


RANGES = ["--r1", -20, 20, "--r2", -10, 10, "--r3", -2, 2, "--tx", -10, 10, "--ty", -820, -760, "--tz", -10, 10]
SMALL = [
    "--height",
    32,
    "--delx",
    11.6,
    "--sdd",
    1020,
    "--batch_size",
    2,
    "--n_epochs",
    1,
    "--n_batches_per_epoch",
    2,
    "--val_views",
    0,
    "--model_name",
    "test_resnet",
    "--device",
    "cpu",
]


def test_train_is_repeated_by_its_config(case, tmp_path, monkeypatch):
    monkeypatch.chdir(case.folder)  # paths are from where the person stands
    before = xvr(
        "train",
        "-i",
        "ct.nii.gz",
        "-o",
        tmp_path / "a",
        *RANGES,
        *SMALL,
        "--weight-geo",
        1e-5,
        "--reverse-x-axis",
        "--name",
        "007: a run",
        "--seed",
        3,
    )
    assert before[0] == 0, before[2]
    kept, command = (tmp_path / "a" / "config.yaml").read_text(), cli.xvr.get_command(None, "train")
    assert re.match(rf"# xvr train, version {re.escape(__version__)}, \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d\n", kept)
    sections = {s.section: [*s.fields] for s in command.settings}
    loose = [p.name for p in command.params if p.expose_value and p.name not in sum(sections.values(), [])]
    assert re.findall(r"^([\w-]+):", kept, re.M) == [*loose, *sections]
    assert {s: [k.replace("-", "_") for k in yaml.safe_load(kept)[s]] for s in sections} == sections
    assert (
        "\n  sdd: 1020.0\n  height: 32\n" in kept
        and "\ninpath: ct.nii.gz\n" in kept
        and "\n# Views\nviews:\n  r1: [-20.0, 20.0]\n" in kept
        and "\n  mask: null\n" in kept
    )
    assert (
        yaml.safe_load(kept)["losses"]["weight-geo"] == 1e-5 and yaml.safe_load(kept)["wandb"]["name"] == "007: a run"
    )
    assert xvr("train", "--config", tmp_path / "a" / "config.yaml", "-o", tmp_path / "b")[0] == 0
    same = [line for line in kept.splitlines()[1:] if not line.startswith("outpath")]
    assert [
        line for line in (tmp_path / "b" / "config.yaml").read_text().splitlines()[1:] if not line.startswith("outpath")
    ] == same
    read = lambda folder: torch.load(tmp_path / folder / "last.pth", weights_only=True)
    one, other = read("a"), read("b")
    assert {k: v for k, v in one["config"].items() if k != "outpath"} == {
        k: v for k, v in other["config"].items() if k != "outpath"
    }
    assert all(torch.equal(w, other["weights"][k]) for k, w in one["weights"].items())
    assert (
        xvr(
            "train",
            "--config",
            tmp_path / "a" / "config.yaml",
            "-o",
            tmp_path / "c",
            "--no_reverse_x_axis",
            "--seed",
            4,
        )[0]
        == 0
    )
    assert (
        read("c")["config"]["seed"] == 4
        and not read("c")["config"]["views"]["reverse_x_axis"]
        and read("c")["config"]["losses"]["weight_geo"] == 1e-5
    )
    assert xvr("restart", "-c", tmp_path / "a", "--n_epochs", 2)[0] == 0
    assert (tmp_path / "a" / "config.yaml").read_text() == kept and (
        tmp_path / "a" / "config_2.yaml"
    ).read_text().startswith("# xvr restart")
    assert "--minutes -1" in complaint(
        "train", "--config", tmp_path / "a" / "config.yaml", "-o", tmp_path / "d", "--minutes", -1
    )
    monkeypatch.chdir(tmp_path)
    assert (
        "line 4" in (line := complaint("train", "--config", "a/config.yaml", "-o", tmp_path / "d", code=2))
        and "ct.nii.gz" in line
    )
    assert not (tmp_path / "d").exists()


def test_finetune_keeps_its_config(case, tmp_path):
    assert xvr("train", "-i", case.ct, "-o", tmp_path / "a", *RANGES, *SMALL, "--amp")[0] == 0
    asked = ["finetune", "-i", case.ct, "-o", tmp_path / "b", *SMALL[6:12], "--device", "cpu", "--no_wandb"]
    (tmp_path / "none").mkdir()
    assert "no checkpoint" in complaint(*asked, "-c", tmp_path / "none") and not (tmp_path / "b").exists()
    assert xvr(*asked, "-c", tmp_path / "a" / "last.pth")[0] == 0
    config = torch.load(tmp_path / "b" / "last.pth", weights_only=True)["config"]
    assert not config["network"]["amp"] and config["wandb"]["no_wandb"]
    kept = yaml.safe_load((tmp_path / "b" / "config.yaml").read_text())
    assert kept["rescale"] == 1.0 and kept["schedule"]["n_epochs"] == 1 and "views" not in kept and "r1" not in kept


def test_registration_is_repeated_by_its_config(case, tmp_path):
    asked = [*register(case, "fixed", *case.xrays, out=tmp_path / "a"), "--init-only", "--scales", "8,4", "--saveimg"]
    assert xvr(*asked)[0] == 0
    kept = yaml.safe_load((tmp_path / "a" / "config.yaml").read_text())
    assert (
        kept["optimizer"] == "adam"
        and kept["adam"]["scales"] == [8, 4]
        and "gaussnewton" not in kept
        and kept["rot"] == [10, 5, 0]
        and kept["xrays"] == [str(x) for x in case.xrays]
    )
    code, _, err = xvr(
        "register", "fixed", "--config", tmp_path / "a" / "config.yaml", "-o", tmp_path / "b", "--no_saveimg"
    )
    assert code == 0 and "of adam" not in err
    read = lambda folder, n: json.loads((tmp_path / folder / case.xrays[n].stem / "result.json").read_text())
    assert all(
        read("a", n)["final"] == read("b", n)["final"] and read("a", n)["settings"] == read("b", n)["settings"]
        for n in (0, 1)
    )
    assert len([*(tmp_path / "a").glob("*/overlay.png")]) == 2 and not [*(tmp_path / "b").glob("*/overlay.png")]
    shutil.rmtree(tmp_path / "a" / case.xrays[1].stem)
    assert xvr("register", "fixed", "--config", tmp_path / "a" / "config.yaml", "--resume")[0] == 0
    assert [p.name for p in (tmp_path / "a").glob("config*")] == ["config.yaml"] and read("a", 1)["final"] == read(
        "b", 1
    )["final"]


@pytest.mark.parametrize("lines, typed, name, note", [
    ("optimizer: gauss-newton\nscales: [8]\npatience: 10", [], "gaussnewton", ""),  # as a run leaves it: these are the defaults
    ("patience: 3", [], "adam", "--patience is an option of adam: optimizer is adam"),
    ("optimizer: gauss-newton\npatience: 3", [], "gaussnewton", "no effect"),
    ("optimizer: gauss-newton", ["--patience", 10], "adam", "optimizer is adam"),
    ("optimizer: adam", ["--optimizer", "gauss-newton"], "gaussnewton", ""),
    ("adam: {patience: 3}", [], "adam", "optimizer is adam"),
    ("optimizer: adam\nadam:\n  max_n_itrs: 3", [], "adam", ""),
])  # fmt: skip
def test_optimizer_from_a_file(case, tmp_path, lines, typed, name, note):
    (tmp_path / "run.yaml").write_text(lines)
    code, _, err = xvr(
        *register(case, "fixed", out=tmp_path / "out"), "--init-only", "--config", tmp_path / "run.yaml", *typed
    )
    assert code == 0 and {"adam", "gaussnewton"} & set(
        json.loads((tmp_path / "out" / case.xrays[0].stem / "result.json").read_text())["settings"]
    ) == {name}
    assert note in err and (note or "adam" not in err)


@pytest.mark.parametrize("text, said", [
    ("photons: 1\nheigth: 3", "line 2: xvr simulate has no option 'heigth'; did you mean 'height'?"), ("config: a.yaml", "no option 'config'"),
    ("photons: many", "line 1: Invalid value for '--photons': 'many'"), ("rot: [0, 0]", "3 values"), ("device: tpu", "'cuda'"), ("rounded: perhaps", "boolean"),
    ("primary: [a, 3]", "like 1,2,3"), ("like: absent.dcm", "absent.dcm"), ("outpath: [a, b]", "takes one value"), ("rot: {a: 1}", "without a table"), ("rot: [[1]]", "without a table"),
    ("photons: 1\nphotons: 2", "line 2: 'photons' is in line 1 too"), ("photons:", "'photons' has no value"), ("just words", "an option a line"), ("- photons", "an option a line"),
    ("rot: [0, 0", "line 1"), ("photons: 1\n---\nphotons: 2", "line 2"), ("\0\1", "not a text file"), ("# xvr train, version 0.1.0, today\nseed: 1", "options of xvr train, not of xvr simulate"),
])  # fmt: skip
def test_bad_config(case, tmp_path, text, said):
    (tmp_path / "run.yaml").write_text(text)
    asked = [] if said == "takes one value" else ["-o", tmp_path / "x"]
    line = complaint("simulate", "-v", case.ct, *asked, "--config", tmp_path / "run.yaml", code=2)
    assert said in line and "run.yaml" in line and not (tmp_path / "x").exists()


def test_config_by_hand(case, tmp_path):
    written = (
        f"# of my own\nvolume: {case.ct}\noutpath: {tmp_path}/x\nrot: 10, 5, 0\nxyz: [0, -8e2, 0]\nheight: "
        "32\nreverse-x-axis: yes\nphotons: 0\nprimary: null\nseed: 0x\n"
    )
    (tmp_path / "run.yaml").write_text(written)
    assert "'0x' is not a valid integer" in complaint("simulate", "--config", tmp_path / "run.yaml", code=2)
    code, _, err = xvr("simulate", "--config", tmp_path / "run.yaml", "--seed", 7)
    assert code == 0, err
    kept = yaml.safe_load((tmp_path / "x" / "config.yaml").read_text())
    there, carm = kept["placement"], kept["carm"]
    assert (there["rot"], there["xyz"], kept["seed"], carm["reverse_x_axis"], carm["delx"]) == (
        [10, 5, 0],
        [0, -800, 0],
        7,
        True,
        None,
    )
    code, _, err = xvr(
        "simulate",
        "--config",
        tmp_path / "x" / "config.yaml",
        "-o",
        tmp_path / "y",
        "--pose",
        case.xrays[1].with_suffix(".json"),
    )
    assert code == 0 and torch.allclose(
        Pose.load(tmp_path / "y" / "xray_000.json").matrix, case.poses[1].matrix, atol=1e-4
    ), err
    assert yaml.safe_load((tmp_path / "y" / "config.yaml").read_text())["placement"]["rot"] is None
    assert "2 ways" in complaint(
        "simulate",
        "--config",
        tmp_path / "x" / "config.yaml",
        "-o",
        tmp_path / "z",
        "--pose",
        case.xrays[1].with_suffix(".json"),
        *RANGES,
    )


def complete(shell, line, word):
    "What a shell is told to offer"
    script = "from xvr.cli import main; main()"
    env = dict(os.environ, _XVR_COMPLETE=f"{shell}_complete", COMP_WORDS=line, COMP_CWORD=word)
    return subprocess.run(
        [sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True
    ).stdout.split("\n")


def test_completion_of_words():
    assert complete("bash", "xvr re", "1") == ["plain,restart", "plain,register", "plain,report", ""]
    assert complete("bash", "xvr register ", "2") == [*(f"plain,{name}" for name in REGISTER), ""]
    assert complete("bash", "xvr train --renderer ", "3") == ["plain,siddon", "plain,trilinear", ""]
    assert complete("bash", "xvr train --batch-s", "2") == ["plain,--batch_size", ""] and complete(
        "bash", "xvr train --weight_g", "2"
    ) == ["plain,--weight-geo", ""]
    assert complete("bash", "xvr train -i ", "3")[0] == "file," and complete("bash", "xvr train -o ", "3")[0] == "dir,"
    assert complete("zsh", "xvr train --sd", "2")[:2] == ["plain", "--sdd"]
    assert complete("fish", "xvr register ", "mod")[0].startswith("plain,model\t")


@pytest.mark.skipif(not shutil.which("bash"), reason="bash is not installed")
def test_completion_in_bash(tmp_path):
    (tmp_path / "xvr").write_text(f"#!/bin/sh\nexec {sys.executable} -c 'from xvr.cli import main; main()' \"$@\"\n")
    (tmp_path / "xvr").chmod(0o755)
    asked = """eval "$(xvr completion bash)"; complete -p xvr; COMP_WORDS=(xvr register model --sim); COMP_CWORD=3; _xvr_completion xvr; echo "${COMPREPLY[@]}" """
    path = dict(os.environ, PATH=f"{tmp_path}:{os.environ['PATH']}")
    done = subprocess.run(["bash", "--norc", "-c", asked], env=path, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["complete -o nosort -F _xvr_completion xvr", "--similarity"], done.stderr
    assert all(shell in xvr("completion", shell)[1] for shell in ("zsh", "fish"))


def test_preregister_then_train(case, tmp_path):
    cts, warps = tmp_path / "cts", tmp_path / "warps"
    cts.mkdir()
    shutil.copy(case.ct, cts / "a.nii.gz")
    image = sitk.ReadImage(str(case.ct))
    image.SetOrigin([x + d for x, d in zip(image.GetOrigin(), (30.0, -20, 15))])  # the same patient, elsewhere
    sitk.WriteImage(image, str(cts / "b.nii.gz"))
    asked = ["preregister", "-i", cts, "-t", case.ct, "-o", warps, "--spacing", 10]
    code, out, err = xvr(*asked)
    assert code == 0 and {p.name for p in warps.iterdir()} == {
        "a.tfm",
        "b.tfm",
        "preregistration.csv",
        "config.yaml",
    }, err
    assert "CT/s" in err or "s/CT" in err
    moved = sitk.ReadTransform(str(warps / "b.tfm")).TransformPoint((0.0, 0, 0))
    assert max(abs(m - d) for m, d in zip(moved, (30.0, -20, 15))) < 0.5
    written = (warps / "b.tfm").stat().st_mtime_ns
    (cts / "c.nii.gz").write_text("no CT")
    assert "1 of 3 CTs got no transform: c.nii.gz" in complaint(*asked)
    assert (warps / "b.tfm").stat().st_mtime_ns == written
    (cts / "c.nii.gz").unlink()
    (cts / "b.nrrd").write_text("a second b")
    assert "called b" in complaint(*asked)
    (cts / "b.nrrd").unlink()
    small = [
        "--height",
        32,
        "--delx",
        11.6,
        "--sdd",
        1020,
        "--batch_size",
        2,
        "--n_epochs",
        1,
        "--n_batches_per_epoch",
        1,
        "--val_views",
        0,
        "--model_name",
        "test_resnet",
        "--device",
        "cpu",
    ]
    ranges = ["--r1", -20, 20, "--r2", -10, 10, "--r3", -2, 2, "--tx", -10, 10, "--ty", -820, -760, "--tz", -10, 10]
    code, out, err = xvr("train", "-i", cts, "-o", tmp_path / "model", *ranges, *small, "--warp", warps)
    assert code == 0, err
    assert set(torch.load(tmp_path / "model" / "last.pth", weights_only=True)["config"]["ct_from_template"]) == {
        "a.nii.gz",
        "b.nii.gz",
    }
    (warps / "b.tfm").unlink()
    assert "no partner: b" in complaint("train", "-i", cts, "-o", tmp_path / "new", *ranges, *small, "--warp", warps)
    there = [
        "register",
        "model",
        case.xrays[0],
        "-c",
        tmp_path / "model" / "last.pth",
        "-o",
        tmp_path / "out",
        "--init_only",
    ]
    assert "--warp" in complaint(*there, "-v", case.ct)  # ct.nii.gz is none of a and b
    assert xvr(*there, "-v", cts / "a.nii.gz")[0] == 0


def test_train_with_labels_and_everything_else(case, tmp_path):
    labels = sitk.Cast(sitk.ReadImage(str(case.ct)) > 200, sitk.sitkUInt8) + 2 * sitk.Cast(
        sitk.ReadImage(str(case.ct)) < -500, sitk.sitkUInt8
    )
    sitk.WriteImage(labels, str(tmp_path / "mask.nii.gz"))
    ranges = ["--r1", -20, 20, "--r2", -10, 10, "--r3", -2, 2, "--tx", -10, 10, "--ty", -820, -760, "--tz", -10, 10]
    small = [
        "--height",
        32,
        "--delx",
        11.6,
        "--sdd",
        1020,
        "--batch_size",
        4,
        "--n_epochs",
        2,
        "--n_batches_per_epoch",
        2,
        "--device",
        "cpu",
        "--model_name",
        "test_resnet",
    ]
    terms = [
        "--mask",
        tmp_path / "mask.nii.gz",
        "--labels",
        "1,2",
        "--weight-dice",
        1,
        "--weight-haus",
        0.1,
        "--weight-mvc",
        0.01,
        "--weight-geo",
        0,
    ]
    extra = [
        "--sample_weights",
        "1.0",
        "--n_grad_accum_itrs",
        2,
        "--n_warmup_itrs",
        1,
        "--disable_scheduler",
        "--p_augmentation",
        0.5,
        "--unit_conversion_factor",
        100,
        "--amp",
        "--memory",
        0.01,
        "--num_workers",
        1,
        "--pin_memory",
        "--clip_factor",
        0.01,
    ]
    saving = ["--n_save_every", 1, "--save_minutes", 0, "--val_views", 4, "--val_minutes", 0]
    code, out, err = xvr("train", "-i", case.ct, "-o", tmp_path / "a", *ranges, *small, *terms, *extra, *saving)
    assert code == 0 and out.count("mTRE") == 2, err
    assert {p.name for p in (tmp_path / "a").iterdir()} == {
        "last.pth",
        "best.pth",
        "log.csv",
        "epoch-0001.pth",
        "epoch-0002.pth",
        "config.yaml",
    }
    assert (tmp_path / "a" / "log.csv").read_text().splitlines()[
        0
    ] == "tre,ncc,dice,haus,mvc,loss,step,images,val_mtre,val_mtre_90"
    code, out, err = xvr(
        "train",
        "-i",
        case.ct,
        "-o",
        tmp_path / "b",
        *ranges,
        *small,
        "-c",
        tmp_path / "a" / "last.pth",
        "--reuse_optimizer",
    )
    assert code == 0, err
    for name in ("--weight-dice", "--weight-haus"):
        assert "--mask" in complaint("train", "-i", case.ct, "-o", tmp_path / "c", *ranges, *small, name, 1)


def test_simulate_then_register(case, tmp_path):
    small = ["--sdd", 1020, "--height", 128, "--delx", 2.9, "--reverse_x_axis"]
    ranges = ["--r1", -20, 20, "--r2", -10, 10, "--r3", -3, 3, "--tx", -10, 10, "--ty", -820, -780, "--tz", -10, 10]
    code, out, err = xvr("simulate", "-v", case.ct, "-o", tmp_path / "x", *ranges, *small, "--count", 2, "--seed", 3)
    assert (
        code == 0
        and "2 X-rays" in out
        and {p.name for p in (tmp_path / "x").iterdir()}
        == {"config.yaml", "overview.png", *(f"xray_00{n}.{kind}" for n in (0, 1) for kind in ("dcm", "json"))}
    ), err
    code, out, err = xvr("register", "dicom", tmp_path / "x", "-v", case.ct, "-o", tmp_path / "out")
    assert code == 0, err
    points = bone_points(read_volume(case.ct))
    for stem in ("xray_000", "xray_001"):
        result = json.loads((tmp_path / "out" / stem / "result.json").read_text())
        initial, final = (
            mtre(Pose(torch.tensor(result[name]["matrix"])), Pose.load(tmp_path / "x" / f"{stem}.json"), points).item()
            for name in ("initial", "final")
        )
        assert initial > 5 and final < 1  # the tags know neither shifts nor the turn about the beam


def test_simulate_is_repeated_and_resumed(case, tmp_path):
    words = [
        "simulate",
        "-v",
        case.ct,
        "--primary",
        "-15,30",
        "--secondary",
        "5",
        "--sid",
        800,
        "--height",
        32,
        "--delx",
        11.6,
        "--seed",
        1,
    ]
    for folder in ("a", "b"):
        assert xvr(*words, "-o", tmp_path / folder)[0] == 0
    read = lambda folder: {p.name: p.read_bytes() for p in (tmp_path / folder).iterdir()}
    assert [pydicom.dcmread(tmp_path / "a" / f"xray_00{n}.dcm").PixelData for n in (0, 1)] == [
        pydicom.dcmread(tmp_path / "b" / f"xray_00{n}.dcm").PixelData for n in (0, 1)
    ]
    before = read("a")
    assert "--resume" in complaint(*words, "-o", tmp_path / "a")
    (tmp_path / "a" / "xray_001.dcm").unlink()
    assert xvr(*words, "-o", tmp_path / "a", "--resume")[0] == 0 and read("a") == before
    assert "settings" in complaint(*words, "-o", tmp_path / "a", "--resume", "--photons", 100) and read("a") == before


def test_simulate_like_an_xray_and_from_a_file(case, tmp_path):
    code, out, err = xvr("simulate", "-v", case.ct, "-o", tmp_path / "like", "--like", case.xrays[0])
    assert code == 0, err
    one, other = (pydicom.dcmread(p) for p in (case.xrays[0], tmp_path / "like" / "xray_000.dcm"))
    for tag in ("Rows", "Columns", "ImagerPixelSpacing", "DistanceSourceToDetector", "PatientOrientation"):
        assert one[tag].value == other[tag].value
    assert [float(one[t].value) for t in ("PositionerPrimaryAngle", "PositionerSecondaryAngle", "DistanceSourceToPatient")] == pytest.approx(
        [float(other[t].value) for t in ("PositionerPrimaryAngle", "PositionerSecondaryAngle", "DistanceSourceToPatient")], abs=1e-3)  # fmt: skip
    case.poses.save(tmp_path / "poses.json")
    code, out, err = xvr(
        "simulate",
        "-v",
        case.ct,
        "-o",
        tmp_path / "file",
        "--pose",
        tmp_path / "poses.json",
        "--like",
        case.xrays[0],
        "--photons",
        0,
        "--scatter",
        0,
        "--bits",
        16,
        "--collimator",
        30,
    )
    assert code == 0, err
    tags = pydicom.dcmread(tmp_path / "file" / "xray_001.dcm")
    assert (
        tags.BitsStored == 16
        and tags.CollimatorLeftVerticalEdge == 5
        and not tags.pixel_array[:, :4].any()
        and tags.pixel_array[:, 5].any()
    )


def test_cannot_simulate(case, tmp_path):
    start = ["simulate", "-v", case.ct, "-o", tmp_path / "x"]
    pose = ["--rot", 0, 0, 0, "--xyz", 0, -800, 0]
    for words, said in [
        ([], "one of these ways"), (["--rot", 0, 0, 0], "--xyz is missing"), ([*pose, "--primary", 3, "--secondary", 3], "2 ways"), (["--primary", 3, "--secondary", 3], "--sid"),
        ([*pose[:-3], 0, 800, 0], "below zero"), ([*pose, "--scatter", -1], "--scatter"), ([*pose, "--collimator", 300], "shadow"), (["--pose", case.ct], "pose file"),
        (["--r1", 0, 1], "--r2 is missing"), ([*pose, "--height", 0], "height"),
    ]:  # fmt: skip
        assert said in complaint(*start, *words)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("name, frames", [("film.gif", 4), ("film.webp", 4), ("new/film.mp4", 15)])
def test_animate(folder, tmp_path, name, frames):
    path = tmp_path / name
    for _ in range(2):  # the second replaces the first
        code, out, err = xvr("animate", "-i", folder, "-o", path, "--dpi", 50)
        assert code == 0 and out.startswith(str(path)), err
    if path.suffix == ".mp4":
        with av.open(str(path)) as file:
            assert sum(1 for _ in file.decode(video=0)) == frames  # the last is held, here for twelve frames
    else:
        with Image.open(path) as image:
            assert image.n_frames == frames and image.width == 480
    assert [p.name for p in path.parent.glob("*film*")] == [path.name] and not list(path.parent.glob(".*"))


def test_restart_reads_a_picture_as_its_earlier_result_states(case, tmp_path):
    "What is typed comes first; a note says what is taken"
    picture = tmp_path / "picture.png"
    Image.fromarray(np.linspace(0, 255, 64 * 64).reshape(64, 64).astype(np.uint8)).save(picture)
    again = lambda *more: [
        "register",
        "restart",
        picture,
        "-v",
        case.ct,
        "--result",
        tmp_path / "a",
        "--init_only",
        *more,
    ]
    known = ["--sdd", 1020, "--delx", 4, "--crop", 8, "--orientation", "AP", "--init_only"]
    start = ["--rot", 10, 5, 0, "--xyz", 0, 800, 0]
    code, out, err = xvr("register", "fixed", picture, "-v", case.ct, "-o", tmp_path / "a", *start, *known)
    assert code == 0 and "starts from" not in out, err
    assert xvr(*again("-o", tmp_path / "b"))[1].count("it is read as for the result that it starts from") == 1
    assert xvr(*again("-o", tmp_path / "c", "--crop", 16))[0] == 0
    reading = lambda name: json.loads((tmp_path / name / "picture/result.json").read_text())["settings"]["reading"]
    assert reading("b") == reading("a") and reading("c") == reading("a") | dict(crop=16)
    assert [reading("a")[k] for k in ("sdd", "delx", "crop", "orientation")] == [1020, 4, 8, "AP"]


@pytest.mark.skipif(sys.platform == "win32", reason="no terminals of Unix")
def test_an_error_is_one_line_for_programs_and_fits_a_terminal(tmp_path):
    command = [
        sys.executable,
        "-c",
        "from xvr.cli import xvr; xvr()",
        *"register dicom none.dcm -v none.nii -o out".split(),
    ]
    piped = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    ours, theirs = os.openpty()
    subprocess.run(command, cwd=tmp_path, stderr=theirs, env=os.environ | dict(COLUMNS="60"))
    os.set_blocking(ours, False)
    lines = os.read(ours, 10_000).decode().split("\r\n")
    os.close(theirs)
    os.close(ours)
    assert piped.stderr.startswith("xvr: error: ") and piped.stderr.count("\n") == 1
    assert len(lines) > 2 and max(map(len, lines)) <= 60 and flat(" ".join(lines)) == flat(piped.stderr)
