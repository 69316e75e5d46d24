"""The README tells the truth: its code runs and prints what it shows."""

import pytest

from tests.support import readme

DOCUMENT = readme.README.read_text(encoding="utf-8")


def test_every_block_of_the_readme_prints_what_it_shows(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib").use("Agg")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    compared = 0
    for block in readme.blocks(DOCUMENT):
        text = readme.printed(block, names)
        if block.output is not None and text is not None:
            assert text == block.output, block.text
            compared += 1
    assert compared >= 5


def test_the_readme_gives_its_two_commands_first():
    shell = [block.text for block in readme.blocks(DOCUMENT) if block.language == "sh"]
    assert shell[0].startswith(
        "python3 -m venv .venv && .venv/bin/pip install -q . && .venv/bin/jaxmixed fit "
    )
    assert "-m pytest" in shell[1]
    assert [line for line in DOCUMENT.splitlines() if line.startswith("<!-- command: ")] == [
        "<!-- command: fit -->",
        "<!-- command: tests -->",
    ]


def test_no_placeholder_is_left():
    assert not {word for word in ("TODO", "PLACEHOLDER", "FIXME", "XXX") if word in DOCUMENT}
