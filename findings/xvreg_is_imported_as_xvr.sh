#!/bin/sh
# The distribution xvreg 0.1.0 (X-ray to volume registration) has no module of its name: it installs the import package
# and the command `xvr`, so any other distribution with an xvr in it is overwritten without a word from pip.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --no-deps xvreg==0.1.0
"$work/venv/bin/python" - <<'PY'
from importlib.metadata import distribution
from importlib.util import find_spec

found = distribution("xvreg")
tops = sorted({p.parts[0] for p in found.files if p.suffix == ".py"})
scripts = [e.name for e in found.entry_points if e.group == "console_scripts"]
print(f"xvreg {found.version} installs the packages {tops} and the commands {scripts}")
assert find_spec("xvreg") is None and find_spec("xvr") is not None and scripts == ["xvr"], "the behaviour has changed"
PY
