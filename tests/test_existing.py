"Networks of the existing xvr answer as they do there (existing.py)."

import json
import shlex
from datetime import datetime

import click
import pytest
import torch
from existing import (
    ANSWERS,
    COMMANDS,
    CONFIG,
    DATA,
    HEIGHT,
    NETWORKS,
    TAKEN,
    XRAYS,
    fill,
    picture,
    write_dicom,
    write_warp,
)

from xvr.cli import _EXISTING, _Answer, main, xvr
from xvr.conventions import XvrError
from xvr.detector import Detector, physical_geometry
from xvr.evaluation import evaluate
from xvr.initialisers import from_model, from_result
from xvr.inspector import describe
from xvr.models import PoseRegressor, load_checkpoint
from xvr.pose import Pose
from xvr.volume import read_volume
from xvr.xray import Xray

EXPECTED = json.loads(ANSWERS.read_text())
OWN_NORM = (None, "default", "batchnorm", "batchnorm2d")


def checkpoint(path, name="euler_angles", **changes):
    "A checkpoint as the existing xvr writes it, without its code"
    config = CONFIG | NETWORKS.get(name, {}) | changes
    kinds = config["parameterization"], config["convention"] or "ZXY"
    norm = "default" if config["norm_layer"] in OWN_NORM else config["norm_layer"]
    net = PoseRegressor(
        config["model_name"], parameterization=kinds[0], convention=kinds[1], norm_layer=norm, height=HEIGHT
    )
    weights = fill(net.state_dict())
    biases = EXPECTED["networks" if name in NETWORKS else "registered"][name]
    for head in ("rot", "xyz"):
        weights[f"{head}_regression.bias"].copy_(torch.tensor(biases[head]))
    extra = dict(optimizer_state_dict={}, scheduler_state_dict={}, itr=5, model_number=1, date=datetime(2026, 9, 1))
    torch.save(dict(model_state_dict=weights, config=config, **extra), path)
    return path


def xray(name, orientation="AP", reverse=False, dim=1.0, level=0.0):
    rows, columns, sdd, delx, x0, y0 = XRAYS[name]
    # there an offset to the detector's active origin moves the image; here x0 runs with the camera's x
    detector = Detector(sdd, rows, delx, columns, x0=-x0, y0=y0, orientation=orientation, reverse_x_axis=reverse)
    return Xray(dim * picture(rows, columns) + level, detector)


def near(pose, expected):
    "Largest difference in the rotation and in the translation (mm)"
    off = (pose.matrix[0] - torch.tensor(expected)).abs()
    return off[:3, :3].max().item() < 1e-4 and off[:3, 3].max().item() < 1e-2, off


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_answer_as_in_the_existing_xvr(name, tmp_path):
    guess = from_model(checkpoint(tmp_path / "a.pth", name), "cpu")
    pose = guess(xray("the model's", guess.orientation))
    same, off = near(pose, EXPECTED["networks"][name]["pose"])
    assert same, off


@pytest.mark.parametrize("name", XRAYS)
def test_xrays_are_resampled_as_in_the_existing_xvr(name, tmp_path):
    "Whatever their size, whatever their unit of intensity, and mirrored as their reading says"
    guess = from_model(checkpoint(tmp_path / "a.pth"), "cpu")
    for taken in (xray(name), xray(name, dim=3, level=-2)):
        same, off = near(guess(taken), EXPECTED["xrays"][name])
        assert same, off
    mirrored = xray(name, reverse=True)
    mirrored.image = mirrored.image.flip(-1)
    assert near(guess(mirrored), EXPECTED["xrays"][name])[0]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_command_answers_as_in_the_existing_xvr(name, tmp_path, capfd):
    "Whole commands: their trainer's checkpoints on square, wide and high X-rays, in both orientations"
    network = checkpoint(tmp_path / "a.pth", name, **COMMANDS[name])
    files = [write_dicom(tmp_path / f"{n}.dcm", x) for n, x in enumerate(TAKEN)]
    options = ["-v", DATA / "ct.nii.gz", "-c", network, "-o", tmp_path / "out", "--init_only", "--no_reverse_x_axis"]
    code, _, error = run(capfd, "register", "model", *files, *options)
    assert code == 0, error
    for n, x in enumerate(TAKEN):
        found = json.loads((tmp_path / f"out/{n}/result.json").read_text())["initial"]["matrix"]
        same, off = near(Pose(torch.tensor([found])), EXPECTED["registered"][name][x])
        assert same, (x, off)


