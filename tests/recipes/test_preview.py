"""A dry run tells what a recipe would do, and does nothing."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from ringworld import cli
from ringworld.errors import InputError
from ringworld.recipes.nano import NANO_SIZES, demo, nano_base
from ringworld.recipes.preview import StagePreview, preview
from ringworld.recipes.registry import RECIPES
from ringworld.weights.open import open_model
from ringworld.weights.shipped import NANO


def dry_run(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What is printed."""
    cli.run(["train", *words, "--dry-run"], lambda said: None)
    return capsys.readouterr().out


def read_table(said: str) -> dict[str, list[str]]:
    """The lines of a printed table, by their first cells."""
    rows = [re.split("[│┃]", line)[1:-1] for line in said.splitlines() if line[:1] in "│┃"]
    return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}


@pytest.mark.parametrize("name", RECIPES)
def test_a_dry_run_shows_every_stage_and_writes_nothing(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    table = read_table(dry_run(capsys, name))
    assert table["stage"] == [stage.name for stage in RECIPES[name]().stages]
    assert list(tmp_path.iterdir()) == []


def test_a_ladder_for_256_chips_is_shown_without_chips_weights_or_data(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = dry_run(capsys, "lwm-text")
    last = {name: cells[-1] for name, cells in read_table(said).items()}
    expected = {
        "stage": "1m",
        "context": "1,048,576",
        "rows a step": "4",
        "tokens a step": "4,194,304",
        "steps": "450",
        "tokens": "1,887,436,800",
        "RoPE base": "50,000,000",
        "data x fsdp x seq x tensor": "1x4x4x16",
        "trained weights": "6,738,415,616",
        "optimizer": "AdamW",
        "learning rate": "constant 4e-05",
        "warm-up steps": "25",
        # 4 bytes a weight over 256 chips, and 8 of moments.
        "GiB a device: weights": "0.10",
        "moments": "0.20",
        "gradients": "0.10",
        # 262,144 tokens of a chip, 32 layers: 4,096 float32 of input, 1/16 of that of output.
        "activations kept": "136.06",
    }
    assert {name: last[name] for name in expected} == expected
    for note in (
        "note: Llama-2-7b-hf is not there: the published sizes of its name are shown",
        "note: 256 devices are needed and there are 8",
        "note: books3 holds no finished token shards",
        "32k: RoPE base 10,000 -> 1,000,000, as the stage says",
        "note: stage 1m: RoPE base 5e+07 with heads of 128 scores a similar key below a random one",
    ):
        assert note in said


def test_the_base_of_a_stage_is_that_which_the_stages_before_it_leave() -> None:
    seen = [one for one in preview(nano_base()) if isinstance(one, StagePreview)]
    assert [one.config.llama.rope_reach for one in seen] == [1024, 1024, 1024, 16384]
    shipped = open_model(NANO).config.llama
    # NumPy's powers differ in their last bit between kinds of CPU.
    assert seen[-1].config.llama.rope_theta == pytest.approx(shipped.rope_theta, rel=1e-15)
    assert seen[-1].config.llama.rope_context == shipped.rope_context
    assert seen[0].config.llama.layers == NANO_SIZES.llama.layers


def test_a_start_that_nobody_knows_is_refused() -> None:
    with pytest.raises(InputError, match="there is nothing at nowhere"):
        preview(replace(demo(), start=Path("nowhere")))
