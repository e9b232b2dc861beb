"""Make README.md from nbs/index.ipynb: `python tools/readme.py`, or with `--check` fail if it differs.

What `nbdev_readme` does with Quarto, without Quarto: hidden cells go, links and pictures beside the notebook get their
folder, and links to other files of the repository lead there.
"""

import re
import sys
from configparser import ConfigParser
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

root = Path(__file__).resolve().parent.parent
HEAD = "<!-- Made from nbs/index.ipynb by tools/readme.py: edit the notebook. -->\n\n"


def repository() -> str:
    "The address of a file of the repository, up to its path"
    ini = ConfigParser(delimiters=["="])
    ini.read(root / "settings.ini", encoding="utf-8")
    return f"{ini['DEFAULT']['git_url']}/blob/{ini['DEFAULT']['branch']}/"


def convert() -> tuple[str, dict[str, bytes]]:
    "The README's text, and the pictures among the notebook's outputs by path"
    nb = nbformat.read(root / "nbs/index.ipynb", as_version=4)
    hidden = re.compile(r"^#\|\s*(hide|default_exp|include:\s*false)\b", re.M)
    nb.cells = [cell for cell in nb.cells if not (cell.cell_type == "code" and hidden.search(cell.source))]
    for cell in nb.cells:
        cell.source = re.sub(r"^#\|.*\n?", "", cell.source, flags=re.M) if cell.cell_type == "code" else cell.source
    nb.metadata["language_info"] = {"name": "python"}  # of the fences
    resources = {"unique_key": "index", "output_files_dir": "index_files"}
    text, resources = MarkdownExporter().from_notebook_node(nb, resources)
    text = re.sub(r"\]\((?![a-z]+:|[#/]|index_files/)", "](nbs/", text)  # a link beside the notebook
    text = re.sub(r"[ \t]+$", "", text.replace(f"]({repository()}", "]("), flags=re.M)
    return HEAD + re.sub(r"\n{3,}", "\n\n", text).strip() + "\n", resources["outputs"]


def main():
    text, pictures = convert()
    files = {root / "README.md": text.encode(), **{root / name: data for name, data in pictures.items()}}
    stale = [path for path, data in files.items() if not path.exists() or path.read_bytes() != data]
    if "--check" in sys.argv:
        sys.exit(
            f"{', '.join(p.name for p in stale)} not made from nbs/index.ipynb: python tools/readme.py" if stale else 0
        )
    for path in stale:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(files[path])


if __name__ == "__main__":
    main()
