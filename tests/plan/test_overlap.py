"""The table of shortest pieces is the formula's, and the formula is the paper's."""

from pathlib import Path

import pytest

from ringworld.plan.overlap import LINKS, Link, shortest_piece

PAGE = (Path(__file__).parents[2] / "docs" / "attention.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("link", LINKS, ids=lambda link: link.name)
def test_the_pages_table_is_the_formulas(link: Link) -> None:
    pieces = [shortest_piece(link, group) for group in (1, 4, 8)]
    forward, backward = zip(*pieces, strict=True)
    numbers = (link.flops / link.bandwidth, *forward, *backward[:2])
    assert f"| {link.name} | " + " | ".join(f"{n:,.0f}" for n in numbers) + " |" in PAGE


def test_without_a_mask_the_forward_needs_what_the_paper_says() -> None:
    # Liu et al., table 2: an A100 with NVLink needs blocks of 1.0K when every pair is computed,
    # which is half of what it needs when half of them are.
    assert shortest_piece(LINKS[0], 1)[0] / 2 == pytest.approx(1.0e3, rel=0.05)


def test_shared_key_heads_shorten_the_piece_as_many_times() -> None:
    for link in LINKS:
        alone, shared = shortest_piece(link, 1), shortest_piece(link, 8)
        assert alone[0] / shared[0] == pytest.approx(8, rel=0.01)