@pytest.mark.parametrize("invert", [False, True])
def test_a_network_in_a_template_s_frame_serves_a_patient(invert, tmp_path):
    warp = write_warp(tmp_path / "warp.tfm")
    guess = from_model(checkpoint(tmp_path / "a.pth"), "cpu", warp, invert, "tests/data/ct.nii.gz")
    same, off = near(guess(xray("the model's")), EXPECTED["warped"][invert])
    assert same, off


def saved_result(folder, pose, start, reverse=False):
    "A result as the existing xvr saves it"
    camera = dict(sdd=1020.0, height=64, width=64, delx=6.0, dely=6.0, reverse_x_axis=reverse)
    log = dict(losses=[0.3, 0.8], scales=[8.0, 8.0], rescale_factors=[1.0, 1.0], times=[1.0, 1.0])
    log |= dict(rots=torch.zeros(2, 3), xyzs=torch.zeros(2, 3))
    data = dict(detector=camera, runtime=2.0, init_pose=start.matrix, final_pose=pose.matrix, log=log)
    folder.mkdir(exist_ok=True)
    torch.save(data | dict(gt=torch.rand(1, 1, 64, 64)), folder / "xray_000.pth")


@pytest.mark.parametrize("orientation", ["AP", "PA"])
def test_results_are_measured_in_the_orientation_that_is_given(orientation, tmp_path):
    "Errors of 5 mm and 0 against a truth that states the camera in patient coordinates; other words fail"
    detector, ct = Detector(1020, 64, 6.0, orientation=orientation), read_volume("tests/data/ct.nii.gz")
    away = 800.0 if orientation == "AP" else -800.0
    pose, start = (Pose.from_euler([[20.0, 5, -3]], [[4.0 + x, away, 7 + z]]) for x, z in ((0, 0), (3, 4)))
    saved_result(tmp_path / "results", pose, start)
    (tmp_path / "truth").mkdir()
    geometry = physical_geometry(detector, pose, ct.centre)
    (tmp_path / "truth/xray_000.json").write_text(json.dumps(dict(geometry=geometry, centre=ct.centre.tolist())))
    told = dict(volume="tests/data/ct.nii.gz", orientation=orientation)
    found = evaluate([tmp_path / "results"], tmp_path / "truth", tmp_path / "out", **told)["results"]["results"]
    assert found["errors"]["final_mtre"]["max"] < 1e-2 and found["errors"]["initial_mtre"]["max"] == pytest.approx(
        5, abs=0.01
    )
    assert found["verdict"] == dict(failures_told=None, successes_doubted=None)
    assert "final_similarity" in (tmp_path / "out/evaluation.csv").read_text()
    with pytest.raises(XvrError, match="give `orientation`, AP or PA, and `volume`"):
        evaluate([tmp_path / "results"], tmp_path / "truth", tmp_path / "out", volume=told["volume"])
    other = told | dict(orientation="PA" if orientation == "AP" else "AP")
    with pytest.raises(XvrError, match="give the other `orientation`"):
        evaluate([tmp_path / "results"], tmp_path / "truth", tmp_path / "out", **other)


def run(capfd, *words):
    "A command's exit status, and what it prints"
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    printed = capfd.readouterr()
    return end.value.code or 0, printed.out, printed.err


