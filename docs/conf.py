"""The site of the pages and the API reference: `make docs` builds it.

Docstrings are written to be read in an editor: backticks for code, indented or aligned lines for
formulas and tables. `to_rst` turns that into what Sphinx reads.
"""

import builtins
import re

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx

import ringworld

project = "ringworld"
release = version = ringworld.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.viewcode"]
exclude_patterns = ["_templates"]
templates_path = ["_templates"]
html_theme = "furo"
html_title = f"ringworld {release}"
html_show_copyright = False
html_copy_source = False

myst_heading_anchors = 3
autosummary_generate = True
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
# A signature that is longer has one parameter on a line.
maximum_signature_line_length = 80

ALIGNED = re.compile(r"\S {2,}\S")
ITEM = re.compile(r"(\*|-|\d+\.) ")


def to_rst(lines: list[str]) -> list[str]:
    """A docstring as reStructuredText: blocks of prose, lists, and everything else as it stands."""
    found: list[str] = []
    for block in re.split(r"\n{2,}", "\n".join(lines).strip("\n")):
        rows = block.split("\n")
        starts = [bool(ITEM.match(row)) for row in rows]
        if starts[0] or not any(row.startswith(" ") or ALIGNED.search(row) for row in rows):
            prose = [escape(row) for row in rows]
            found += [row for i, row in enumerate(prose) for row in ([""] * starts[i] + [row])]
        else:
            found += [".. code-block:: text", "", *(f"    {row}" for row in rows)]
        found.append("")
    return found


def escape(row: str) -> str:
    """A row of prose: `code` as a literal, and nothing else marked up but a list's bullet."""
    bullet = ITEM.match(row)
    start = bullet.end() if bullet else 0
    parts = re.split(r"`+([^`]+)`+", row[start:])
    parts[::2] = [re.sub(r"([\\*|_<>])", r"\\\1", part) for part in parts[::2]]
    parts[1::2] = [f"\\ ``{part}``\\ " for part in parts[1::2]]
    return row[:start] + "".join(parts)


def rewrite_docstring(
    app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]
) -> None:
    """Give Sphinx the docstring in its own markup."""
    lines[:] = to_rst(lines)


def shorten_signature(
    app: Sphinx, what: str, name: str, thing: object, options: object, signature: str, returns: str
) -> tuple[str, str]:
    """Arrays by the names that the code has for them."""
    texts = [
        text and re.sub(r"jaxlib\._jax\.Array", "Array", text) for text in (signature, returns)
    ]
    return texts[0], texts[1]


def unlink_builtins(app: Sphinx, document: nodes.document) -> None:
    """`bytes` in a signature is the type, not the property of that name in some class."""
    for link in list(document.findall(pending_xref)):
        if link["refdomain"] == "py" and hasattr(builtins, link["reftarget"]):
            link.replace_self(link.children)


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", rewrite_docstring)
    app.connect("autodoc-process-signature", shorten_signature)
    app.connect("doctree-read", unlink_builtins)
