"""The site is built without a warning, shows formulas, tables and the whole API, and loads nothing from elsewhere."""

from __future__ import annotations

import re
import sys

import pytest
from helpers.processes import ROOT, run

import noisin


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    built = run([sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)], cwd=ROOT)
    assert (built.returncode, built.stdout + built.stderr) == (0, "")
    return {path.relative_to(folder).as_posix(): path.read_text("utf-8") for path in folder.rglob("*.html")}


def test_the_reference_has_all_that_is_public(site):
    headings = set(re.findall(r'<h3 id="noisin\.[\w.]*?(\w+)"', site["docs/api.html"]))
    assert headings == set(noisin.__all__)


@pytest.mark.parametrize("page", ["docs/method.html", "docs/api.html"])
def test_formulas_are_mathml_and_no_markup_of_theirs_is_left(site, page):
    assert "<math" in site[page]
    left = re.sub(r"<math.*?</math>|<code>.*?</code>", "", site[page], flags=re.DOTALL)
    assert not re.search(r"\\frac|\$\$|math::|arithmatex", left)


def test_tables_are_tables_also_in_folded_parts(site):
    assert not re.search(r"^\|", site["docs/results.html"], re.MULTILINE)


def test_a_page_loads_nothing_from_elsewhere(site):
    for name, page in site.items():
        assert not re.findall(r'<(?:script|img|link)\b[^>]*\b(?:src|href)="(?:https?:)?//[^"]*"', page), name
