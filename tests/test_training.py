"Training as processes that are killed, work together, or meet bad input; lessons: nbs/21_training to 24_commands"

import csv
import importlib.util
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from children import started
from test_cli import xvr as typed

from xvr import commands
from xvr.conventions import XvrError
from xvr.initialisers import from_model
from xvr.models import Network, load_checkpoint, load_model
from xvr.sampling import Views
from xvr.training import Recipe, Schedule
from xvr.watching import Watch
from xvr.xray import read_xray

RANGES = "--r1 -20 20 --r2 -10 10 --r3 -2 2 --tx -10 10 --ty -820 -760 --tz -10 10".split()
SMALL = "--height 32 --delx 11.6 --sdd 1020 --model_name test_resnet --lr 0.001 --val_views 0 --device cpu".split()

spec = importlib.util.spec_from_file_location(
    "training_benchmark", Path(__file__).parents[1] / "benchmarks/training.py"
)
benchmark = importlib.util.module_from_spec(spec)
spec.loader.exec_module(benchmark)
done = benchmark.done


def xvr(*args, **options):
    "A command as a process of its own, which ends with the test"
    return started(benchmark.xvr(*args, **options))


def here(*args):
    "The same in this process, which has PyTorch already"
    code, _, err = typed(*args)
    assert code == 0, err


def train(case, out, *options):
    return "train", "-i", case.ct, "-o", out, *RANGES, *SMALL, *options


def weights(folder, name="last.pth"):
    return torch.load(folder / name, weights_only=True)["weights"]


def same(a, b):
    return all(torch.equal(value, b[name]) for name, value in a.items())


@pytest.fixture(scope="module")
def straight(case, tmp_path_factory):
    "A run that nothing happens to: its folder and options"
    folder = tmp_path_factory.mktemp("straight")
    # 5 batches an epoch, 3 to a step of the optimizer: most checkpoints hold gradients that wait. Boxes are random
    options = "--batch_size 4 --n_batches_per_epoch 5 --n_epochs 16 --n_grad_accum_itrs 3 --save_minutes 0".split()
    options += "--weight-mvc 0.01 --patch_size 40,40,30".split()
    done(xvr(*train(case, folder, *options)))
    return folder, options


@pytest.mark.parametrize("epochs", [3, 11])
def test_killed_and_restarted(case, tmp_path, straight, epochs):
    folder, options = straight
    process, last, log = xvr(*train(case, tmp_path, *options)), tmp_path / "last.pth", tmp_path / "log.csv"
    while not log.exists() or len(log.read_text().splitlines()) <= epochs:
        time.sleep(0.01)
        assert process.poll() is None, process.stderr.read()
    process.kill()
    process.communicate()
    left = torch.load(last, weights_only=True)
    assert left["scheduler"]["step"] < 80 and not same(left["weights"], weights(folder))
    done(xvr("restart", "-c", last, "--device", "cpu"))
    assert same(weights(tmp_path), weights(folder))
    assert (tmp_path / "log.csv").read_text() == (folder / "log.csv").read_text()
    assert not list(tmp_path.glob(".*.part"))


def test_two_processes_average_their_gradients_and_restart(case, tmp_path):
    options = "--batch_size 4 --n_batches_per_epoch 1 --n_epochs 5 --n_save_every 2 --n_grad_accum_itrs 2".split()
    done(xvr(*train(case, tmp_path / "both", *options), processes=2))
    first, last = (torch.load(tmp_path / "both" / f"{name}.pth", weights_only=True) for name in ("epoch-0002", "last"))
    assert last["metrics"]["history"][-1]["images"] == 5 * 2 * 4
    # what waits in the last checkpoint is the mean over the processes of what each draws by itself, over two batches
    run = commands._prepare(commands._Job.from_dict(last["config"]), last)
    run.model.zero_grad()
    for rank in (0, 1):
        run.rank, run.step = rank, 4
        run.training_step()
    for name, parameter in run.model.named_parameters():
        assert torch.allclose(parameter.grad / 2, last["gradients"][name], atol=1e-6, rtol=1e-3), name
    assert run.recent[-1]["loss"] != run.recent[-2]["loss"]
    assert not same(first["weights"], last["weights"])
    done(
        xvr(
            "restart",
            "-c",
            tmp_path / "both" / "epoch-0002.pth",
            "-o",
            tmp_path / "again",
            "--device",
            "cpu",
            processes=2,
        )
    )
    assert same(weights(tmp_path / "again"), weights(tmp_path / "both"))


# Bad input that the lessons do not show


