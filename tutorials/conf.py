"""Settings of the pages: `python -m sphinx -W -n -b html tutorials pages`, with the extra `docs` installed."""

import os
import sys
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "extensions"))

project = "gammapy_accmaker"
author = "The gammapy_accmaker developers"
version = release = metadata.version("gammapy_accmaker")
project_copyright = f"2026, {author}; version {release}"

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "numpydoc",
    "myst_nb",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx-mathjax-offline",
    "package_reference",
    "tutorial_notes",
]
exclude_patterns = ["extensions", "images", "README.md"]
default_role = "py:obj"  # as in the docstrings of gammapy: one pair of backquotes is a link
nitpicky = True
# links to other packages are made where there is a network, and left as names where there is none
ONLINE = "READTHEDOCS" in os.environ
intersphinx_mapping = (
    {
        "python": ("https://docs.python.org/3", None),
        "numpy": ("https://numpy.org/doc/stable", None),
        "astropy": ("https://docs.astropy.org/en/stable", None),
        "regions": ("https://astropy-regions.readthedocs.io/en/stable", None),
        "gammapy": ("https://docs.gammapy.org/stable", None),
    }
    if ONLINE
    else {}
)
nitpick_ignore_regex = [
    ("py:.*", r"(gammapy|astropy|numpy|regions|matplotlib|pathlib|pydantic|collections|typing)\..*"),
    ("py:.*", r"(None|bool|int|float|str|dict|list|tuple|callable|optional|ndarray|Path)"),
]

autodoc_typehints = "none"  # the docstrings say types, shapes and units
autodoc_member_order = "bysource"
numpydoc_show_class_members = False
numpydoc_xref_param_type = False

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

# a notebook without outputs, as they are in the repository, is run, alone in a folder of its own
nb_execution_mode = "off" if os.environ.get("ACCMAKER_PAGES_WITHOUT_OUTPUTS") else "force"
nb_execution_in_temp = True
nb_execution_timeout = 600
nb_execution_raise_on_error = True
nb_merge_streams = True
nb_ipywidgets_js = {}

html_theme = "pydata_sphinx_theme"
html_title = f"gammapy_accmaker {release}"
html_static_path = ["static"]
html_css_files = ["pages.css"]
html_show_sourcelink = False
toc_object_entries_show_parents = "hide"
html_theme_options = {
    "logo": {"text": "gammapy_accmaker"},  # without the version it fits on a phone
    "navigation_with_keys": False,
    "secondary_sidebar_items": ["page-toc"],
    "show_prev_next": True,
    "navbar_align": "left",
    "footer_start": ["copyright"],
    "footer_end": [],
}
html_context = {"default_mode": "light"}
