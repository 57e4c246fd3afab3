"""A stage on token shards takes each source by its share, and goes on as if never stopped."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ringworld import cli
from ringworld.data.corpora.build import build_shards
from ringworld.data.corpora.folders import ShardFolders
from ringworld.data.corpora.shards import Shards
from ringworld.data.packing.ledger import LEDGER_FILE
from ringworld.data.packing.rows import Apart
from ringworld.errors import InputError
from ringworld.recipes.recipe import Recipe
from ringworld.recipes.shards import TokenShards, choose_examples, shards
from ringworld.text.load import load_tokenizer
from ringworld.train import checkpoint
from ringworld.train.model_stage import ModelStage, pack_examples
from ringworld.weights.shipped import NANO

CONTEXT, BATCH = 128, 4
SPEC = """
[[documents]]
name = "books"
path = "books.jsonl"
[[chat]]
name = "talk"
path = "talk.jsonl"
[[captions]]
name = "pictures"
path = "pictures.jsonl"
every_order = true
"""
MIX = {"pictures": 0.5, "books": 0.25, "talk": 0.25}


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of twenty documents, twenty talks and twelve pictures, these in both orders."""
    root = tmp_path_factory.mktemp("corpus")

    def write(name: str, rows: list[Any]) -> None:
        (root / name).write_text("".join(f"{json.dumps(row)}\n" for row in rows))

    noise = np.random.default_rng(0).integers(0, 255, (12, 64, 64, 3)).astype(np.uint8)
    for i, picture in enumerate(noise):
        Image.fromarray(picture).save(root / f"{i}.png")
    pictures = [{"image": f"{i}.png", "caption": f"noise number {i}"} for i in range(12)]
    write("books.jsonl", [{"text": "The ring of eight. " * (i + 2)} for i in range(20)])
    turn = [{"from": "human", "value": "Who is it?"}, {"from": "gpt", "value": "Nobody."}]
    write("talk.jsonl", [{"conversations": turn}] * 20)
    write("pictures.jsonl", pictures)
    (root / "spec.toml").write_text(SPEC)
    build_shards(root / "spec.toml", root / "tokens", lambda said: None)
    return root / "tokens"


def short_stage(**shares: float) -> ModelStage:
    """Four steps of four short rows."""
    (stage,) = shards().stages
    loop = replace(stage.loop, steps=4, save_every=2)
    return replace(stage, context=CONTEXT, batch=BATCH, loop=loop, shares=shares)


def on_shards(tokens: Path, stage: ModelStage, *apart: str) -> Recipe:
    """The recipe of the package with this stage and these shards."""
    return replace(shards(), stages=(stage,), data=TokenShards(folder=tokens, apart=apart))


def test_every_order_of_a_row_is_built_and_a_stage_draws_one(tokens: Path) -> None:
    built = Shards(tokens)
    assert built.manifest.forms == {"pictures": 2} and len(built) == 20 + 20 + 2 * 12
    origins = [built.record(int(i)).origin for i in built.indices("pictures")]
    assert origins == [f"pictures.jsonl:{i // 2 + 1}" for i in range(24)]
    draw, describe = (built[int(i)] for i in built.indices("pictures")[:2])
    assert draw.tokens[draw.vision].tolist() == describe.tokens[describe.vision].tolist()
    assert draw.weights[draw.vision].all() and not describe.weights[describe.vision].any()
    drawn = []
    for seed in (0, 0, 1):
        examples = choose_examples(ShardFolders([tokens]), replace(short_stage(), seed=seed), ())
        assert not isinstance(examples, Apart)
        assert len(examples) == 20 + 20 + 12
        drawn.append([float(examples[40 + i].weights.sum()) for i in range(12)])
    assert drawn[0] == drawn[1] != drawn[2] and len(set(drawn[0])) > 1


def test_each_source_has_its_share_of_every_batch(tokens: Path, tmp_path: Path) -> None:
    stage = short_stage(**MIX)
    examples = choose_examples(ShardFolders([tokens]), stage, tuple(MIX))
    rows = pack_examples(stage, examples, tmp_path)
    batches, tokenizer = (
        rows.draw(stage.seed).batch(BATCH),
        load_tokenizer(tokens / "tokenizer.json"),
    )
    for step in range(12):
        read = [rows[n] for n in batches[step].tolist()]
        written = [tokenizer.decode(row.tokens[~row.vision].tolist()) for row in read]
        for word, rows_of_it in (("noise", 2), ("ring", 1), ("Nobody", 1)):
            assert sum(word in one for one in written) == rows_of_it


