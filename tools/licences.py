"""Write THIRD_PARTY.md from what the installed packages say of themselves: `python tools/licences.py`.

`--check` fails if a requirement of settings.ini is missing there; `--all` prints the table of every installed package.
"""

import re
import sys
from configparser import ConfigParser
from importlib.metadata import PackageNotFoundError, distributions, metadata
from pathlib import Path

root = Path(__file__).resolve().parent.parent
page = root / "THIRD_PARTY.md"
HEAD = """# Licences of other packages

xvr is under the MIT licence ([LICENSE](LICENSE)). It holds no code of others but one file, and needs the packages
below, which pip installs beside it. Each keeps its own licence, named here as in its metadata. `python
tools/licences.py` makes this page; `python tools/licences.py --all` lists every package of an environment, with those
that these bring along.

`av` is not required: its wheel bundles FFmpeg with x264, which is under the GPL, and only MP4 films need it.

"""
# The file of others: tools/three.sh makes it
THREE = """
## three.js

`xvr/three.min.js` is three.js 0.183.2, the parts of it that `xvr/scene.js` uses, under the MIT licence:

> Copyright © 2010-2026 three.js authors
>
> Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
> documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
> rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to
> permit persons to whom the Software is furnished to do so, subject to the following conditions:
>
> The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
> Software.
>
> THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
> WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS
> OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
> OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""


def needs() -> dict[str, str]:
    "The packages of settings.ini, and what each is needed for"
    ini = ConfigParser(delimiters=["="])
    ini.read(root / "settings.ini", encoding="utf-8")
    settings = ini["DEFAULT"]
    found = {}
    for key in ("requirements", "mp4_requirements", "cuda_requirements", "dev_requirements"):
        purpose = "" if key == "requirements" else key.removesuffix("_requirements")
        for need in settings[key].split():
            found.setdefault(re.match(r"[\w.-]+", need)[0], purpose)
    return found


def licence(name: str) -> str:
    "The licence that a package's metadata gives"
    tags = metadata(name)
    if expression := tags.get("License-Expression"):
        return expression
    classified = [c.split(" :: ")[-1] for c in tags.get_all("Classifier", []) if c.startswith("License :: ")]
    classified = [c for c in classified if c != "OSI Approved"]
    lines = [line.strip() for line in (tags.get("License") or "").splitlines() if line.strip()]
    free = "several, in the package" if len(lines) > 3 else "not given" if not lines else lines[0]
    return ", ".join(classified) or free


def table(names: dict[str, str]) -> str:
    rows = ["| package | licence | extra |", "|---|---|---|"]
    for name, purpose in sorted(names.items(), key=lambda item: item[0].lower()):
        try:
            rows.append(f"| {name} | {licence(name)} | {purpose} |")
        except PackageNotFoundError:
            sys.exit(f"{name} is not installed; pip install -e '.[dev,mp4,cuda]'")
    return "\n".join(rows) + "\n"


def main():
    if "--all" in sys.argv:
        print(table({d.metadata["Name"]: "" for d in distributions()}), end="")
    elif "--check" in sys.argv:
        text = page.read_text(encoding="utf-8")
        if missing := [name for name in needs() if f"| {name} |" not in text]:
            sys.exit(f"THIRD_PARTY.md lacks {', '.join(missing)}; python tools/licences.py")
    else:
        page.write_text(HEAD + table(needs()) + THREE, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
