#!/bin/sh
# execnb 0.1.18, which runs notebooks for nbdev 2.4.14, drops what a cell printed to standard output if the cell ends in a
# semicolon, also if the semicolon follows another statement. IPython, and so Jupyter, hides only the last value for it.
# What went to standard error is kept.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q execnb==0.1.18 nbdev==2.4.14 ipython==9.6.0
export IPYTHONDIR="$work/ipython"
cat > "$work/run.py" <<'PY'
import io
from contextlib import redirect_stdout

from execnb.shell import CaptureShell
from IPython.core.interactiveshell import InteractiveShell

CELLS = {
    "print('seen')": True,
    "print('seen');": False,
    "print('seen')\nlen('seen');": False,
    "import sys\nprint('seen', file=sys.stderr);": True,
}
shell = CaptureShell()
for cell, kept in CELLS.items():
    outputs = shell.run(cell)
    print(f"execnb: {cell!r}: {len(outputs)} outputs")
    assert ("seen" in str(outputs)) == kept, cell

plain = InteractiveShell()
for cell in list(CELLS)[:3]:
    with redirect_stdout(io.StringIO()) as printed:
        plain.run_cell(cell)
    print(f"IPython: {cell!r}: {printed.getvalue()!r}")
    assert printed.getvalue().count("seen") == 1, cell
PY
"$work/venv/bin/python" "$work/run.py"
