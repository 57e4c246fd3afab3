"""The blocks a self-contained page is built of: markup, pictures, animations and tables.

Text is escaped wherever it is used, unless it is `Html`, and only `element` and `join_html` make
that. So pages are well-formed, and nothing that a model wrote can become markup. Pictures are
inside the page: it asks no other place for anything.
"""

from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from io import BytesIO
from pathlib import Path
from string import Template
from tempfile import TemporaryDirectory

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from ringworld.media.clip import write_animation

TEMPLATE = Path(__file__).with_name("page.html")
VOID = {"img", "source"}
WIDE_TABLE = 6  # columns, above which a table needs most of the page


class Html(str):
    """Markup; any other text is escaped where it is used."""


def join_html(children: Iterable[str]) -> Html:
    """Children in a row."""
    return Html("".join(child if isinstance(child, Html) else escape(child) for child in children))


def element(name: str, *children: str, **attributes: str) -> Html:
    """`<name attributes>children</name>`; `class_` means class and `aria_label` aria-label."""
    pairs = ((key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items())
    opening = name + "".join(f' {key}="{escape(value)}"' for key, value in pairs)
    return Html(f"<{opening}>" if name in VOID else f"<{opening}>{join_html(children)}</{name}>")


def png(frame: UInt8[np.ndarray, "Y X 3"]) -> bytes:
    """A frame as a PNG file."""
    out = BytesIO()
    Image.fromarray(frame).save(out, format="PNG", optimize=True)
    return out.getvalue()


def gif(frames: UInt8[np.ndarray, "Z Y X 3"], fps: float) -> bytes:
    """Frames as a looping GIF file."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "clip.gif")
        write_animation(path, frames, fps)
        return path.read_bytes()


def data_uri(kind: str, content: bytes) -> str:
    """A file's content as an address: `kind` is its media type."""
    return f"data:{kind};base64,{b64encode(content).decode()}"


def picture(content: bytes, alt: str, class_: str) -> Html:
    """A PNG, shown with `alt` to those who do not see it."""
    return element("img", src=data_uri("image/png", content), alt=alt, class_=class_)


def animation(frames: UInt8[np.ndarray, "Z Y X 3"], fps: float, alt: str) -> Html:
    """A looping clip; a still of its first frame for those who want no motion."""
    still = element(
        "source",
        media="(prefers-reduced-motion: reduce)",
        srcset=data_uri("image/png", png(frames[0])),
    )
    moving = element("img", src=data_uri("image/gif", gif(frames, fps)), alt=alt, class_="clip")
    return element("picture", still, moving)


def filmstrip(rows: Mapping[str, UInt8[np.ndarray, "Z Y X 3"]], labels: Sequence[str]) -> Html:
    """Frames side by side, those of further rows below them, a label under each column.

    The names of the rows are in the alternative texts of the frames.
    """
    columns = []
    for i, label in enumerate(labels):
        stack = [picture(png(row[i]), f"{name}, {label}", "frame") for name, row in rows.items()]
        columns.append(element("li", *stack, element("span", label)))
    return element("ol", *columns, class_="strip")


def figure(body: str, caption: str, class_: str = "") -> Html:
    """A figure with its caption."""
    return element("figure", body, element("figcaption", caption), class_=class_)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Html:
    """A table whose first column names its rows.

    Where its columns do not fit, each row becomes a list of its cells with the heads beside them.
    """
    top = element("tr", *(element("th", cell, scope="col") for cell in head))
    lines = []
    for first, *others in rows:
        name = element("th", first, scope="row")
        cells = [
            element("td", cell, data_head=label)
            for label, cell in zip(head[1:], others, strict=True)
        ]
        lines.append(element("tr", name, *cells))
    whole = element("table", element("thead", top), element("tbody", *lines))
    return element(
        "div", whole, class_="scroll wide" if len(head) > WIDE_TABLE else "scroll", tabindex="0"
    )


def bar(share: float, class_: str = "") -> Html:
    """A horizontal bar that fills `share` of its place; the number stands beside it in words."""
    fill = element("span", style=f"width:{100 * share:.1f}%")
    return element("span", fill, class_=f"bar {class_}".strip(), aria_hidden="true")


def section(name: str, lede: str, *parts: str) -> Html:
    """A chapter with its heading and first sentence; "Needle test" has the id `needle-test`."""
    head = (element("h2", name), element("p", lede, class_="lede"))
    return element("section", *head, *parts, id=name.lower().replace(" ", "-"))


def page(title: str, header: Html, main: Html) -> str:
    """The whole page."""
    template = Template(TEMPLATE.read_text(encoding="utf-8"))
    return template.substitute(title=escape(title), header=header, main=main)
