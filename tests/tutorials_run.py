"""The tutorials, executed once in a session of tests: all in one folder, in whatever order they are asked for."""

from pathlib import Path

import nbformat
from nbclient import NotebookClient
from shared import made_once, session_folder

TUTORIALS = Path(__file__).parent.parent / "tutorials"
NOTEBOOKS = sorted(TUTORIALS.glob("*.ipynb"))
TIMEOUT = 600  # s a cell; a notebook takes less than 2 min on two cores


def executed(path):
    """Path of the executed copy of a notebook."""

    def run(folder):
        together = session_folder() / "tutorials-together"
        together.mkdir(exist_ok=True)
        notebook = nbformat.read(path, as_version=4)
        NotebookClient(
            notebook, timeout=TIMEOUT, kernel_name="python3", resources={"metadata": {"path": together}}
        ).execute()
        nbformat.write(notebook, folder / path.name)
        return folder / path.name

    return made_once(f"tutorial-{path.stem}", run)