def test_results_are_described_and_started_from(tmp_path, capfd):
    "One result or a folder of them, in the orientation that is given; not without, and not as a network"
    pose, start = (Pose.from_euler([[10.0 + a, 5, 0]], [[0.0, -800, 0]]) for a in (0, 3))
    saved_result(tmp_path / "results", pose, start, reverse=True)
    one, data = tmp_path / "results/xray_000.pth", ANSWERS.parent
    code, text, _ = run(capfd, "info", one)
    assert (
        code == 0 and "[10.00, 5.00, " in text and "[13.00, 5.00, " in text and "0.300 at first, 0.800 at last" in text
    )
    command = ["register", "restart", data / "xrays/xray_000.dcm", "-v", data / "ct.nii.gz", "--init_only"]
    for name, given in dict(one=one, folder=one.parent).items():
        code, _, error = run(capfd, *command, "--result", given, "--orientation", "PA", "-o", tmp_path / name)
        assert code == 0, error
        found = json.loads((tmp_path / name / "xray_000/result.json").read_text())
        assert torch.allclose(torch.tensor(found["initial"]["matrix"]), pose.matrix[0], atol=1e-3)
        assert not [note for note in found["settings"]["notes"] if "mirrored" in note]
    code, _, error = run(capfd, *command, "--result", one, "-o", tmp_path / "unsaid")
    assert code == 1 and "give AP or PA as --orientation" in error and len(error.splitlines()) == 1
    code, _, error = run(capfd, *command[:1], "model", *command[2:], "-c", one, "-o", tmp_path / "network")
    assert code == 1 and "not a network" in error
    code, _, error = run(capfd, "animate", "-i", one, "-o", tmp_path / "film.gif")
    assert code == 1 and "keeps no renderings; give its CT as --volume, and AP or PA as --orientation" in error
    with_ct = ["-v", data / "ct.nii.gz", "--orientation", "PA", "-o", tmp_path / "film.gif"]
    code, _, error = run(capfd, "animate", "-i", one, *with_ct)
    assert code == 1 and "do not lead to its final pose" in error
    content = torch.load(one, weights_only=True)
    content["log"] |= dict(zip(("rots", "xyzs"), Pose.cat([start, pose]).to_parameters("axis_angle")))
    torch.save(content, one.with_name("xray_001.pth"))
    code, text, error = run(capfd, "animate", "-i", one.with_name("xray_001.pth"), *with_ct)
    assert code == 0 and "film.gif: 2 frames" in text, error
    code, text, _ = run(capfd, "info", one.parent)
    assert code == 0 and " ".join(text.split()).count("the existing xvr detector") == text.count("[10.00, 5.00, ") == 2


def test_networks_are_described(tmp_path, capfd):
    for name in ("rotation_6d, no convention", "norm None", "convnext batchnorm"):
        code, text, error = run(capfd, "info", checkpoint(tmp_path / "a.pth", name))
        assert code == 0, error
        lines = (
            "a checkpoint of the existing xvr",
            "64 x 64 pixels",
            "-30 to 30",
            "cts",
            "2026-09-01",
            "AP",
            "batches 5",
        )
        assert all(line in " ".join(text.split()) for line in lines), text


WRONG = (None, "x", -1, float("nan"), [], {}, torch.zeros(3))


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")
def test_values_that_cannot_be_are_refused_in_a_line(tmp_path):
    "Each value of a result and of a checkpoint in turn; what can still be understood is"
    pose = Pose.from_euler([[10.0, 5, 0]], [[0.0, -800, 0]])
    saved_result(tmp_path, pose, pose)
    result = torch.load(tmp_path / "xray_000.pth", weights_only=True)
    checkpoint(tmp_path / "network.pth")
    network = torch.load(tmp_path / "network.pth", weights_only=False)
    taken, file, refused = xray("the model's", "PA"), tmp_path / "wrong.pth", 0
    read = dict(detector=describe, log=describe, config=load_checkpoint)
    restart = lambda path: from_result(path, "PA")(taken)
    for whole, section in ((result, "detector"), (result, "log"), (network, "config")):
        for key, value in ((k, v) for k in whole[section] for v in WRONG):
            torch.save(whole | {section: whole[section] | {key: value}}, file)
            for reader in {read[section], restart if whole is result else read[section]}:
                try:
                    reader(file)
                except XvrError as error:
                    refused += 1
                    assert "\n" not in str(error), (key, value)
    assert refused > 80


OPTIONS = [line.split(": ", 1) for line in (DATA / "existing_options.txt").read_text().splitlines()[1:]]
STARTS = dict(model="--ckpt NET", restart="--ckpt NET", fixed="--rot 0 0 0 --xyz 0 850 0", dicom="")
VIEWS = "--r1 -5 5 --r2 -5 5 --r3 -5 5 --tx -5 5 --ty 700 900 --tz -5 5 --sdd 1020 --height 64 --delx 6"
FILES = "--files XRAY --imagepath CT --savepath FOLDER"
LINES = {f"register {name}": f"{FILES} {start}" for name, start in STARTS.items()}
BARE = dict.fromkeys(LINES, FILES) | dict(restart="")  # After a checkpoint or a pose without an option's name
LINES |= {"train": f"--volpath CT --outpath FOLDER {VIEWS}", "restart": "NET"}
ANSWERED = {"--n-total-itrs 1234", "--n-itrs 500 100", "--patience 5 10", "--lr-reduce-factor 0.5", "--device cuda:1"}
ANSWERED |= {"--img-threshold 0.1", "--mask-threshold 0.05", "--n-samples 500", "--group night"}


