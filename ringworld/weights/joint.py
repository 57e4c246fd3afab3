"""Joined tables: a world model as one language model and back; vision added to a text model.

A world model looks text ids and vision ids up in two tables. Joined, they are one ordinary
language model, whose id `V + u` is the vision id u, V being the rows of the text table:

    table = [text; vision]      head = [text; vision]

so every server of Llamas runs it. The config says where the text ends, and what was joined can be
split again to the bit.
"""

from collections.abc import Mapping
from dataclasses import replace
from operator import itemgetter
from typing import Any

import numpy as np
from tokenizers import Tokenizer as Bpe

from ringworld.errors import InputError
from ringworld.models.vqgan import VQGAN
from ringworld.models.world import World
from ringworld.vocab import Vocabulary
from ringworld.weights.imported import Checkpoint
from ringworld.weights.names import BY_OURS
from ringworld.weights.tensors import LazyWeight, Table

JOINED = "ringworld"  # the field of a joined model's config.json
MARKS = ("<vision>", "</vision>")
# Vision rows come in whole lots, which 256 devices can divide; LWM's 8192 codes have 8448 rows.
LOT = 256

TEXT_TABLE_NAME, TEXT_HEAD_NAME = (
    BY_OURS["text_embed"].hugging_face,
    BY_OURS["heads.text"].hugging_face,
)
JOINS = {
    TEXT_TABLE_NAME: BY_OURS["vision_embed"].hugging_face,
    TEXT_HEAD_NAME: BY_OURS["heads.vision"].hugging_face,
}


def join_tables(theirs: Mapping[str, LazyWeight]) -> dict[str, LazyWeight]:
    """A world model's weights by Hugging Face name as those of one language model."""
    joined = dict(theirs)
    joined.setdefault(
        TEXT_HEAD_NAME, joined[TEXT_TABLE_NAME]
    )  # of a tied model: the two differ once they are joined
    for there, sight in JOINS.items():
        text, vision = joined[there], joined.pop(sight)
        shape = (text.shape[0] + vision.shape[0], *text.shape[1:])
        joined[there] = LazyWeight(shape, text.reads + vision.reads)
    return joined


def split_tables(checkpoint: Checkpoint) -> Checkpoint:
    """A joined model as the world model that it was; any other as it is."""
    said = checkpoint.config.get(JOINED)
    if said is None:
        return checkpoint
    text = said.get("text") if isinstance(said, dict) else None
    if type(text) is not int or text < 1:
        raise InputError(f"the field {JOINED} of the config does not say how many rows are text's")
    tensors = dict(checkpoint.tensors)
    for there, sight in JOINS.items():
        if there in tensors:
            both = tensors[there]
            tensors[there] = both.then(itemgetter(slice(0, text)))
            tensors[sight] = both.then(itemgetter(slice(text, None)))
    vision = {name: value for name, value in said.items() if name != "text"}
    config = checkpoint.config | {"vocab_size": text, "vision": vision}
    return replace(checkpoint, config=config, tensors=tensors)


def without_vision(config: World) -> World:
    """The sizes of the language model within a world model."""
    words = replace(config.vocabulary, codes=0, codes_per_frame=0, vision_rows=0, grid=False)
    return replace(config, vocabulary=words)


def drop_vision(config: World, table: Table) -> tuple[World, Table]:
    """The language model within a world model: its config and its weights."""
    sight = ("vision_embed", "heads.vision")
    text = {name: weight for name, weight in table.items() if name not in sight}
    return without_vision(config), text


def add_vision(
    config: World, table: Table, tokenizer: bytes | None, codec: VQGAN
) -> tuple[World, Table, bytes | None]:
    """A language model that can see with `codec`: the config, weights and tokenizer of a world.

    The new table is normal with the deviation of the text's, so that codes enter the residual
    stream as loud as words; the new head is 0, so that every code is as likely as any other until
    training says more. Nothing that text passes through is touched. `<vision>` and `</vision>`
    become tokens where the text table has rows to spare; else they are spelled, as LWM spells them.
    Raises InputError when the model sees already.
    """
    words = config.vocabulary
    if words.codes:
        raise InputError("this model sees already: add vision to a language model")
    sight = extend_vocabulary(words, codec)
    shape = (sight.vision_rows, config.llama.model)
    text = table["text_embed"]
    first = np.asarray(next(iter(text))) if isinstance(text, LazyWeight) else text
    deviation = float(np.std(first[:LOT].astype(np.float32)))
    start = np.random.default_rng(0).standard_normal(shape, np.float32) * deviation
    more: dict[str, Any] = {
        "vision_embed": start.astype(first.dtype),
        "heads.vision": np.zeros(shape[::-1], first.dtype),
    }
    named = tokenizer and name_marks(tokenizer, words.text)
    return replace(config, vocabulary=sight), {**table, **more}, named


def add_grid(config: World, table: Table) -> tuple[World, Table]:
    """The world model that is told the row and the column of each code, by rows of zeros.

    Raises InputError when its vision table has no rows to spare, or it has none.
    """
    words = replace(config.vocabulary, grid=True)
    weight = table["vision_embed"]
    told = np.array(weight if isinstance(weight, np.ndarray) else np.concatenate(list(weight)))
    told[words.first_grid_row : words.first_grid_row + 2 * words.side] = 0
    return replace(config, vocabulary=words), {**table, "vision_embed": told}


def extend_vocabulary(words: Vocabulary, codec: VQGAN) -> Vocabulary:
    """The vocabulary with the codes of a codec in the place of those that it has."""
    rows = -(-(codec.codebook + 2) // LOT) * LOT
    frame = codec.side**2
    return replace(words, codes=codec.codebook, codes_per_frame=frame, vision_rows=rows, grid=False)


def name_marks(tokenizer: bytes, rows: int) -> bytes:
    """A tokenizer.json that knows `<vision>` and `</vision>`, if `rows` rows have room for them."""
    bpe = Bpe.from_str(tokenizer.decode("utf-8"))
    missing = [mark for mark in MARKS if bpe.token_to_id(mark) is None]
    if not missing or max(bpe.get_vocab().values()) + len(missing) >= rows:
        return tokenizer
    bpe.add_special_tokens(missing)
    return bpe.to_str(pretty=True).encode()
