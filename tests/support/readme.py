"""The blocks of README.md: its commands, its Python code, and the outputs shown under them.

``python -m tests.support.readme`` runs the code and writes what it prints into the README; with the path of
another page as its argument, into that.
"""

import contextlib
import io
import os
import re
import shlex
import sys
import tempfile
import textwrap
import warnings
from dataclasses import dataclass
from pathlib import Path

README = Path(__file__).resolve().parents[2] / "README.md"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, where the text stands, and the output shown under it."""

    language: str
    text: str
    output: str | None
    output_span: tuple[int, int]


def blocks(document: str) -> list[Block]:
    """Code blocks in order; a ``text`` block that follows directly holds the output."""
    fences = list(FENCE.finditer(document))
    found = []
    for i, fence in enumerate(fences):
        if fence[1] == "text":
            continue
        after = fences[i + 1] if i + 1 < len(fences) else None
        directly = (
            after is not None and after[1] == "text" and not document[fence.end() : after.start()].strip()
        )
        shown, span = (after[2], after.span(2)) if directly else (None, (0, 0))
        found.append(Block(fence[1], fence[2], shown, span))
    return found


def command_arguments(shell: str) -> list[str] | None:
    """Arguments of the ``jaxmixed`` command in a shell block, if there is one."""
    words = shlex.split(shell)
    starts = [i for i, word in enumerate(words) if Path(word).name == "jaxmixed"]
    return words[starts[-1] + 1 :] if starts else None


def printed(block: Block, names: dict[str, object]) -> str | None:
    """What a block prints: Python code in the shared namespace, a ``jaxmixed`` command in this process."""
    stream = io.StringIO()
    with contextlib.redirect_stdout(stream):
        if block.language == "python":
            exec(compile(block.text, str(README), "exec"), names)  # the project's own README
        elif block.language == "sh" and (arguments := command_arguments(block.text)) is not None:
            from jaxmixed.cli import main

            status = main(arguments)
            if status:
                raise RuntimeError(f"jaxmixed {shlex.join(arguments)} ends with status {status}")
        else:
            return None
    return (
        textwrap.dedent("\n".join(line.rstrip() for line in stream.getvalue().splitlines())).strip("\n")
        + "\n"
    )


def rewrite(page: Path) -> None:
    """Run every block and write its output under it."""
    document, names = page.read_text(encoding="utf-8"), {}
    changes = []
    for block in blocks(document):
        text = printed(block, names)
        if block.output is not None and text is not None:
            changes.append((block.output_span, text))
    for (start, end), text in reversed(changes):
        document = document[:start] + text + document[end:]
    page.write_text(document, encoding="utf-8")


if __name__ == "__main__":
    os.environ.setdefault("MPLBACKEND", "Agg")
    warnings.simplefilter("error")
    page = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else README
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        rewrite(page)
