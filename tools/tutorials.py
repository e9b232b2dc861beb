"""Run the tutorials as a reader would, far from this repository: `python tools/tutorials.py [NAME ...]`.

A wheel of the package is built, an environment is made that holds a notebook's kernel, and each notebook is copied
alone into an empty folder and run there from its first cell to its last, also those under `#| slow`. Its first cell
installs the package, as on Colab: the wheel stands for its address there. Data are downloaded where a tutorial wants
them; `XVR_SAMPLES` in the environment names a folder that has them already.

--env FOLDER  where the environment is made; it is kept, and used again where it exists
--colab       an environment with Colab's packages (tools/colab.txt), and the folder /content
--at FOLDER   the folder, which must be empty or absent, in place of a temporary one
--tidy        run nothing: of each bar in the outputs that are stored, keep what a terminal would show at the end
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from home import words

root = Path(__file__).resolve().parent.parent
tutorials = root / "nbs/tutorials"


def build(folder: Path) -> Path:
    "A wheel of the package"
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, root]
    made = subprocess.run(build, capture_output=True, text=True)
    if made.returncode:
        sys.exit(made.stdout + made.stderr)
    (wheel,) = folder.glob("*.whl")
    return wheel


def make_env(folder: Path, packages: list) -> Path:  # Its programs
    "An environment with these packages, in a folder that may have it already"
    programs = folder.resolve() / ("Scripts" if os.name == "nt" else "bin")
    if programs.exists():
        subprocess.run([programs / "python", "-m", "pip", "uninstall", "--quiet", "--yes", "xvr"], check=True)
    else:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([programs / "python", "-m", "pip", "install", "--quiet", *packages], check=True)
    return programs


def run(notebook: Path, folder: Path, programs: Path, wheel: Path) -> str:  # What failed, or nothing
    "Run a copy of the notebook in the folder, where nothing else is"
    home = f"git+{words()['address']}"
    content = json.loads(notebook.read_text(encoding="utf-8"))
    for cell in content["cells"]:
        cell["source"] = "".join(cell["source"]).replace(home, wheel.as_posix())
        if cell["cell_type"] == "code":
            cell["outputs"] = []
    (folder / notebook.name).write_text(json.dumps(content), encoding="utf-8")
    own = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME", "MPLBACKEND")}
    own |= dict(PATH=f"{programs}{os.pathsep}{os.environ['PATH']}", VIRTUAL_ENV=str(programs.parent))
    execute = [programs / "jupyter-execute", "--timeout=3600", notebook.name, "--output=ran.ipynb"]
    done = subprocess.run(execute, cwd=folder, env=own, capture_output=True, text=True)
    return done.stderr if done.returncode else ""


def tidy(notebook: Path):
    "Lines that were written over in the stored outputs go"
    book = json.loads(notebook.read_text(encoding="utf-8"))
    for cell in book["cells"]:
        for out in cell.get("outputs", []):
            if out["output_type"] == "stream":
                lines = "".join(out["text"]).replace("\r\n", "\n").split("\n")
                shown = [[part for part in line.split("\r") if part.strip()][-1:] for line in lines]
                text = "\n".join("".join(parts).rstrip() for parts in shown)
                out["text"] = re.sub(r"^.*\d+%\|.*\n", "", text, flags=re.M).splitlines(True)
    notebook.write_text(json.dumps(book, sort_keys=True, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("names", nargs="*", help="of tutorials; all if none is given")
    args.add_argument("--env", type=Path)
    args.add_argument("--colab", action="store_true")
    args.add_argument("--at", type=Path)
    args.add_argument("--tidy", action="store_true")
    args = args.parse_args()
    names = args.names or sorted(path.stem for path in tutorials.glob("*.ipynb"))
    if absent := [name for name in names if not (tutorials / f"{name}.ipynb").exists()]:
        sys.exit(
            f"no tutorial {', '.join(absent)}; there are {', '.join(sorted(p.stem for p in tutorials.glob('*.ipynb')))}"
        )
    if args.tidy:
        for name in names:
            tidy(tutorials / f"{name}.ipynb")
        return
    failed = []
    with tempfile.TemporaryDirectory() as work:
        wheel = build(Path(work) / "dist")
        packages = ["-r", root / "tools/colab.txt"] if args.colab else ["ipykernel", "nbclient"]
        programs = make_env(args.env or Path(work) / "env", packages)
        for name in names:
            folder = args.at or (Path("/content") if args.colab else Path(work) / name)
            folder.mkdir(exist_ok=True)
            if any(folder.iterdir()):
                sys.exit(f"{folder} is not empty; a tutorial runs where nothing else is")
            began = time.perf_counter()
            wrong = run(tutorials / f"{name}.ipynb", folder, programs, wheel)
            left = sorted(path.name for path in folder.iterdir())
            print(
                f"{name}: {'failed' if wrong else 'ran'} in {time.perf_counter() - began:.0f} s; left {left}",
                flush=True,
            )
            if wrong:
                failed.append(name)
                print(wrong, flush=True)
            for path in folder.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