def test_a_stage_of_mixed_sources_goes_on_as_if_never_stopped(
    tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [f"--stages.0.context={CONTEXT}", "--stages.0.loop.steps=4"]
    given += ["--stages.0.loop.save-every=2"]
    given += ["--stages.0.shares", "pictures", "0.5", "books", "0.25", "talk", "0.25"]
    given += ["--data.apart", "talk"]

    def train(name: str) -> Path:
        words = ["train", "shards", "--data.folder", str(tokens), "--folder", str(tmp_path / name)]
        cli.run([*words, *given], lambda said: None)
        return tmp_path / name

    whole = train("whole")
    save = checkpoint.Checkpoints.save

    def stopped(self: Any, *rest: Any) -> None:
        save(self, *rest)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint.Checkpoints, "save", stopped)
        train("stopped")
    stopped_at = (tmp_path / "stopped" / "stage" / LEDGER_FILE).read_text()
    assert 2 <= len(stopped_at.splitlines()) < 4
    again = train("stopped")
    for name in (f"stage/{LEDGER_FILE}", "stage/model/model.safetensors"):
        assert (again / name).read_bytes() == (whole / name).read_bytes()


def test_a_stage_is_not_trained_on_a_shard_that_was_tampered_with(
    tokens: Path, tmp_path: Path
) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(tokens, changed)
    shard = changed / "books-00000.arrow"
    content, learned = bytearray(shard.read_bytes()), Shards(tokens)[0].tokens
    at = content.index(learned.tobytes())
    content[at : at + 4] = content[at + 4 : at + 8]  # another token, as good as the first
    shard.write_bytes(content)
    assert len(Shards(changed)[0]) == len(learned)
    words = ["train", "shards", "--data.folder", str(changed), "--folder", str(tmp_path / "run")]
    with pytest.raises(InputError, match="books-00000.arrow is not what was written"):
        cli.run(words, lambda said: None)


@pytest.mark.parametrize(
    ("apart", "shares", "said"),
    [
        ((), {"radio": 1.0}, "has no example of a source radio: use books, pictures, talk"),
        ((), {"books": 0.5}, "the shares add up to 0.5"),
        (("books",), {}, "books is packed apart and has no share"),
        (("radio",), {"talk": 1.0}, "has no example of a source radio"),
    ],
)
def test_a_mix_that_the_shards_cannot_give_is_refused(
    tokens: Path, apart: tuple[str, ...], shares: dict[str, float], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        choose_examples(ShardFolders([tokens]), short_stage(**shares), apart)


def test_folders_are_mixed_by_their_sources_and_by_their_own_names(
    tokens: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(tokens, tmp_path / "other"))
    both = ShardFolders([tokens, other])
    one = len(both) // 2
    assert len(both.lengths) == len(both) == 2 * len(Shards(tokens))
    np.testing.assert_array_equal(both[one + 3].tokens, both[3].tokens)
    books = Shards(tokens).indices("books")
    np.testing.assert_array_equal(both.draw("tokens/books", 0), books)
    np.testing.assert_array_equal(both.draw("other/books", 0), one + books)
    # Of the pictures, which have two forms, one is drawn, and all of the rest.
    assert len(both.draw("other", 0)) == 20 + 20 + 12 and (both.draw("other", 0) >= one).all()
    with pytest.raises(InputError, match="several folders: use tokens/books or other/books"):
        both.draw("books", 0)
    with pytest.raises(InputError, match="no example of a source tokens/radio"):
        both.draw("tokens/radio", 0)
    with pytest.raises(InputError, match="two folders of shards are called tokens"):
        ShardFolders([tokens, tokens])


def test_the_mix_changes_from_stage_to_stage(tokens: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(tokens, tmp_path / "other"))
    first = short_stage(**{"tokens/books": 0.5, "other/talk": 0.5})
    second = replace(first, name="second", shares={"other/talk": 1.0})
    data = TokenShards(folder=tokens, more=(other,), apart=("tokens/books",))
    tokenizer = load_tokenizer(tokens / "tokenizer.json")
    for stage, of_books in ((first, 2), (second, 0)):
        data.check(stage, None)
        rows = pack_examples(stage, data.open(stage, tokens, tmp_path, print), tmp_path)
        numbers = rows.draw(stage.seed).batch(BATCH)[0].tolist()
        read = [tokenizer.decode(rows[n].tokens.tolist()) for n in numbers]
        assert sum("ring" in row for row in read) == of_books
        assert sum("Nobody" in row for row in read) == BATCH - of_books


def test_samples_are_mixed_with_shards_by_their_shares(tokens: Path, tmp_path: Path) -> None:
    stage = replace(short_stage(**{"talk": 0.5, "samples/recall": 0.5}), context=256)
    data = TokenShards(folder=tokens, apart=("talk", "samples/recall"))
    data.check(stage, NANO)
    rows = pack_examples(stage, data.open(stage, NANO, tmp_path, print), tmp_path)
    tokenizer = load_tokenizer(NANO)
    for step in range(3):
        numbers = rows.draw(stage.seed).batch(BATCH)[step].tolist()
        read = [tokenizer.decode(rows[n].tokens.tolist()) for n in numbers]
        assert sum("Nobody" in row for row in read) == sum("magic" in row for row in read) == 2
    with pytest.raises(InputError, match="the mix names radio, which is no source"):
        data.check(short_stage(**{"talk": 0.5, "samples/radio": 0.5}), NANO)
    with pytest.raises(InputError, match="the shares add up to 0.75"):
        data.check(short_stage(**{"talk": 0.5, "samples/recall": 0.25}), NANO)
