"""Write the project's address, `git_url` in settings.ini, wherever it is needed: `python tools/home.py`.

That is the cell of a notebook that installs the package on Colab, and CITATION.cff; nbdev writes it into nbs/nbdev.yml.
With `--check` it changes nothing and fails if one differs.
"""

import re
import sys
from configparser import ConfigParser
from pathlib import Path

root = Path(__file__).resolve().parent.parent
# What stands before the address, by file
BEFORE = {"nbs/**/*.ipynb": r"%pip install -q git\+", "CITATION.cff": r'^repository-code: "'}


def address() -> str:
    ini = ConfigParser(delimiters=["="])
    ini.read(root / "settings.ini", encoding="utf-8")
    return ini["DEFAULT"]["git_url"]


def main():
    stale = []
    for pattern, before in BEFORE.items():
        for path in sorted(root.glob(pattern)):
            text = path.read_text(encoding="utf-8")
            new = re.sub(rf'({before})[^\s"\\]+', lambda found: found[1] + address(), text, flags=re.M)
            if new != text:
                stale.append(path.relative_to(root).as_posix())
                if "--check" not in sys.argv:
                    path.write_text(new, encoding="utf-8", newline="\n")
    if stale and "--check" in sys.argv:
        sys.exit(f"{', '.join(stale)}: not the address in settings.ini; python tools/home.py")


if __name__ == "__main__":
    main()
