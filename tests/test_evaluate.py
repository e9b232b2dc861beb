"`xvr evaluate` as a whole, and what it says of input that it cannot use. The lessons are in nbs/38_evaluation.ipynb."

import csv
import json
import shutil
from types import SimpleNamespace

import pytest
import SimpleITK as sitk
import torch
from test_cli import complaint, xvr

from xvr.evaluation import read_landmarks
from xvr.pose import Pose
from xvr.volume import read_volume

POINTS = torch.tensor([[0.0, 0, 0], [40, 20, -30], [-50, 10, 60]])  # About the CT's centre, RAS mm


@pytest.fixture(scope="module")
def done(case):
    "Both X-rays registered, and left at the start of it"
    for name, extra in (("good", []), ("start", ["--init_only"])):
        code, _, err = xvr(
            "register",
            "fixed",
            case.xrays[0].parent,
            "-v",
            case.ct,
            "-o",
            case.folder / "evaluated" / name,
            "--rot",
            0,
            3,
            0,
            "--xyz",
            2,
            -790,
            0,
            *extra,
        )
        assert code == 0, err
    folder = case.folder / "evaluated"
    return SimpleNamespace(
        truth=case.xrays[0].parent,
        good=folder / "good",
        start=folder / "start",
        names=[path.stem for path in case.xrays],
    )


def evaluate(results, truth, out, *extra):
    "The summary, what was printed, and a row for each X-ray"
    code, printed, err = xvr(
        "evaluate", *(word for path in results for word in ("-i", path)), "-t", truth, "-o", out, *extra
    )
    assert code == 0, err
    assert max(map(len, printed.splitlines())) <= 80 and {p.name for p in out.iterdir()} >= {
        "config.yaml",
        "evaluation.csv",
        "summary.json",
        "evaluation.png",
    }
    with open(out / "evaluation.csv") as file:
        return json.loads((out / "summary.json").read_text()), printed, list(csv.DictReader(file))


def test_registrations_beside_their_truth(case, done, tmp_path):
    summary, printed, rows = evaluate([done.good], done.truth, tmp_path, "-v", case.ct)
    assert [row["xray"] for row in rows] == done.names and all(
        float(row["final_mtre"]) < 2 < float(row["initial_mtre"]) for row in rows
    )
    assert (
        summary["results"]["good"]["success"]["final_mtre"]["2"]["count"] == 2
        and "2 of 2, 100 %" in printed
        and "1000 points" in printed
    )


def test_two_methods_and_another_metric(case, done, tmp_path):
    summary, printed, rows = evaluate(
        [done.start, done.good], done.truth, tmp_path, "--metric", "mpe", "--threshold", 3
    )
    found = summary["comparisons"][0]
    assert len(rows) == 4 and found["success"]["second_only"] == 2 and found["difference"]["high"] < 0
    assert "good against start" in printed and "mPE below 3 mm: 0 of 2" in printed and "a cube of 100 mm" in printed
    assert xvr("evaluate", "--config", tmp_path / "config.yaml", "-o", tmp_path / "again")[:2] == (0, printed)


@pytest.mark.parametrize("form", ["results", "result.json", "pose.tfm", "Pose.save"])
def test_every_form_of_truth(done, tmp_path, form):
    """A registration beside itself is off by nothing, in whatever form"""
    truth = done.good if form == "results" else tmp_path / "truth"
    truth.mkdir(exist_ok=True)
    for name in done.names if form != "results" else ():
        result = done.good / name / "result.json"
        if form == "Pose.save":
            Pose(torch.tensor(json.loads(result.read_text())["final"]["matrix"])).save(truth / f"{name}.json")
        else:
            shutil.copy(result.with_name(form), truth / f"{name}{result.with_name(form).suffix}")
    _, _, rows = evaluate([done.good], truth, tmp_path / "out")
    assert all(float(row["final_mtre"]) < 1e-3 < 1 < float(row["initial_mtre"]) for row in rows)


def test_landmarks(case, done, tmp_path):
    """Slicer's LPS points and a table in RAS are the same points, on the CT"""
    ras = POINTS + read_volume(case.ct).centre
    lps = (ras * torch.tensor([-1.0, -1, 1])).tolist()
    markup = dict(type="Fiducial", coordinateSystem="LPS", controlPoints=[dict(position=p) for p in lps])
    (tmp_path / "points.mrk.json").write_text(json.dumps(dict(markups=[markup])))
    (tmp_path / "points.csv").write_text(
        "label,r,a,s\n" + "\n".join(f"F-{n}," + ",".join(map(str, p)) for n, p in enumerate(ras.tolist()))
    )
    (tmp_path / "far.csv").write_text("l,p,s\n0,0,9000\n")
    assert torch.allclose(read_landmarks(tmp_path / "points.csv"), ras, atol=1e-3)
    (_, _, a), (_, printed, b) = (
        evaluate([done.good], done.truth, tmp_path / name, "-v", case.ct, "--landmarks", tmp_path / f"points{name}")
        for name in (".mrk.json", ".csv")
    )
    assert [row["final_mtre"] for row in a] == [
        row["final_mtre"] for row in b
    ] and "3 landmarks of points.csv" in printed
    ask = ["evaluate", "-i", done.good, "-t", done.truth, "-o", tmp_path / "no", "-v", case.ct, "--landmarks"]
    assert "1 of 1 landmarks" in (line := complaint(*ask, tmp_path / "far.csv")) and "0.0, 0.0, 9000.0" in line
    (tmp_path / "line.mrk.json").write_text(json.dumps(dict(markups=[markup | dict(type="Line")])))
    assert "a Line" in complaint(*ask, tmp_path / "line.mrk.json")
    assert ".fcsv" in complaint(*ask, case.ct)
    assert not (tmp_path / "no").exists()


