"""How the site is made from these documents: `make site`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

project = "crashproof"
copyright = "the crashproof contributors"  # noqa: A001 - the name that Sphinx asks for
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]

html_theme = "furo"
html_title = "crashproof"
html_static_path = ["pictures"]
html_favicon = "../src/crashproof/dashboard/page/icon.svg"
# The page works from a folder, without a server and without asking anybody.
html_theme_options = {"navigation_with_keys": True}

myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autoclass_content = "both"
napoleon_google_docstring = True

exclude_patterns = ["_build"]
# Links to sources and tests lead to copies of the files; folders cannot be copied.
suppress_warnings = ["myst.xref_missing"]


def _keep_colons(app, what, name, obj, options, lines):
    # Of a field's description, what stands before a colon would be taken for its type.
    if what == "attribute" and lines:
        lines[0] = lines[0].replace(": ", "; ")


def setup(app):
    """Hear the docstrings before they are read as Google's."""
    app.connect("autodoc-process-docstring", _keep_colons, priority=400)