def refused(run, said):
    with pytest.raises(XvrError) as error:
        run()
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.fixture
def disk(tmp_path):
    "A folder with room for a checkpoint, but not for a second one beside it"
    folder = tmp_path / "disk"
    folder.mkdir()
    if sys.platform != "linux":
        pytest.skip("a small file system is mounted as on Linux")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("no right to mount a small file system")
    yield folder
    subprocess.run(["umount", folder], check=True)


RANGE = dict(r1=(-20, 20), r2=(-10, 10), r3=(-2, 2), tx=(-10, 10), ty=(-820, -760), tz=(-10, 10))
VIEWS = Views(**RANGE, height=32, delx=11.6, sdd=1020)


def settings(recipe=Recipe(), compile=False, **schedule):
    schedule = Schedule(**dict(batch_size=4, n_batches_per_epoch=2, n_epochs=3) | schedule)
    network, watch = Network(model_name="test_resnet", compile=compile), Watch(val_views=0, save_minutes=0)
    return dict(views=VIEWS, network=network, schedule=schedule, recipe=recipe, watch=watch, device="cpu")


def test_disk_that_fills_up(case, disk):
    refused(lambda: commands.train(case.ct, disk / "out", **settings()), "No space left")
    assert torch.load(disk / "out" / "last.pth", weights_only=True)["scheduler"]["step"] == 2
    assert [p.name for p in (disk / "out").glob("*.pth*")] == ["last.pth"] and not list((disk / "out").glob(".*"))


def test_folder_that_cannot_be_written_to(case, disk, tmp_path):
    (disk / "out").mkdir()
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    refused(lambda: commands.train(case.ct, disk / "out", **settings()), "Read-only")
    refused(lambda: commands.train(case.ct, disk / "new", **settings()), "Read-only")
    (tmp_path / "file").touch()
    refused(lambda: commands.train(case.ct, tmp_path / "file" / "out", **settings()), "Not a directory")


def test_loss_that_is_no_number(case, tmp_path):
    refused(lambda: commands.train(case.ct, tmp_path, **settings(lr=1e30, recipe=Recipe(n_warmup_itrs=0))), "`lr`")
    left = torch.load(tmp_path / "last.pth", weights_only=True)
    assert all(torch.isfinite(value).all() for value in left["weights"].values())


def test_batch_that_does_not_fit(case, tmp_path):
    refused(lambda: commands.train(case.ct, tmp_path / "out", **settings(batch_size=10**7)), "give a `batch_size`")
    assert not (tmp_path / "out").exists()


def test_log_without_a_key(case, tmp_path, monkeypatch):
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))  # where a key would be
    out, small = tmp_path / "out", ["--batch_size", 4, "--n_batches_per_epoch", 1]
    process = xvr(*train(case, tmp_path / "unasked", *small, "--n_epochs", 1))
    said = process.communicate(timeout=600)[1]
    assert process.returncode == 0 and "not logged; --offline logs" in said and "wandb login" in said
    assert not (tmp_path / "unasked" / "wandb").exists()
    process = xvr(*train(case, out, *small, "--n_epochs", 1, "--name", "first", "--project", "trial", "--wandb"))
    said = process.communicate(timeout=600)[1]
    assert process.returncode == 0 and "no key (wandb login), so logged into" in said
    done(xvr("restart", "-c", out, "--n_epochs", 2, "--device", "cpu"))
    runs, id = (
        list((out / "wandb").glob("offline-run-*")),
        torch.load(out / "last.pth", weights_only=True)["config"]["watch"]["id"],
    )
    assert runs and all(run.name.endswith(f"-{id}") for run in runs)
    here(*train(case, tmp_path / "none", *small, "--n_epochs", 1, "--no_wandb"))
    assert {path.name for path in (tmp_path / "none").iterdir()} == {"best.pth", "last.pth", "log.csv", "config.yaml"}
    said = done(xvr(*train(case, tmp_path / "own", *small, "--n_epochs", 1, "--offline", "--id", "mine")))
    assert [run.name[-5:] for run in (tmp_path / "own" / "wandb").glob("offline-run-*")] == ["-mine"]


@pytest.mark.skipif(not shutil.which("g++"), reason="PyTorch compiles for the CPU with a C++ compiler")
def test_compiled_network_and_its_restart(case, tmp_path):
    options = (
        "--batch_size 4 --n_batches_per_epoch 2 --n_epochs 2 --n_grad_accum_itrs 3 --n_save_every 1 --compile".split()
    )
    here(*train(case, tmp_path / "fast", *options))
    here("restart", "-c", tmp_path / "fast" / "epoch-0001.pth", "-o", tmp_path / "again", "--device", "cpu")
    assert same(weights(tmp_path / "fast"), weights(tmp_path / "again"))
    here(*train(case, tmp_path / "plain", *options[:-1]))
    plain, fast = weights(tmp_path / "plain"), weights(tmp_path / "fast")
    assert plain.keys() == fast.keys() and all(torch.allclose(plain[name], fast[name], atol=1e-3) for name in plain)


