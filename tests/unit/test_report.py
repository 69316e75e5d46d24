"""The report: one page that needs nothing else, with the numbers of the fit, and safe whatever names are."""

from __future__ import annotations

import importlib.util
import os
import re
from functools import cache
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

import jaxmixed as jm
from jaxmixed import report
from jaxmixed.cli import main
from jaxmixed.report import call_of, render
from jaxmixed.report_words import listed, model_in_words
from tests.support.fits import aliased, fit, quietly, sleepstudy

pytest.importorskip("jinja2")

VOID = {"meta", "img", "br", "hr", "link", "input"}
HOSTILE = "<script>alert(1)</script>"


class Page(HTMLParser):
    """Elements of a page with their attributes, its text, and whether tags close in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@cache
def page(ddf: str = "none") -> str:
    return render(sleepstudy(), ddf=ddf, figures=False)


def test_the_page_is_well_formed_and_needs_nothing_else() -> None:
    found = Page(page())
    assert found.open == []
    assert page().startswith("<!DOCTYPE html>")
    assert not {"script", "link", "iframe", "object", "base", "form"} & {tag for tag, _ in found.elements}
    for _, attributes in found.elements:
        assert not {"src", "href", "onload", "onclick"} & set(attributes)
    assert "url(" not in page()
    assert "@import" not in page()
    policy = next(own["content"] for own in found.all("meta") if own.get("http-equiv"))
    assert policy.startswith("default-src 'none'")


def test_the_page_can_be_read_aloud() -> None:
    found = Page(page())
    assert found.all("html") == [{"lang": "en"}]
    assert len(found.all("h1")) == 1
    assert len(found.all("main")) == 1
    assert all(own.get("scope") in {"col", "row", "rowgroup"} for own in found.all("th"))
    identifiers = [own["id"] for _, own in found.elements if own.get("id")]
    assert len(set(identifiers)) == len(identifiers)
    assert {own["aria-labelledby"] for _, own in found.elements if "aria-labelledby" in own} <= set(
        identifiers
    )


def test_the_page_has_every_number_of_the_summary() -> None:
    text = Page(page("satterthwaite")).text
    summary = sleepstudy().summary(ddf="satterthwaite")
    cells = [cell.strip() for table in summary.tables for row in table.rows for cell in row]
    assert all(cell in text for cell in cells)
    assert all(value.strip() in text for side in summary.facts for _, value in side)
    assert summary.footer[0] in text


def test_the_page_has_certificate_shares_and_session() -> None:
    text = Page(page()).text
    for expected in (
        "Hessian eigenvalues",
        "0.458, 0.977, 1.57",
        "R-squared",
        "0.7992",
        "Intraclass correlation",
    ):
        assert expected in text
    assert call_of(sleepstudy()) in text
    assert f"jaxmixed {jm.__version__}" in text
    assert "every check of the optimum passed" in text


def test_bad_news_comes_first() -> None:
    stopped = quietly("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy"), max_iterations=1)
    text = " ".join(Page(render(stopped, figures=False)).text.split())
    assert text.index("The fit may be wrong") < text.index("limit on iterations") < text.index("The model")
    assert "were to maximise" in text
    assert "every check" not in text
    singular = " ".join(Page(render(fit("dyestuff2", "Yield ~ 1 + (1 | Batch)"), figures=False)).text.split())
    assert singular.index("Read this first") < singular.index("The model without (1 | Batch)")
    assert "dropped" in Page(render(aliased(), figures=False)).text


def test_a_linear_model_has_a_report_too() -> None:
    text = Page(render(fit("sleepstudy", "Reaction ~ Days"), figures=False)).text
    assert "this is a linear model" in text
    assert "closed form" in text


def test_nothing_that_data_are_called_becomes_markup_or_a_template() -> None:
    data = jm.datasets.load("sleepstudy").rename(columns={"Days": HOSTILE, "Subject": "{{ 7 * 7 }}<b>"})
    data["f"] = np.where(data[HOSTILE] > 4, "\x1b[31mred\u202e</td>", "{% raw %}&amp;")
    found = jm.mixed(f"Reaction ~ `{HOSTILE}` + f + (1 | `{{{{ 7 * 7 }}}}<b>`)", data)
    made = render(found, figures=False, title=f'"{HOSTILE}" {{{{ 1 }}}}')
    parsed = Page(made)
    assert parsed.open == []
    assert not parsed.all("script")
    assert not parsed.all("b")
    assert HOSTILE in parsed.text
    assert "{{ 7 * 7 }}<b>" in parsed.text
    assert "{% raw %}&amp;" in parsed.text
    assert "\x1b" not in made
    assert "\u202e" not in made


def test_pictures_are_embedded_with_words_for_those_who_do_not_see_them() -> None:
    pytest.importorskip("matplotlib").use("Agg")
    pyplot = pytest.importorskip("matplotlib.pyplot")
    data = jm.datasets.load("sleepstudy")
    data["Subject"] = data["Subject"].astype(str).replace({"308": '"><img src=x onerror=alert(1)>'})
    found = jm.mixed("Reaction ~ Days + (Days | Subject)", data)
    before = pyplot.get_fignums()
    parsed = Page(render(found))
    assert pyplot.get_fignums() == before
    shown = parsed.all("img")
    assert len(shown) == len(parsed.all("figure")) == 2
    for own in shown:
        assert re.match(r"data:image/(svg\+xml|png);base64,[A-Za-z0-9+/=]+$", own["src"] or "")
        assert set(own) == {"src", "alt", "width", "height"}
    assert "Panels: " in (shown[0]["alt"] or "")
    assert '("><img src=x onerror=alert(1)>)' in (shown[1]["alt"] or "")


def test_a_report_is_written_whole_and_nothing_is_overwritten(tmp_path: Path) -> None:
    target = tmp_path / "sleep.html"
    assert sleepstudy().report(target, figures=False) == target
    first = target.read_text(encoding="utf-8")
    assert first.rstrip().endswith("</html>")
    with pytest.raises(jm.DataError, match="overwrite=True"):
        sleepstudy().report(target, figures=False)
    sleepstudy().report(str(target), figures=False, overwrite=True, level=0.9)
    assert "[90% conf." in target.read_text(encoding="utf-8")
    assert [entry.name for entry in tmp_path.iterdir()] == ["sleep.html"]


def test_a_write_that_fails_leaves_the_old_page_and_no_remains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "sleep.html"
    target.write_text("old")

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(jm.DataError, match="No space left"):
        sleepstudy().report(target, figures=False, overwrite=True)
    assert target.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("report.pdf", "must end in .html"),
        ("report", "must end in .html"),
        ("folder.html", "is a directory"),
        ("absent/report.html", "there is no directory"),
        ("\0.html", "not a usable file name"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused(name: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(jm.DataError, match=says):
        sleepstudy().report(f"{tmp_path}/{name}", figures=False)


def test_a_path_that_is_none_is_refused() -> None:
    with pytest.raises(jm.DataError, match="path=5"):
        sleepstudy().report(5)  # type: ignore[arg-type]


@pytest.mark.parametrize("library", ["jinja2", "matplotlib"])
def test_a_missing_library_is_named_with_its_extra(
    library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        report.importlib.util, "find_spec", lambda name: None if name == library else find(name)
    )
    with pytest.raises(jm.DataError, match=rf"needs {library}: pip install 'jaxmixed\[report\]'"):
        sleepstudy().report(tmp_path / "a.html")


def test_the_command_line_writes_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib").use("Agg")
    target = tmp_path / "a.html"
    arguments = ["fit", "sleepstudy", "Reaction ~ Days", "--quiet", "--report", str(target)]
    assert main(arguments) == 0
    assert Page(target.read_text(encoding="utf-8")).open == []
    assert main(arguments) == 2
    assert "--force" in capsys.readouterr().err
    assert main([*arguments[:-1], str(tmp_path / "a.txt")]) == 2
    assert "--report writes .html, .htm files, not '.txt'" in capsys.readouterr().err


def test_the_template_is_part_of_the_package() -> None:
    assert files("jaxmixed").joinpath("templates/report.html").is_file()


def test_the_model_in_words() -> None:
    words = " ".join(model_in_words(sleepstudy(), "kenward-roger"))
    assert "The intercept and the effect of Days vary between the 18 levels of Subject" in words
    assert "Kenward and Roger" in words
    nested = " ".join(model_in_words(fit("egsingle", "math ~ year + (year | schoolid/childid)"), "none"))
    assert "between the 1,721 levels of schoolid:childid" in nested
    assert "2 rows with missing values were left out (Reaction 2)." in " ".join(
        model_in_words(aliased(), "none")
    )
    assert listed(["a", "b"]) == "a and b"


def test_the_call_says_how_to_make_the_fit_again() -> None:
    assert (
        call_of(fit("machines", "score ~ Machine + (0 + Machine | Worker)", covariance="exchangeable"))
        == 'jaxmixed.mixed("score ~ Machine + (0 + Machine | Worker)", data, method="reml", '
        "covariance={'Worker': 'exchangeable'})"
    )
    assert (
        call_of(fit("mini_wright", "wm ~ 1 + (1 | id)", "ml"))
        == 'jaxmixed.mixed("wm ~ 1 + (1 | id)", data, method="ml")'
    )
