"""Text to ids and back: any `tokenizer.json`, and the byte-level BPE that we train.

What a tokenizer adds by itself is never added here: a text is its ids, and who makes a prompt says
where it begins. A special token is known by its id only, unless a prompt is a chat template's,
which spells them.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Bpe
from tokenizers import decoders, models, pre_tokenizers, trainers

from ringworld.errors import InputError
from ringworld.files import read_json_object

SPECIAL = ("<unk>", "<s>", "</s>", "<vision>", "</vision>")
# What the families call the token before a text and the one after it, where no file says so.
FIRST_NAMES = ("<s>", "<|begin_of_text|>", "<bos>", "<|startoftext|>")
LAST_NAMES = ("</s>", "<|end_of_text|>", "<eos>", "<|endoftext|>")
TOKENIZER_CONFIG = "tokenizer_config.json"
# What a decoder writes for bytes that are no character, or not yet one.
NO_CHARACTER = "\N{REPLACEMENT CHARACTER}"
BREAK = "\N{ZERO WIDTH SPACE}"


class Tokenizer:
    """Text to ids and back, read from a `tokenizer.json`; digits are single tokens in ours.

    Special tokens are put in by id only: a text that spells "</s>" is four letters and no end.
    `bos` and `eos` name the tokens around a text; without them the usual names are looked for.
    """

    def __init__(self, bpe: Bpe, *, bos: str | None = None, eos: str | None = None) -> None:
        bpe.encode_special_tokens = True
        self.bpe = bpe
        self.size = bpe.get_vocab_size()
        self.bos_name = bos or self._first_of(FIRST_NAMES)
        self.eos_name = eos or self._first_of(LAST_NAMES)

    @property
    def bos(self) -> int:
        """The token before a text. Raises InputError when there is none."""
        return self.id(self.bos_name or FIRST_NAMES[0])

    @property
    def eos(self) -> int:
        """The token after a text. Raises InputError when there is none."""
        return self.id(self.eos_name or LAST_NAMES[0])

    @property
    def vision_start(self) -> int:
        """The token before a film's codes. Raises InputError when there is none."""
        return self.id("<vision>")

    @property
    def vision_end(self) -> int:
        """The token after a film's codes. Raises InputError when there is none."""
        return self.id("</vision>")

    @cached_property
    def vision_marks(self) -> tuple[list[int], list[int]]:
        """What stands before and after codes: a token each, or as in LWM their spelling's ids."""
        before, after = (self.bpe.token_to_id(name) for name in SPECIAL[3:])
        return (
            self.encode("<vision>") if before is None else [before],
            self.encode("</vision>") if after is None else [after],
        )

    @cached_property
    def opening(self) -> list[int]:
        """What the model expects before any text: our `<s>`, or what the file itself adds."""
        if self.bpe.token_to_id("<vision>") is not None:
            return [self.bos]
        return self.bpe.encode("", add_special_tokens=True).ids

    @cached_property
    def special(self) -> dict[str, int]:
        """The special tokens, by their spelling."""
        added = self.bpe.get_added_tokens_decoder()
        return {token.content: i for i, token in added.items() if token.special}

    @cached_property
    def sentence_ends(self) -> list[int]:
        """The tokens that end a sentence."""
        return sorted(
            i
            for word, i in self.bpe.get_vocab().items()
            if word.rstrip("ĠĊ").endswith((".", "?", "!"))
        )

    @cached_property
    def _spelled(self) -> Bpe:
        """The same tokenizer, to which a special token's spelling is the token."""
        spelled = Bpe.from_str(self.bpe.to_str())
        spelled.encode_special_tokens = False
        return spelled

    def _first_of(self, names: Iterable[str]) -> str | None:
        return next((name for name in names if self.bpe.token_to_id(name) is not None), None)

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

    def encode_answer(self, answer: str) -> list[int]:
        """Ids of what is said after `ASSISTANT:` and a space, as they stand in the whole text.

        By itself the answer would begin with that space twice where a tokenizer puts one before
        every text, as LLaMA's does.
        """
        before = ":"
        return self.encode(f"{before} {answer}")[len(self.encode(before)) :]

    def encode_spelled(self, written: str) -> list[int]:
        """Ids of a rendered chat template: where it spells a special token, the token stands."""
        return self._spelled.encode(written, add_special_tokens=False).ids

    def disarm(self, said: str) -> str:
        """The words of a stranger for a template: a special token in them is broken in two."""
        for name in self.special:
            if name and name in said:
                said = said.replace(name, name[0] + BREAK + name[1:])
        return said

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids, special tokens left out."""
        return self.bpe.decode(list(ids), skip_special_tokens=True)


class Typist:
    """Text from ids as they come, in pieces that end with whole characters.

    The pieces together are what `decode` gives for all ids at once. A piece is decoded behind the
    one before it, because a decoder drops the space before the first word that it sees.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._unseen = set(tokenizer.special.values())
        self._before: list[int] = []
        self._held: list[int] = []

    def type(self, ids: Sequence[int]) -> str:
        """What these ids add; nothing while their last character is not whole."""
        self._held += [i for i in ids if i not in self._unseen]
        if not self._held:
            return ""
        known, text = self._known(), self._tokenizer.decode(self._before + self._held)
        if text.endswith(NO_CHARACTER) or len(text) <= len(known):
            return ""
        self._before, self._held = self._held, []
        return text[len(known) :]

    def finish(self) -> str:
        """What was held back: at the end of an answer a broken character is shown as broken."""
        text = self._tokenizer.decode(self._before + self._held)[len(self._known()) :]
        self._before, self._held = self._before + self._held, []
        return text

    def _known(self) -> str:
        return self._tokenizer.decode(self._before)


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a `tokenizer.json`, with the names that a `tokenizer_config.json` beside it
    gives to its tokens.

    Raises InputError when a file is missing or broken.
    """
    if not path.is_file():
        raise InputError(
            f"there is no tokenizer at {path}: give a model folder with a tokenizer.json"
        )
    try:
        bpe = Bpe.from_file(str(path))
    except Exception:
        raise InputError(f"{path} is not a tokenizer.json: fetch or copy the model again") from None
    names = read_names(path.with_name(TOKENIZER_CONFIG))
    return Tokenizer(bpe, bos=_named(names, "bos_token"), eos=_named(names, "eos_token"))


def read_names(path: Path) -> dict[str, Any]:
    """What a `tokenizer_config.json` says; nothing when there is none.

    Raises InputError when it is broken.
    """
    if not path.is_file():
        return {}
    return read_json_object(path)


def _named(names: dict[str, Any], key: str) -> str | None:
    """A token's spelling, which older files wrap in an object."""
    token = names.get(key)
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else None


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
