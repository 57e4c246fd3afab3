"""Any model to longer contexts: what is chosen, what may be changed, and that it survives."""

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import tiny_world

from ringworld import cli
from ringworld.cli.recipes import prepare_recipe
from ringworld.data.corpora.build import build_shards
from ringworld.data.packing.ledger import LEDGER_FILE
from ringworld.errors import InputError
from ringworld.recipes.extend import Extend, fit_mesh
from ringworld.recipes.recipe import Recipe
from ringworld.settings import MeshShape
from ringworld.train.fresh_model import FreshModel
from ringworld.vocab import Vocabulary
from ringworld.weights.open import open_model
from ringworld.weights.save import convert
from ringworld.weights.shipped import NANO
from ringworld.weights.tensors import read_tensors
from tests import foreign, worlds

# SmolLM2-135M's shape, made small: three query heads to a key head, and one table for both ends.
WORLD = replace(
    tiny_world(
        Vocabulary(text=2048, bos=1, eos=2), 32, model=48, mlp=64, heads=6, kv_heads=2, head_width=8
    ),
    tied=True,
)
CONTEXTS = (32, 64, 128)
STEPS = 6


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of that shape with the shipped tokenizer."""
    fresh = FreshModel(name="fresh", model=WORLD, parts=NANO, seed=0)
    return Recipe(name="start", stages=(fresh,), data=Extend().data).run(
        tmp_path_factory.mktemp("start"), lambda said: None
    )


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of sixty documents of different lengths."""
    root, rng = tmp_path_factory.mktemp("corpus"), np.random.default_rng(0)
    words = ["ring", "key", "query", "row", "token", "shard", "step", "model"]
    rows = [{"text": " ".join(rng.choice(words, rng.integers(20, 200)))} for _ in range(60)]
    (root / "books.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (root / "spec.toml").write_text('[[documents]]\nname = "books"\npath = "books.jsonl"\n')
    build_shards(root / "spec.toml", root / "tokens", lambda said: None)
    return root / "tokens"


def words_of(start: Path, tokens: Path) -> list[str]:
    """The command that takes the model to 64 and to 128 tokens."""
    words = ["train", "extend", "--start", str(start), "--data.folder", str(tokens)]
    words += ["--contexts", *map(str, CONTEXTS), "--steps", str(STEPS), "--peak-lr", "1e-2"]
    # With AdamW's 1e-8 a gradient that is nearly 0 moves a weight by the whole rate, either way.
    words += ["--stages.all.optimizer.eps", "1e-3"]
    return [*words, "--stages.all.loop.save-every", "2"]


# ---- what is chosen


def test_stages_are_named_by_their_contexts_and_have_as_many_tokens_a_step() -> None:
    asked = Extend(
        contexts=(4096, 16384, 1 << 20), steps=(10, 20, 30), tokens_per_step=1 << 22, devices=64
    )
    recipe = asked.make(8)
    assert [stage.name for stage in recipe.stages] == ["4k", "16k", "1m"]
    assert [stage.batch for stage in recipe.stages] == [1024, 256, 4]
    assert [stage.loop.steps for stage in recipe.stages] == [10, 20, 30]
    assert [stage.mesh for stage in recipe.stages] == [
        MeshShape(fsdp=64),
        MeshShape(fsdp=64),
        MeshShape(fsdp=4, seq=16),
    ]
    by_tokens = replace(asked, tokens=(10**8,)).make(8)
    assert [stage.loop.steps for stage in by_tokens.stages] == [24, 24, 24]


def test_without_a_number_of_tokens_a_step_is_one_row_of_the_longest_stage() -> None:
    stages = Extend(contexts=(4096, 16384)).make(8).stages
    assert [stage.batch for stage in stages] == [4, 1]
    assert [stage.mesh for stage in stages] == [MeshShape(fsdp=4, seq=2), MeshShape(seq=8)]


@pytest.mark.parametrize(
    ("batch", "width", "devices", "mesh"),
    [
        (1, 192, 1, MeshShape()),
        (6, 192, 8, MeshShape(fsdp=2, seq=4)),
        (4, 192, 7, MeshShape(fsdp=2, seq=3)),  # 7 does not divide the width, 6 does
        (4, 5, 8, MeshShape(seq=5)),
        (8, 7, 6, MeshShape()),
    ],
)
def test_a_mesh_takes_as_many_devices_as_rows_and_width_divide_over(
    batch: int, width: int, devices: int, mesh: MeshShape
) -> None:
    assert fit_mesh(960, batch, width, devices) == mesh


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"contexts": (64, 32)}, "the contexts 64 32 do not grow"),
        ({"contexts": ()}, "no context: give at least one"),
        ({"contexts": (0, 1024)}, "contexts is 0: make it 1 or more"),
        ({"tokens": (-5,)}, "tokens is -5: make it 1 or more"),
        ({"devices": 0}, "devices is 0: make it 1 or more"),
        ({"steps": (1, 2, 3)}, "there are 3 numbers of steps for 2 contexts"),
        ({"tokens_per_step": 4096}, "4096 tokens a step are less than a row of 16384"),
    ],
)
def test_what_cannot_be_a_ladder_is_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Extend(**wrong)


# ---- the command


