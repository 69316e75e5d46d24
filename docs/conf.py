"""How Sphinx builds the site: ``python -m sphinx -W -c docs . docs/_build`` from the root of the repository.

The root is the source folder, so that links between pages, results of benchmarks and examples are the same
files on the site and in the repository.
"""

import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jaxmixed

project = "jaxmixed"
version = release = jaxmixed.__version__
copyright = "the authors of jaxmixed, Apache License 2.0"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "numpydoc",
    "sphinx.ext.viewcode",
    "sphinx_gallery.gen_gallery",
]
templates_path = [str(Path(__file__).parent / "templates")]
root_doc = "docs/index"
include_patterns = [
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "benchmarks/README.md",
    "benchmarks/results/*.md",
    "examples/README.md",
    "docs/*.md",
    "docs/reference.rst",
    "docs/api/*.rst",
    "docs/auto_gallery/**",
]
exclude_patterns = [
    "docs/auto_gallery/**/*.ipynb",
    "docs/auto_gallery/**/*.py",
    "docs/auto_gallery/searchindex*",
]

# Pages in Markdown
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3  # links to sections, as the repository's pages have them
suppress_warnings = ["myst.header"]  # a page may start at the second level, as the results of benchmarks do

# Gallery: scripts that are run when the site is built
sphinx_gallery_conf = {
    "examples_dirs": "docs/gallery",
    "gallery_dirs": "docs/auto_gallery",
    "filename_pattern": ".*",
    "within_subsection_order": "FileNameSortKey",
    "capture_repr": ("_repr_html_", "__repr__"),
    "ignore_repr_types": r"matplotlib\.|numpy\.ndarray",  # the pictures themselves follow
    "download_all_examples": False,
    "show_signature": False,
    "write_computation_times": False,
    "remove_config_comments": True,
    "abort_on_example_error": True,
    "matplotlib_animations": False,
}
warnings.filterwarnings("error", module="jaxmixed")

# Reference, from the docstrings
autosummary_generate = True
autodoc_typehints = "none"  # docstrings give the types, with shapes
autodoc_member_order = "bysource"
numpydoc_show_class_members = False  # autodoc lists them

html_theme = "furo"
html_title = f"jaxmixed {release}"
html_extra_path = ["site"]  # the first page, at the address of the site
