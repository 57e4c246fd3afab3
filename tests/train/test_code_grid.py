"""A model that is told the row and the column of each code: at first it computes what it did."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ringworld.data.example import Example, frames, join, on_grid, text
from ringworld.data.packing.grid import GridExamples, all_on_grid
from ringworld.data.packing.rows import Apart
from ringworld.errors import InputError
from ringworld.inference.generate import draw_frames
from ringworld.inference.next_frame import FrameWriter
from ringworld.mesh import make_mesh
from ringworld.settings import Sampling
from ringworld.train.code_grid import CodeGrid
from ringworld.train.stage import Data
from ringworld.vocab import Vocabulary, grid_ids
from ringworld.weights.model import Model, load_model
from ringworld.weights.open import Opened, open_model
from ringworld.weights.save import convert, save_changed
from ringworld.weights.shipped import NANO, NANO_WORLD

WORDS = Vocabulary(text=20, bos=1, eos=2, codes=5, codes_per_frame=4, vision_rows=11, grid=True)


def test_the_id_of_a_code_says_where_in_its_frame_it_stands() -> None:
    codes = np.array([[4, 0, 3, 1], [2, 2, 2, 2]])
    two = frames(codes, WORDS, 1.0)
    whole = join([text([7, 3], 0.0), two, text([6], 0.0), frames(codes[:1], WORDS, 1.0)])
    told = on_grid(whole, WORDS)
    ids = [4, 0 + 11, 3 + 22, 1 + 33]
    assert told.tokens.tolist() == [7, 3, *ids, 5, 2, 2 + 11, 2 + 22, 2 + 33, 6, 6, *ids, 6]
    np.testing.assert_array_equal(told.vision, whole.vision)
    rows = np.stack([whole.tokens, whole.tokens]), np.stack([whole.vision, whole.vision])
    np.testing.assert_array_equal(grid_ids(*rows, WORDS), np.stack([told.tokens] * 2))
    plain = on_grid(whole, replace(WORDS, grid=False))
    np.testing.assert_array_equal(plain.tokens, whole.tokens)


def test_examples_are_put_on_the_grid_as_they_are_read() -> None:
    some = [frames(np.full((1, 4), i), WORDS, 1.0) for i in range(3)]
    told = all_on_grid(some, WORDS)
    assert isinstance(told, GridExamples) and len(told) == 3
    assert told[2].tokens.tolist() == [2, 13, 24, 35, 6] and told.lengths.tolist() == [5] * 3
    apart = all_on_grid(Apart({"a": some}, {"a": 1.0}), WORDS)
    assert isinstance(apart, Apart) and apart.sources["a"][1].tokens[1] == 12
    assert all_on_grid(some, replace(WORDS, grid=False)) is some


@pytest.mark.parametrize("change", [{"vision_rows": 10}, {"codes_per_frame": 5}, {"codes": 0}])
def test_a_table_without_room_for_rows_and_columns_is_refused(change: dict[str, int]) -> None:
    with pytest.raises(InputError, match="do not tell the rows and columns"):
        replace(WORDS, **change)


def without_grid(opened: Opened) -> Opened:
    words = replace(opened.config.vocabulary, grid=False)
    return replace(opened, config=replace(opened.config, vocabulary=words))


@pytest.fixture(scope="module")
def untold(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """nano-world without its grid."""
    folder = tmp_path_factory.mktemp("plain") / "model"
    save_changed(NANO_WORLD, folder, without_grid)
    return folder


@pytest.fixture(scope="module")
def told(untold: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a grid that is not trained."""
    folder = tmp_path_factory.mktemp("grid")
    stage = CodeGrid(name="grid")
    stage.check(Data(), untold, folder)
    made = stage.run(Data(), untold, folder, print)
    sizes = stage.output_config(open_model(untold).config)
    assert open_model(made).config == sizes and sizes.vocabulary.grid
    return made