def test_options_of_single_stages_change_what_was_chosen(
    start: Path, tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(Recipe, "run", lambda recipe, folder, say: seen.append(recipe))
    words = [*words_of(start, tokens), "--stages.1.optimizer.peak-lr", "5e-3", "--folder", "f"]
    prepare_recipe("extend", words[2:], lambda said: None)[1]()
    stages = seen[0].stages
    assert [stage.optimizer.peak_lr for stage in stages] == [1e-2, 5e-3, 1e-2]
    assert [stage.loop.save_every for stage in stages] == [2, 2, 2]
    assert (seen[0].start, seen[0].data.folder) == (start, tokens)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--context", "64"], "did you mean --contexts?"),
        (["--stages.5.loop.steps", "3"], "there is no option --stages.5.loop.steps"),
        (["--contexts", "64", "32"], "do not grow"),
    ],
)
def test_a_wrong_option_is_one_sentence(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    said: str,
) -> None:
    monkeypatch.setattr("sys.argv", ["ringworld", "train", "extend", *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    text = capsys.readouterr().err
    assert end.value.code == 2 and len(text.splitlines()) == 1
    assert said in text


def test_a_ladder_starts_from_a_gguf_file(tokens: Path, tmp_path: Path) -> None:
    tensors = foreign.gguf_tensors(np.random.default_rng(0))
    file, ours = foreign.write_gguf(tmp_path / "model.gguf", tensors), tmp_path / "ours"
    convert(file, ours, None, lambda said: None)
    rows = [{"text": " ".join(foreign.LETTERS[:n])} for n in range(2, 12)]
    (tmp_path / "books.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (tmp_path / "spec.toml").write_text(
        'tokenizer = "ours"\n[[documents]]\nname = "books"\npath = "books.jsonl"\n'
    )
    build_shards(tmp_path / "spec.toml", tmp_path / "tokens", lambda said: None)
    words = ["train", "extend", "--start", str(file), "--contexts", "32", "64", "--steps", "2"]
    words += ["--devices", "2", "--folder", str(tmp_path / "run")]
    with pytest.raises(InputError, match="made with another tokenizer"):
        cli.run([*words, "--data.folder", str(tokens)], lambda said: None)
    cli.run([*words, "--data.folder", str(tmp_path / "tokens")], lambda said: None)
    made = tmp_path / "run" / "64" / "model"
    assert (made / "tokenizer.json").read_bytes() == (ours / "tokenizer.json").read_bytes()
    assert open_model(made).config.llama.context == 64
    assert not np.array_equal(
        read_tensors(made / "model.safetensors")["text_embed"],
        read_tensors(ours / "model.safetensors")["text_embed"],
    )


# ---- survival


# A hundredth of the change that a step of AdamW makes at the rate of 1e-2. Sums in another order
# are off by rounding, which AdamW makes larger where a gradient is small.
ROUNDED = 1e-4


@pytest.mark.parametrize(
    ("processes", "tolerance"),
    [
        pytest.param((1, 2, 1), ROUNDED, id="1-2-1"),
        pytest.param((1, 1, 1), 0.0, id="1-1-1", marks=pytest.mark.slow),
    ],
)
def test_a_ladder_that_was_killed_twice_makes_the_model_of_one_that_was_not(
    start: Path, tokens: Path, tmp_path: Path, processes: tuple[int, ...], tolerance: float
) -> None:
    def train(name: str, count: int, dies_at: int) -> str:
        words = [*words_of(start, tokens), "--folder", tmp_path / name]
        command = [Path(worlds.__file__).with_name("killed.py"), str(dies_at), *words]
        ended = worlds.wait_for(worlds.launch([command] * count))
        codes = [one.code for one in ended]
        if dies_at:  # one at its save; another may end first by what it says of the lost one
            assert -signal.SIGKILL in codes and 0 not in codes, [codes, *(e.err for e in ended)]
        else:
            assert codes == [0] * count, [codes, *(e.err for e in ended)]
        return ended[0].err

    train("whole", 1, 0)
    train("killed", processes[0], 2)  # in the first stage, after four steps: two are saved
    train("killed", processes[1], 5)  # two saves of the first stage, and three of the second
    assert not (tmp_path / "killed" / "64" / "model").exists()
    said = train("killed", processes[2], 0)
    assert "going on from step 4 of 6" in said, said
    for context in map(str, CONTEXTS):
        whole, killed = (tmp_path / run / context for run in ("whole", "killed"))
        for file in (LEDGER_FILE, "model/config.json"):
            assert (killed / file).read_bytes() == (whole / file).read_bytes()
        found, wanted = (read_tensors(run / "model/model.safetensors") for run in (killed, whole))
        for name, weight in wanted.items():
            np.testing.assert_allclose(found[name], weight, rtol=0, atol=tolerance, err_msg=name)
    config = open_model(tmp_path / "whole" / "128" / "model").config
    assert config.tied and config.llama.context == 128 and config.llama.kv_heads == 2
    assert config.llama.rope_theta > WORLD.llama.rope_theta
    recorded = json.loads((tmp_path / "whole" / "run.json").read_text())
    assert [stage["name"] for stage in recorded["stages"]] == ["32", "64", "128"]
