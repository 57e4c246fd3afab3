"""The benchmark counts and tabulates rightly; what it measures is not tested, only shown."""

import math

import pytest

from benchmarks import serving
from benchmarks.attention import OURS, THEIRS, TORCH, list_aims, make_tables
from benchmarks.table import END, START, Aim, Measurement, markdown, put_between, row
from benchmarks.turns import GEMM
from benchmarks.work import Case, count_flops, documents, make_segments


def test_forward_flops_are_the_pairs_below_the_diagonal() -> None:
    # A pair costs 2 H for its score and 2 H for its value, in each of 8 heads of 64.
    pairs = sum(1 for t in range(64) for s in range(64) if s < t) + 64 / 2
    assert count_flops([64], backward=False) == pairs * 4 * 64 * 8
    assert count_flops([64], backward=True) == 3.5 * count_flops([64], backward=False)


def test_packed_flops_are_those_of_each_document_alone() -> None:
    packed = Case(length=8192, kind="packed", backward=False)
    alone = [count_flops([n], backward=False) for n in packed.documents]
    assert packed.flops == pytest.approx(sum(alone))
    assert packed.flops < Case(length=8192, kind="plain", backward=False).flops / 5


def test_documents_fill_the_row_with_about_a_thousand_tokens_each() -> None:
    lengths = documents(1 << 16)
    assert sum(lengths) == 1 << 16
    assert all(512 <= n <= 1536 for n in lengths[:-1])
    assert 900 < sum(lengths) / len(lengths) < 1150


def test_positions_start_again_with_each_document() -> None:
    segments, positions = make_segments([3, 2])
    assert segments.tolist() == [[1, 1, 1, 2, 2]]
    assert positions.tolist() == [[0, 1, 2, 0, 1]]


def served(work: serving.Work, peer: str, seconds: float, tokens: int) -> serving.Speed:
    return serving.Speed(
        work=work, requests=1, peer=peer, seconds=seconds, tokens=tokens, peak=1_000_000
    )


def test_peers_are_compared_at_the_same_prompt_and_the_book_only_with_itself() -> None:
    ours, theirs = serving.OURS, serving.THEIRS
    found = [
        served("prefill", ours, 1.0, 512),
        served("prefill", theirs, 2.0, 512),
        served("first", ours, 100.0, 32768),
        served("second", ours, 0.5, 32768),
    ]
    ratios = {aim.claim: aim.ratio for aim in serving.list_aims(found)}
    assert ratios[f"prefill of 1: speed of {ours} / {theirs}"] == pytest.approx(2.0)
    assert ratios["second question on 32,768 tokens / first"] == pytest.approx(0.005)


def measured(peer: str, *seconds: float, **rest: str) -> Measurement:
    """A peer's repeats at some work of 2 GFLOP."""
    return Measurement(work="some", peer=peer, flops=2e9, seconds=seconds, peak=3_000_000, **rest)


def test_a_row_tells_the_fastest_repeat_and_its_ratios() -> None:
    cells = row(measured("x", 2.0, 0.5, 1.0), yardstick=0.25, gemm=8e9)
    assert cells == ("some", "x", "0.500", "2.00", "4.0", "50%", "3")


def test_a_peer_that_could_not_run_says_why_and_decides_no_aim() -> None:
    refused = measured(TORCH, refused="would need 9.9 GB")
    assert row(refused, math.nan, 1.0)[2:] == ("would need 9.9 GB", "", "", "", "")
    case = Case(length=512, kind="plain", backward=False)
    found = [measured(OURS, 1.0), refused, measured(THEIRS, 4.0)]
    verdicts = {aim.claim.split(": ")[1]: aim.met for aim in list_aims({case: found}, [])}
    assert not verdicts["ringworld / torch"]
    assert verdicts["ringworld / ringattention"]


def test_aims_compare_the_best_of_each_side() -> None:
    plain, packed = (Case(length=512, kind=kind, backward=True) for kind in ("plain", "packed"))
    rings = (measured(f"{OURS}, ring of 2", 6.0), measured(f"{OURS}, ring of 8", 11.0))
    theirs = (measured(THEIRS, 40.0), measured(f"{THEIRS}, ring of 2", 20.0))
    found = [measured(OURS, 10.0), *rings, *theirs, measured(TORCH, 8.0), measured(GEMM.name, 1.0)]
    results = {plain: found, packed: [measured(OURS, 1.0), measured(GEMM.name, 1.0)]}
    ratios = [aim.ratio for aim in list_aims(results, [])]
    assert ratios == pytest.approx([6 / 8, 6 / 20, 11 / 10, 6 / 1])
    assert len(make_tables(results, [], 0)[0][2]) == 9


def test_an_aim_is_met_on_its_side_of_the_bound() -> None:
    assert Aim(claim="", ratio=0.9, bound=1.0).met
    assert not Aim(claim="", ratio=1.1, bound=1.0).met
    assert Aim(claim="", ratio=6.0, bound=5.0, at_least=True).met
    assert not Aim(claim="", ratio=math.nan, bound=5.0, at_least=True).met


def test_markdown_goes_between_the_markers_and_nowhere_else() -> None:
    table = markdown(("a", "b"), [("1", "2")])
    assert table == "| a | b |\n| --- | --- |\n| 1 | 2 |"
    other, start, end = START.format("other"), START.format("one"), END.format("one")
    page = f"before\n{other}\n{start}\nold\n{end}\nafter\n"
    assert put_between(page, "one", table) == page.replace("old", table)
    with pytest.raises(ValueError, match="has no <!-- other: start"):
        put_between(page, "other", table)