def test_network_that_cannot_be_compiled(case, tmp_path, monkeypatch):
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    torch._dynamo.reset()
    refused(lambda: commands.train(case.ct, tmp_path / "out", **settings(compile=True)), "`compile`")
    assert not (tmp_path / "out").exists()


# What a run leaves open, and how it ends


@pytest.fixture(scope="module")
def brief(case, tmp_path_factory):
    "A run of a second on a CPU that leaves open what it can"
    folder = tmp_path_factory.mktemp("brief")
    plate = "--height 96 --delx 3.8667 --sdd 1020 --device cpu --val_views 8 --no_wandb".split()
    return folder, typed("train", "-i", case.ct, "-o", folder, *RANGES, *plate, "--minutes", 0.02)


def test_a_brief_run_states_what_it_chose_and_how_it_ended(brief):
    folder, (code, out, err) = brief
    assert code == 0, err
    chosen = next(line for line in err.splitlines() if line.startswith("for 0.02 minutes on a CPU: "))
    assert "--model_name resnet18_small" in chosen and "--batch_size 32" in chosen and "--weight-ncc 0.0" in chosen
    verdict = out[out.index("in the end: ") :].splitlines()
    assert verdict[-1].startswith(f"xvr restart -c {folder} --minutes ") or f"-c {folder} -o results" in verdict[-1]
    assert all(len(line) <= 80 for line in verdict[:-1])
    assert {"best.pth", "last.pth", "log.csv"} <= {path.name for path in folder.iterdir()}
    (row,) = csv.DictReader((folder / "log.csv").open())
    assert float(row["val_mtre"]) > 0 and int(row["images"]) == 32 * int(row["step"])


def test_its_checkpoint_says_what_images_it_needs(brief):
    model, config = load_model(brief[0], "cpu")
    rows = model.arguments["height"]
    assert rows == config["detector"]["height"] == config["network"]["input_height"] < 96 == config["views"]["height"]
    assert abs(rows * config["detector"]["delx"] - 96 * 3.8667) < 1e-6


def test_a_value_that_is_given_is_taken(case, tmp_path):
    given = "--lr 0.005 --batch_size 116 --model_name test_resnet --weight-ncc 1 --input_height 32 --no_augment_later"
    plate = "--height 32 --delx 11.6 --sdd 1020 --device cpu --val_views 0 --minutes 0.001 --no_wandb".split()
    code, out, err = typed("train", "-i", case.ct, "-o", tmp_path, *RANGES, *plate, *given.split())
    config = load_checkpoint(tmp_path)["config"]
    assert code == 0 and "on a CPU" not in err
    assert (config["schedule"]["lr"], config["schedule"]["batch_size"]) == (0.005, 116)
    assert (config["losses"]["weight_ncc"], config["network"]["model_name"]) == (1.0, "test_resnet")
    assert config["recipe"]["augment_later"] is False
    assert same(weights(tmp_path, "best.pth"), weights(tmp_path)), "without validation the last is the best"


def test_the_folder_of_a_run_is_a_checkpoint(brief, case, tmp_path):
    folder = brief[0]
    best, xray = weights(folder, "best.pth"), read_xray(case.xrays[0])
    assert torch.equal(from_model(folder, "cpu")(xray).matrix, from_model(folder / "best.pth", "cpu")(xray).matrix)
    for command in (
        ("finetune", "-i", case.ct, "-o", tmp_path / "tuned", "-c", folder, "--n_epochs", 1, "--n_batches_per_epoch", 1),
        ("train", "-i", case.ct, "-o", tmp_path / "base", "-c", folder, *RANGES, "--height", 96, "--delx", 3.8667,
         "--sdd", 1020, "--n_epochs", 1, "--n_batches_per_epoch", 1, "--val_views", 0),
    ):  # fmt: skip
        here(*command, "--lr", 1e-9, "--batch_size", 2, "--device", "cpu", "--no_wandb")
        started_from = weights(command[4])
        assert all(torch.allclose(value, started_from[name], atol=1e-5) for name, value in best.items())
        config = load_checkpoint(command[4])["config"]
        assert config["detector"] == load_checkpoint(folder)["config"]["detector"]
