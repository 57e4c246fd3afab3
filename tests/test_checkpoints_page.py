"""The page of checkpoints shows the tables of the code."""

from dataclasses import replace
from pathlib import Path

from ringworld.convert.codecs import diffusers_name, lwm_name, their_names
from ringworld.convert.names import NAMES
from ringworld.models.vqgan import NANO

PAGE = Path(__file__).resolve().parent.parent / "docs" / "checkpoints.md"


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown, every cell of it code."""
    cells = [[f"`{cell}`" if cell else "" for cell in row] for row in rows]
    lines = [head, ["---"] * len(head), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def names() -> str:
    """Every weight of a model on all sides."""
    rows = [[name.ours, name.hugging_face, name.gguf, name.lwm] for name in NAMES]
    return table(["ours", "Hugging Face", "GGUF", "LWM"], rows)


def codec() -> str:
    """The weights of a codec of two levels, one block each, without those that differ in number."""
    config = replace(NANO, multipliers=(1, 2), blocks=1)
    rows = [
        [ours, diffusers_name(ours), lwm_name(ours)]
        for ours in their_names(config, diffusers_name)
        if "levels.0." not in ours.replace("levels.0.resample", "") and ".blocks.1" not in ours
    ]
    rows = [row for row in rows if ".bias" not in row[0] and ".mid.1" not in row[0]]
    return table(["ours", "diffusers", "LWM"], rows)


def test_every_name_is_on_the_page() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert names() in page
    assert codec() in page
