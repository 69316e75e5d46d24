"""The site has all pages, all public names and all examples."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import jaxmixed

DOCS = Path(__file__).resolve().parents[2] / "docs"
GALLERY = sorted((DOCS / "gallery").glob("*.py"))


def entries(page: Path) -> set[str]:
    """The pages that a page's tables of contents list."""
    trees = re.findall(r"^:::\{toctree\}\n(.*?)^:::$", page.read_text(encoding="utf-8"), re.M | re.S)
    lines = [line for tree in trees for line in tree.splitlines() if line and not line.startswith(":")]
    return {re.sub(r"^.*<(.*)>$", r"\1", line).removesuffix(".md") for line in lines}


def test_every_page_is_in_the_table_of_contents() -> None:
    listed = entries(DOCS / "index.md")
    assert {page.stem for page in DOCS.glob("*.md")} - {"index"} <= listed
    assert {"../README", "../CHANGELOG", "../CONTRIBUTING", "../examples/README"} <= listed
    assert {"auto_gallery/index", "reference"} <= listed
    assert entries(DOCS / "benchmarks.md") == {"../benchmarks/README", "../benchmarks/results/*"}


def test_the_reference_lists_every_public_name_once() -> None:
    # Options start with a colon.
    text = (DOCS / "reference.rst").read_text(encoding="utf-8")
    names = [line.strip() for line in text.splitlines() if line.startswith("   ") and ":" not in line]
    assert sorted(name for name in names if name) == sorted(jaxmixed.__all__)


@pytest.mark.parametrize("script", GALLERY, ids=lambda script: script.stem)
def test_a_script_of_the_gallery_starts_with_its_title(script: Path) -> None:
    title, line = (ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or "").splitlines()[:2]
    assert title
    assert line == "=" * len(title)


@pytest.mark.parametrize("script", GALLERY, ids=lambda script: script.stem)
def test_links_of_the_gallery_lead_to_pages(script: Path) -> None:
    for link in re.findall(r":doc:`([^`]+)`", script.read_text(encoding="utf-8")):
        folder = DOCS.parent if link.startswith("/") else script.parent
        ending = ".md" if link.startswith("/") else ".py"
        assert (folder / (link.lstrip("/") + ending)).is_file(), link
