"""The pages under docs tell the truth: their code runs and prints what they show."""

from __future__ import annotations

from pathlib import Path

import jax
import pytest

from tests.support import readme

PAGES = sorted((readme.README.parent / "docs").glob("*.md"))


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_of_a_page_prints_what_it_shows(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib").use("Agg")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    precision = jax.config.jax_enable_x64  # a page may choose it for its own program
    try:
        run(page, names)
    finally:
        jax.config.update("jax_enable_x64", precision)


def run(page: Path, names: dict[str, object]) -> None:
    for block in readme.blocks(page.read_text(encoding="utf-8")):
        text = readme.printed(block, names)
        if block.output is not None and text is not None:
            assert text == block.output, block.text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_pictures_of_a_page_exist(page: Path) -> None:
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.startswith("!["):
            assert (page.parent / line.rsplit("(", 1)[1].rstrip(")")).is_file(), line
