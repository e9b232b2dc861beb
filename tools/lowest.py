"""Run the tests on the lowest release of each requirement: `python tools/lowest.py [--env FOLDER] [what pytest takes]`.

Every `>=` of the requirements in settings.ini becomes `==`, as a constraint on an environment made for it, which
`--env` keeps. With `--list` only the constraints are printed.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from configparser import ConfigParser
from pathlib import Path

root = Path(__file__).resolve().parent.parent


def lowest() -> list[str]:
    "A constraint for each requirement that has a lower bound"
    ini = ConfigParser(delimiters=["="])
    ini.read(root / "settings.ini", encoding="utf-8")
    needs = ini["DEFAULT"]["requirements"].split() + ini["DEFAULT"]["mp4_requirements"].split()
    bare = [need for need in needs if not re.match(r"[\w-]+[=>]=\d", need)]
    if bare:
        sys.exit(
            f"no lower bound in settings.ini: {', '.join(bare)}; give each the lowest release that the tests pass on"
        )
    return [re.sub(r"([\w-]+)>=([\w.]+).*", r"\1==\2", need) for need in needs]


def main():
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument("--env", type=Path, help="folder of the environment; it is kept, and used again where it exists")
    args.add_argument("--list", action="store_true", help="print the constraints")
    args, tests = args.parse_known_args()
    if args.list:
        print(*lowest(), sep="\n")
        return
    with tempfile.TemporaryDirectory() as work:
        env = args.env or Path(work) / "env"
        pins = Path(work) / "lowest.txt"
        pins.write_text("\n".join(lowest()), encoding="utf-8")
        subprocess.run([sys.executable, "-m", "venv", env], check=True)
        scripts = env.resolve() / ("Scripts" if os.name == "nt" else "bin")
        python = scripts / "python"
        subprocess.run([python, "-m", "pip", "install", "--quiet", "-c", pins, "-e", f"{root}[dev]"], check=True)
        # IPython adds the packages of VIRTUAL_ENV, whichever Python runs it
        path = f"{scripts}{os.pathsep}{os.environ['PATH']}"
        own = {**os.environ, "PATH": path, "VIRTUAL_ENV": str(env.resolve())}
        sys.exit(subprocess.run([python, "-m", "pytest", *tests], cwd=root, env=own).returncode)


if __name__ == "__main__":
    main()
