"""What pytest does not see, each a line when it fails: `python tools/check.py`."""

import ast
import json
import re
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import yaml

root = Path(__file__).resolve().parent.parent
nbs = root / "nbs"
notebooks = sorted(p for p in nbs.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
numbered = {
    p.stem[3:]: int(p.stem[:2]) for p in notebooks if re.match(r"\d\d_", p.stem)
}  # the module's name to its number


def cells(path: Path) -> list[str]:
    "The notebook's code cells, without lines that are not Python"
    found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [
        re.sub(r"^\s*[%!](?:.*\\\n)*.*$", "", "".join(c["source"]), flags=re.M)
        for c in found
        if c["cell_type"] == "code"
    ]


def code(path: Path) -> str:
    return "\n".join(cells(path))


def imported(tree: ast.AST):
    "Names of xvr's modules that the code imports, at any depth"
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
        if isinstance(node, ast.ImportFrom):
            names = [f"xvr.{n}" for n in names] if node.module == "xvr" else [node.module or ""]
        yield from (name.split(".")[1] for name in names if name.startswith("xvr."))


def import_order():
    "A notebook imports only lower-numbered ones"
    for path in notebooks:
        own = numbered.get(path.stem[3:])
        for module in sorted(set(imported(ast.parse(code(path), path.name)))):
            if own is not None and numbered.get(module, -1) >= own:
                yield f"{path.name} imports xvr.{module}, which comes at {numbered[module]:02d}: only lower numbers"


def imports_apart():
    "A cell with imports holds nothing else: a build of the docs runs it"
    for path in notebooks:
        for cell in cells(path):
            found = {type(node) for node in ast.walk(ast.parse(cell))}
            if (
                found & {ast.Import, ast.ImportFrom}
                and found & {ast.Expr, ast.Assign}
                and not re.search(r"^#\|\s*(export|eval: false)|nbdev_export\(\)", cell, re.M)
            ):
                yield (
                    f"{path.name} has a cell with imports and other code, which a build of the docs would run: "
                    f"{cell.strip().splitlines()[0]}"
                )


def links():
    "A link beside a notebook leads to a file, one to a file of the repository has the address in settings.ini"
    ini = ConfigParser(delimiters=["="])
    ini.read(root / "settings.ini", encoding="utf-8")
    home = f"{ini['DEFAULT']['git_url']}/blob/{ini['DEFAULT']['branch']}/"
    for path in notebooks:
        texts = [
            "".join(c["source"])
            for c in json.loads(path.read_text(encoding="utf-8"))["cells"]
            if c["cell_type"] == "markdown"
        ]
        for link in re.findall(r"\]\((?![a-z]+:|#)([^)#\s]+)", "\n".join(texts)):
            if not (path.parent / link).exists():
                yield f"{path.name} links to {link}, which does not exist"
        for start, file in re.findall(r"\]\((https?:[^)\s]*/blob/[^)/\s]*/)([A-Z_]+\.md)\)", "\n".join(texts)):
            if start != home or not (root / file).exists():
                yield f"{path.name} links to {start}{file}, not to a file at {home}"


def outputs():
    "A stored output is no warning or progress bar, has no escape codes, and names no folder of one machine"
    for path in notebooks:
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            for out in cell.get("outputs", []):
                text = "".join(out.get("text", [])) + "".join(out.get("data", {}).get("text/plain", []))
                if out.get("name") == "stderr" or re.search(r"(?<!\w)/(tmp|home|root|Users)/|\x1b", text):
                    yield f"{path.name} keeps, in the cell {cell['id']}, {text[:60]!r}"


def printed():
    "A cell that prints ends in no semicolon: execnb 0.1.18, which stores outputs, then drops what was printed"
    for path in notebooks:
        for cell in cells(path):
            names = [ast.unparse(n.func) for n in ast.walk(ast.parse(cell)) if isinstance(n, ast.Call)]
            if cell.rstrip().endswith(";") and "print" in names:
                yield f"{path.name} prints, and ends in a semicolon: {cell.strip().splitlines()[-1][:60]!r}"


def sizes():
    "A stored notebook is under 300 kB"
    for path in notebooks:
        if (size := path.stat().st_size) >= 300_000:
            yield f"{path.name} is {size / 1000:.0f} kB; under 300 kB please: fewer or smaller pictures"


def modules():
    "A numbered notebook exports the module of its name"
    for name, number in numbered.items():
        exports = re.findall(r"^#\|\s*default_exp\s+(\S+)", code(nbs / f"{number:02d}_{name}.ipynb"), re.M)
        if exports != [name]:
            yield f"{number:02d}_{name}.ipynb exports to {exports}, not to {name}"
        elif not (root / "xvr" / f"{name}.py").exists():
            yield f"xvr/{name}.py is missing: nbdev_export"


def sidebar():
    "The sidebar lists every notebook, and nothing else"

    def paths(items):
        for item in items:
            if isinstance(item, dict) and "contents" in item:
                yield from paths(item["contents"])
            else:
                yield item["href"] if isinstance(item, dict) else item

    config = yaml.safe_load((root / "_quarto.yml").read_text(encoding="utf-8"))
    listed = list(paths(config["website"]["sidebar"]["contents"]))
    there = [p.relative_to(nbs).as_posix() for p in notebooks]
    yield from (f"_quarto.yml lists {p}, which does not exist" for p in listed if p not in there)
    yield from (f"_quarto.yml does not list {p}" for p in there if p not in listed)
    if not (nbs / "_quarto.yml").is_symlink():
        yield "nbs/_quarto.yml is not a link to ../_quarto.yml"


def readme():
    "README.md is what tools/readme.py makes"
    done = subprocess.run([sys.executable, root / "tools/readme.py", "--check"], capture_output=True, text=True)
    if done.returncode:
        yield done.stderr.strip().splitlines()[-1]


def patches():
    "A module gives methods to its own classes only, so that none depends on what else was imported"
    for path in sorted(root.glob("xvr/*.py")):
        tree = ast.parse(path.read_text())
        own = {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and any("patch" in ast.unparse(d) for d in node.decorator_list):
                of = ast.unparse(node.args.args[0].annotation)
                if of not in own:
                    yield f"{path.name}: {of}.{node.name}"


def light():
    "`import xvr` and the command line's help import nothing heavy"
    heavy = "torch numpy matplotlib SimpleITK diffdrr numba pydicom wandb IPython"
    for what in [
        "import xvr",
        *(f"import xvr.cli; xvr.cli.main({a} + ['--help'])" for a in (["train"], ["register", "model"], [])),
    ]:
        script = (
            f"import sys\ntry:\n    {what}\nexcept SystemExit as end:\n    assert not end.code\nprint('loaded:', "
            f"*set('{heavy}'.split()) & set(sys.modules))"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=root)
        last = (done.stdout.strip() or done.stderr.strip()).splitlines()[-1]
        if last != "loaded:":
            yield f"{what}: {last}"


if __name__ == "__main__":
    found = [
        f"{check.__doc__}: {line}"
        for check in (
            import_order,
            imports_apart,
            links,
            outputs,
            printed,
            sizes,
            modules,
            sidebar,
            readme,
            patches,
            light,
        )
        for line in check()
    ]
    print(*found or ["checks passed"], sep="\n")
    sys.exit(bool(found))