def understood(command: str, words: list[str]) -> dict:
    "The values that a command line has here"
    ctx, group = click.Context(xvr, info_name="xvr", **xvr.context_settings), xvr
    for name in command.split():
        group = group.get_command(ctx, name)
        ctx = click.Context(group, ctx, info_name=name)
    group.parse_args(ctx, [*words])
    return ctx.params


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    "Files for the words of existing_options.txt"
    folder = tmp_path_factory.mktemp("files")
    for name in ("CT", "MASK", "XRAY", "NET", "LIST"):
        (folder / name).write_text("1\n2\n")
    return dict(FOLDER=str(folder)) | {path.name: str(path) for path in folder.iterdir()}


@pytest.mark.parametrize("name", LINES)
def test_each_option_of_the_existing_xvr_is_understood_or_answered_by_a_line(name, files):
    "Each in a whole line; a line in an answer is understood too, so each of its options exists"
    mine = [words for command, words in OPTIONS if name == command or name.split()[0] == command]
    assert len(mine) > 2
    for option in mine:
        bare = not option.startswith("-")
        line = f"{option} {BARE[name]}" if bare else f"{LINES[name]} {option}"
        words = [files.get(word, word) for word in line.split()]
        asked = name == "restart" and not bare
        try:
            understood(name, words)
            assert option not in ANSWERED and not asked, option
        except _Answer as answer:
            assert option in ANSWERED or asked, answer.message
            line = shlex.split(answer.message.partition("; type: xvr ")[2])
            understood(name, line[len(name.split()) :])
            assert len(answer.message.splitlines()) == 1


def test_each_row_of_the_table_is_an_option_of_the_existing_xvr():
    "So a misspelt one would be seen"
    listed = {(name, words.split()[0] if words.startswith("-") else "") for name, words in OPTIONS}
    assert {(name, option) for name, rows in _EXISTING.items() for option in rows} <= listed


def test_a_line_of_the_existing_xvr_means_what_it_means_there(files, capfd):
    "Values, and AP, which it is there if nothing is typed"
    words = lambda line: [files.get(word, word) for word in line.split()]
    line = f"{LINES['register fixed']} --scales 8 4 --n-itrs 300 300 --metric gmncc --labels 1 2 --lr-reduce-factor 0.1"
    found = understood("register fixed", words(line))
    expected = dict(scales=(8, 4), max_n_itrs=300, similarity="mncc+gncc", labels=[1, 2], orientation="AP")
    assert {k: found[k] for k in expected} == expected
    assert [str(path) for path in found["xrays"]] == [files["XRAY"]] and str(found["outpath"]) == files["FOLDER"]
    line = f"{LINES['train']} --n-total-itrs 50_000 --n-save-every-itrs 1000 --geodesic-only --sample-weights LIST"
    found = understood("train", words(line))
    expected = dict(n_epochs=500, n_save_every=10, weight_tre=0, weight_ncc=0, weight_geo=0.01, sample_weights=[1, 2])
    assert {k: found[k] for k in expected | dict(orientation="AP")} == expected | dict(orientation="AP")
    assert understood("register fixed", words("1 2 3 4 -5 6 --files XRAY --imagepath CT --savepath X"))["xyz"] == (
        4,
        -5,
        6,
    )
    assert understood("register model", words("NET --files XRAY --imagepath CT --savepath X"))["orientation"] is None
    assert capfd.readouterr().err.count("xvr: a line of the existing xvr, read as: xvr ") == 4
    ours = words("XRAY -v CT -o FOLDER --rot 0 0 0 --xyz 0 -850 0 --scales 8,4 --patience 5 --device cpu")
    assert understood("register fixed", ours)["orientation"] is None and not capfd.readouterr().err