def test_lacking_files(case, done, tmp_path):
    """A truth without result or a result without truth is named; with --partial the one is a failure, the other left out"""
    some, truth, out = tmp_path / "some", tmp_path / "truth", tmp_path / "out"
    shutil.copytree(done.good / done.names[0], some / done.names[0])
    line = complaint("evaluate", "-i", some, "-t", done.truth, "-o", out)
    assert done.names[1] in line and "1 of 2" in line and "--partial" in line
    truth.mkdir()
    shutil.copy(done.truth / f"{done.names[0]}.json", truth)
    line = complaint("evaluate", "-i", done.good, "-t", truth, "-o", out)
    assert "1 of 2" in line and f"{done.names[1]}.json" in line
    summary, printed, rows = evaluate([some], done.truth, out, "--partial")
    assert (
        summary["results"]["some"]["success"]["final_mtre"]["2"]["of"] == 2
        and rows[1]["verdict"] == "no result"
        and rows[1]["final_mtre"] == ""
    )
    assert "without a result, so failures: 1" in " ".join(printed.split())
    assert len(evaluate([done.good], truth, out, "--partial")[2]) == 1
    (tmp_path / "empty").mkdir()
    assert "no result.json" in complaint("evaluate", "-i", tmp_path / "empty", "-t", done.truth, "-o", out)
    assert "2 of 2" in complaint("evaluate", "-i", done.good, "-t", tmp_path / "empty", "-o", out, "--partial")


def test_broken_files(done, tmp_path):
    results, truth, out = tmp_path / "results", tmp_path / "truth", tmp_path / "out"
    shutil.copytree(done.good, results)
    shutil.copytree(done.truth, truth)
    told = truth / f"{done.names[0]}.json"
    whole = told.read_text()
    moved = json.loads(whole)
    moved["geometry"]["source"][0] += 1
    for text, said in (
        ("{", "double quotes"),
        ("[]", "none of"),
        ('{"rot": [0, 0, 0]}', "xyz"),
        (whole.replace('"sdd"', '"sid"'), "sid"),
        (json.dumps(moved), "another frame"),
    ):
        told.write_text(text)
        line = complaint("evaluate", "-i", results, "-t", truth, "-o", out)
        assert said in line and told.name in line
    told.write_text(whole)
    result = results / done.names[1] / "result.json"
    result.write_text(result.read_text()[:500])
    assert f"{done.names[1]}/result.json is not a result" in complaint(
        "evaluate", "-i", results, "-t", truth, "-o", out
    )
    assert not out.exists()


def test_other_frames(case, done, tmp_path):
    """A CT with its centre elsewhere is told if it overlaps, refused if not; so is a truth that sees nothing"""
    image = sitk.ReadImage(str(case.ct))
    sitk.WriteImage(image[:, :, 4:], str(tmp_path / "cropped.nii.gz"))
    assert "10.0 mm from that of what was registered" in " ".join(
        evaluate([done.good], done.truth, tmp_path / "out", "-v", tmp_path / "cropped.nii.gz")[1].split()
    )
    image.SetOrigin([x + 1000 for x in image.GetOrigin()])
    sitk.WriteImage(image, str(tmp_path / "elsewhere.nii.gz"))
    assert "outside of the --volume" in complaint(
        "evaluate", "-i", done.good, "-t", done.truth, "-o", tmp_path / "no", "-v", tmp_path / "elsewhere.nii.gz"
    )
    for name in done.names:
        (tmp_path / "truth").mkdir(exist_ok=True)
        Pose.from_euler([0.0, 0, 0], [0.0, 800, 0]).save(tmp_path / "truth" / f"{name}.json")
    assert "AP or PA" in complaint("evaluate", "-i", done.good, "-t", tmp_path / "truth", "-o", tmp_path / "no")
    assert "--threshold" in complaint(
        "evaluate", "-i", done.good, "-t", done.truth, "-o", tmp_path / "no", "--threshold", 0
    )
    assert "--truth" in complaint("evaluate", "-i", done.good, "-o", tmp_path / "no", code=2)


def test_processes_write_together_what_one_writes(case, done, tmp_path, monkeypatch):
    words = ("evaluate", "-i", done.good, "-i", done.start, "-t", done.truth, "-v", case.ct, "-o")
    assert xvr(*words, tmp_path / "alone")[0] == 0
    shares = tmp_path / "shared" / ".shares"
    monkeypatch.setenv("WORLD_SIZE", "3")

    def process(rank):
        monkeypatch.setenv("RANK", str(rank))
        code, printed, err = xvr(*words, tmp_path / "shared")
        assert code == 0, err
        return printed

    assert process(2) == "this process measured its share, 1 of 4 results\n"
    shares.joinpath("1_of_3.json").write_text('{"about": "another evaluation", "measured": [0]}')
    assert process(0) == "this process measured its share, 2 of 4 results\n"
    assert not (tmp_path / "shared" / "summary.json").exists()
    assert process(1).count("mTRE at first") == 2 and not shares.exists()
    for name in ("evaluation.csv", "summary.json", "evaluation.png"):
        assert (tmp_path / "shared" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
