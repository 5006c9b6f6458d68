"""Run the notebooks and keep what they show: `python notebooks/save.py`, in the environment of `make notebooks`.

What is saved is what a reader shall see, and the same on every machine but for the figures: no times, no versions, no
name of a machine. `make notebooks` runs them too, and keeps nothing.
"""

import base64
import io
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def save(path: Path) -> None:
    """Execute one notebook in its own folder and write it back with what its cells show."""
    notebook = nbformat.read(path, as_version=4)
    folder = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=folder, record_timing=False).execute()
    notebook.metadata = nbformat.from_dict(METADATA)
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number:02}", nbformat.from_dict({})
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = smaller(output.data["image/png"])
    nbformat.validate(notebook)
    nbformat.write(notebook, path)


def smaller(png: str) -> str:
    """A drawing in 64 colours: to the eye the same, a fifth of the bytes."""
    stream = io.BytesIO()
    Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB").quantize(64).save(stream, "png", optimize=True)
    return base64.b64encode(stream.getvalue()).decode()


if __name__ == "__main__":
    for name in sys.argv[1:] or sorted(Path(__file__).parent.glob("*.ipynb")):
        save(Path(name))
