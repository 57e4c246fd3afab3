"""Text to ids and back: a byte-level BPE kept in a `tokenizer.json`."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from tokenizers import Tokenizer as Bpe
from tokenizers import decoders, models, pre_tokenizers, trainers

from ringworld.errors import InputError

SPECIAL = ("<unk>", "<s>", "</s>", "<vision>", "</vision>")


class Tokenizer:
    """Text to ids and back, read from a `tokenizer.json`; digits are single tokens in ours.

    Special tokens are put in by id only: a text that spells "</s>" is four letters and no end.
    """

    def __init__(self, bpe: Bpe) -> None:
        bpe.encode_special_tokens = True
        self.bpe = bpe
        self.size = bpe.get_vocab_size()
        self.bos, self.eos = self.id("<s>"), self.id("</s>")
        self.sentence_ends = sorted(
            i for word, i in bpe.get_vocab().items() if word.rstrip("ĠĊ").endswith((".", "?", "!"))
        )
        self.vision_start, self.vision_end = self.id("<vision>"), self.id("</vision>")

    def id(self, token: str) -> int:
        """The id of a whole token. Raises InputError when the vocabulary lacks it."""
        found = self.bpe.token_to_id(token)
        if found is None:
            raise InputError(
                f"the tokenizer has no token {token}: use one that was made for a world model"
            )
        return found

    def encode(self, written: str) -> list[int]:
        """Ids of the text alone, without `<s>` or `</s>`."""
        return self.bpe.encode(written, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids, special tokens left out."""
        return self.bpe.decode(list(ids), skip_special_tokens=True)


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a `tokenizer.json`. Raises InputError when the file is missing or broken."""
    if not path.is_file():
        raise InputError(
            f"there is no tokenizer at {path}: give a model folder with a tokenizer.json"
        )
    try:
        return Tokenizer(Bpe.from_file(str(path)))
    except Exception as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is not a tokenizer.json: fetch or copy the model again") from None


def train_tokenizer(texts: Iterator[str], size: int) -> Tokenizer:
    """A byte-level BPE of `size` tokens; every digit is a token of its own."""
    bpe = Bpe(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return Tokenizer(bpe)
