"""What MkDocs needs besides its configuration: which files make the site, the list of the API, and maths as MathML."""

import html
import re
import textwrap
from pathlib import Path

import griffe
import latex2mathml.converter
from mkdocs.structure.files import File, Files

import noisin

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("*.md", "docs/*.md", "docs/*.css", "docs/*.png", "data/README.md", "src/noisin/pretrained/*/README.md")
LINKED = (
    *("experiments/results/*/*.png", "benchmarks/*.png", "notebooks/*.ipynb"),
    *("LICENSE", "CITATION.cff", "Dockerfile"),
)


def on_files(files, config):
    """Take the repository's pages and what they link to, at their own paths, so that links work as on GitHub."""
    paths = [path for pattern in (*PAGES, *LINKED) for path in sorted(ROOT.glob(pattern))]
    taken = [File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)) for path in paths]
    theme = [file for file in files if not str(file.abs_src_path).startswith(str(ROOT / "docs"))]
    return Files([*theme, *taken, File.generated(config, "docs/api.md", content=_api())])


def _api():
    """List what is public, by module; mkdocstrings puts the docstrings in."""
    lines = ["# API reference\n", "`import noisin` gives all names on this page. Each is imported when first used.\n"]
    for module, names in noisin._MODULES.items():
        lines += [f"## noisin.{module}\n", *(f"::: noisin.{module}.{name}\n" for name in names)]
    return "\n".join(lines)


class Docstrings(griffe.Extension):
    """Turns what numpydoc, Gluon and Sphinx write in docstrings into Markdown."""

    def on_instance(self, *, obj, **_):
        if obj.docstring:
            text = re.sub(r"^\.\. math::(.*(?:\n +\S.*)*)", _formula, obj.docstring.value, flags=re.M)
            text = re.sub(r"^Inputs:\n", "Notes\n-----\nInputs:\n", text, flags=re.M)
            obj.docstring.value = re.sub(r"^(Inputs|Outputs):\n((?: .*\n?)+)", _list, text, flags=re.M)


def _list(section):
    return f"**{section[1]}**\n\n{textwrap.dedent(section[2])}"


def _formula(directive):
    formula = " ".join(directive[1].split())
    if "&" in formula:
        formula = rf"\begin{{split}} {formula} \end{{split}}"
    return f"$$\n{formula}\n$$"


def on_page_markdown(markdown, **_):
    """Read Markdown inside of folded parts, as GitHub does."""
    return markdown.replace("<details>", '<details markdown="1">')


def on_page_content(content, **_):
    """Turn the formulas that arithmatex has marked into MathML, which browsers show without a script."""
    return re.sub(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', _mathml, content, flags=re.DOTALL)


def _mathml(marked):
    formula, block = html.unescape(marked[2]).strip(), marked[1] == "div"
    shown = latex2mathml.converter.convert(formula, display="block" if block else "inline")
    return f'<div class="formula">{shown}</div>' if block else shown