def clip(model: Model) -> Example:
    codes = np.random.default_rng(3).integers(0, 500, (2, 64))
    return join([text([1, 9, 11], 0.0), frames(codes, model.config.vocabulary, 1.0)])


def with_rows(model: Model) -> Model:
    """The model with rows and columns that say something."""
    words, table = model.config.vocabulary, np.array(model.weights.vision_embed)
    noise = np.random.default_rng(4).standard_normal((2 * words.side, table.shape[1]))
    table[words.first_grid_row : words.first_grid_row + 2 * words.side] = noise / 4
    return replace(model, weights=replace(model.weights, vision_embed=jnp.asarray(table)))


def test_a_grid_that_is_not_trained_changes_no_bit_and_a_trained_one_tells_places(
    untold: Path,
    told: Path,
) -> None:
    with jax.set_mesh(make_mesh()):
        before, after = (load_model(folder, "float32") for folder in (untold, told))
        shown = clip(before)
        row = shown.tokens[None], shown.vision[None]
        old, new = (model.logits(*row).vision for model in (before, after))
        np.testing.assert_array_equal(old, new)
        said = with_rows(after).logits(*row).vision
        assert np.abs(said - new).max() > 0.1


@pytest.mark.parametrize("ring", [1, 4])
def test_drawing_reads_what_training_reads(told: Path, ring: int) -> None:
    """Greedy codes are the likeliest ones of a whole forward, prompts with frames included."""
    with jax.set_mesh(make_mesh(seq=ring)):
        model = with_rows(load_model(told, "float32"))
        words, prompt = model.config.vocabulary, clip(model)
        codes = draw_frames(
            model.sharded_weights(),
            [prompt],
            [],
            model.config,
            frames=2,
            guidance=1.0,
            sampling=Sampling(),
            seed=0,
        )[0]
        whole = join([prompt, frames(codes, words, 1.0)])
        length = len(whole) + -len(whole) % ring
        rows = [np.zeros((1, length), np.int32) for _ in range(3)]
        for row, values in zip(
            rows, (whole.tokens, whole.vision, np.ones(len(whole))), strict=True
        ):
            row[0, : len(whole)] = values
        logits = np.asarray(model.logits(rows[0], rows[1], segments=rows[2]).vision)[0]
        likeliest = logits[:, : words.codes].argmax(-1)[len(prompt) - 1 : len(whole) - 1]
        kept = np.arange(len(likeliest)) % words.frame_length < words.codes_per_frame
        np.testing.assert_array_equal(likeliest[kept], codes.ravel())


def test_a_frame_at_a_time_is_what_decoding_draws(told: Path) -> None:
    with jax.set_mesh(make_mesh()):
        model = with_rows(load_model(told, "float32"))
        words, opening = model.config.vocabulary, text([1, 9], 0.0)
        first = np.random.default_rng(5).integers(0, 500, 64).astype(np.int32)
        weights = model.sharded_weights()
        writer = FrameWriter(weights, model.config, opening)
        writer.begin(first)
        written = writer.write(11)
        shown = frames(first[None], words, 0.0)
        shown.tokens[-1] = words.eof
        prompt = join([opening, shown, text([11], 0.0)])
        given: dict = dict(frames=1, guidance=1.0, sampling=Sampling(), seed=0)
        drawn = draw_frames(weights, [prompt], [], model.config, **given)
    np.testing.assert_array_equal(written, drawn[0, 0])


def test_it_has_no_form_for_other_programs(told: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="row and the column of each code, which no other program"):
        convert(told, tmp_path / "theirs", None, print)
    assert not (tmp_path / "theirs").exists()


def test_a_table_of_a_model_without_room_is_refused() -> None:
    with pytest.raises(InputError, match="do not tell the rows and columns"):
        CodeGrid(name="grid").check(Data(), NANO, Path())


def test_a_model_that_is_told_already_keeps_what_it_learned() -> None:
    with pytest.raises(InputError, match="told rows and columns already: leave it out"):
        CodeGrid(name="grid").check(Data(), NANO_WORLD, Path())
