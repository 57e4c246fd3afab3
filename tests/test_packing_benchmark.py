"""The benchmark of packing: its corpora make full rows, and its ablation tells of every way."""

import pytest

from benchmarks.packing import CORPORA, PLAN_HEAD, WAYS, ablation, plan_corpus


@pytest.mark.parametrize("name", CORPORA)
def test_a_measured_plan_tells_how_full_its_rows_are(name: str) -> None:
    cells = dict(zip(PLAN_HEAD, plan_corpus(name, 3000), strict=True))
    full = float(cells["full"].rstrip("%"))
    # Three pictures with captions of some 330 tokens fit 1,024, four do not.
    assert full >= (90 if name == "pictures with captions" else 99)
    assert int(cells["pieces"].replace(",", "")) >= 3000 and cells["lengths"] == name


@pytest.mark.slow
def test_the_ablation_tells_of_every_way_of_packing(capsys: pytest.CaptureFixture[str]) -> None:
    ablation(steps=4, seeds=1)
    told = capsys.readouterr().out
    for way in WAYS:
        assert f"| {way.segments} | {way.weights} | " in told
