"""The pages under docs tell the truth: their code runs and prints what they show."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import jax
import pytest

import jaxmixed as jm
from jaxmixed.formula import parse
from jaxmixed.residual_text import parse_structure
from jaxmixed.stata_commands import COMMANDS
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


def test_the_table_of_structures_says_what_the_texts_mean() -> None:
    page = (readme.README.parent / "docs" / "longitudinal.md").read_text(encoding="utf-8")
    table = page.split("## Structures\n")[1].split("\n## ")[0].replace("\\|", "\0")
    rows = [line.split("|")[1:3] for line in table.splitlines() if line.startswith("|")]
    found = {
        text.replace("\0", "|"): names for names, texts in rows for text in re.findall(r'`"([^"]+)"`', texts)
    }
    assert len(found) > 15
    for text, names in found.items():
        structure = parse_structure(text)
        own = re.findall(r"`(\w+)\(", names)
        assert not own or type(structure).__name__ in own, text
        if option := re.search(r'variance_by="?(\w+)', names):
            assert str(structure.variance_by) == option[1], text


def table(page: str, heading: str) -> list[list[str]]:
    """The code in each cell of the rows of a section's table."""
    text = (readme.README.parent / "docs" / f"{page}.md").read_text(encoding="utf-8")
    lines = text.split(f"## {heading}\n")[1].split("\n## ")[0].replace("\\|", "\0").splitlines()
    rows = [line.strip("|").split("|") for line in lines if line.startswith("|")][2:]
    return [[cell.replace("\0", "|").strip() for cell in row] for row in rows]


def test_the_notations_side_by_side_are_the_same_models() -> None:
    rows = table("stata", "Side by side")
    assert len(rows) > 15
    for stata, ours, _ in rows:
        formula, arguments = jm.from_stata(f"mixed y {stata.strip('`')}")
        text, *options = re.findall("`([^`]+)`", ours)
        assert parse(formula) == parse(f"y ~ {text}"), stata
        given = {
            name: ast.literal_eval(value) for name, value in (option.split("=", 1) for option in options)
        }
        structure = arguments.pop("residuals", None)
        assert (structure is None) == ("residuals" not in given), stata
        if structure is not None:
            mine = parse_structure(given.pop("residuals"))
            assert type(structure) is type(mine), stata
            assert (structure.time, structure.variance_by) == (mine.time, mine.variance_by), stata
        assert {"method": arguments["method"], **given} == arguments, stata
        if stata.endswith("reml`"):
            assert arguments["method"] == "reml", stata


def test_the_page_on_stata_names_every_command() -> None:
    rows = table("stata", "Commands")
    named = {word for _, cell, _ in rows for word in re.findall("`([a-z0-9 ]+)", cell)}
    for command in COMMANDS:
        first, _, second = command.partition(" ")
        assert command in named or (first == "label") or (first == "estimates" and second in named), command
    for _, cell, _ in rows:
        for word in re.findall("`(e[a-z]+ [a-z]+)`", cell):
            assert word in COMMANDS, word
