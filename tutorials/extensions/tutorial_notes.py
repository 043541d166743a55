"""What stands below the title of each tutorial on its page: how to get the notebook, and why outputs are missing."""

import json
import os
from pathlib import Path

WITHOUT_DATA = """:::{{note}}
This page was built where `GAMMAPY_DATA` is not set: the notebook needs data below it, and its outputs are not shown.
:::
"""
DOWNLOAD = "{{download}}`{name} <{name}>` is the notebook of this page: it runs by itself, in any folder."


def add_notes(app, docname, content):
    """Put the notes behind the title, on the page alone: the notebook is left as it is."""
    path = Path(app.env.doc2path(docname))
    if path.suffix != ".ipynb":
        return
    notebook = json.loads(content[0])
    notes = [DOWNLOAD.format(name=path.name)]
    if needs_data(content[0]) and "GAMMAPY_DATA" not in os.environ:
        notes.insert(0, WITHOUT_DATA.format())
    title, *rest = notebook["cells"]
    lines = "".join(title["source"]).split("\n")
    title["source"] = "\n".join([lines[0], "", *notes, *lines[1:]])
    notebook["cells"] = [title, *rest]
    content[0] = json.dumps(notebook)


def needs_data(text):
    """Whether a notebook reads data below ``GAMMAPY_DATA``."""
    return "$GAMMAPY_DATA" in text


def has_outputs(text):
    """Whether a notebook was executed before."""
    return any(cell.get("outputs") for cell in json.loads(text)["cells"])


def choose_what_is_executed(app, config):
    """Notebooks that have outputs are shown with them; those whose data are not here, without."""
    texts = {path.name: path.read_text() for path in sorted(Path(app.srcdir).glob("*.ipynb"))}
    without_data = {name for name, text in texts.items() if needs_data(text) and "GAMMAPY_DATA" not in os.environ}
    config.nb_execution_excludepatterns = [
        name for name, text in texts.items() if has_outputs(text) or name in without_data
    ]


def setup(app):
    app.connect("config-inited", choose_what_is_executed, priority=100)
    app.connect("source-read", add_notes, priority=100)
    return {"parallel_read_safe": True}
