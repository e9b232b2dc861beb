"""Write the project's address, `git_url` in settings.ini, wherever it is needed: `python tools/home.py`.

That is, in a tutorial, the badge that opens it on Colab and the cell that installs the package there, and CITATION.cff;
nbdev writes the address into nbs/nbdev.yml. With `--check` it changes nothing and fails if one differs.
"""

import re
import sys
from configparser import ConfigParser
from pathlib import Path

root = Path(__file__).resolve().parent.parent
# What stands before the address, by file, and what is written there
COLAB = r"https://colab\.research\.google\.com/github/"
PLACES = {
    "nbs/**/*.ipynb": {r"%pip install -q git\+": "{address}", COLAB: "{slug}/blob/{branch}/{path}"},
    "CITATION.cff": {r'^repository-code: "': "{address}"},
}


def words() -> dict[str, str]:
    "The address, its part behind the host, and the branch"
    ini = ConfigParser(delimiters=["="])
    ini.read(root / "settings.ini", encoding="utf-8")
    found = ini["DEFAULT"]
    return dict(address=found["git_url"], slug=found["git_url"].split("/", 3)[-1], branch=found["branch"])


def main():
    stale = []
    for pattern, places in PLACES.items():
        for path in sorted(root.glob(pattern)):
            name = path.relative_to(root).as_posix()
            text = new = path.read_text(encoding="utf-8")
            for before, what in places.items():
                what = what.format(**words(), path=name)
                new = re.sub(rf'({before})[^\s"\\)]+', lambda found, what=what: found[1] + what, new, flags=re.M)
            if new != text:
                stale.append(name)
                if "--check" not in sys.argv:
                    path.write_text(new, encoding="utf-8", newline="\n")
    if stale and "--check" in sys.argv:
        sys.exit(f"{', '.join(stale)}: not the address in settings.ini; python tools/home.py")


if __name__ == "__main__":
    main()
