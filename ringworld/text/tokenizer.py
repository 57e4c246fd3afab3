"""Text to token ids and back, and the byte-level BPE that we train.

`Tokenizer.encode` adds nothing to a text: whoever builds a prompt puts the first token in by its
id. A special token is written by id only; `encode_spelled` alone reads its spelling, for rendered
chat templates.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import takewhile
from typing import Any

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from ringworld.errors import InputError

# Letters of a text that takes so long to encode that other threads should run meanwhile.
LONG_TEXT = 1 << 16
SPECIAL = ("<unk>", "<s>", "</s>", "<vision>", "</vision>")
# Usual spellings of the token before a text and of the one after it, where no file names them.
FIRST_NAMES = ("<s>", "<|begin_of_text|>", "<bos>", "<|startoftext|>")
LAST_NAMES = ("</s>", "<|end_of_text|>", "<eos>", "<|endoftext|>")
# What a decoder writes for bytes that are no character, or not yet one.
NO_CHARACTER = "\N{REPLACEMENT CHARACTER}"
BREAK = "\N{ZERO WIDTH SPACE}"


class Tokenizer:
    """Text to ids and back, by a `tokenizers` object (`backend`) of any kind: BPE, unigram, ...

    Special tokens are put in by id only: a text that spells "</s>" is four letters and no end.
    `names` are the entries of a tokenizer_config.json: `bos_token` and `eos_token` name the tokens
    before and after a text (null for none), `add_bos_token` says whether texts open with the first.
    Where they say nothing, a special token with one of the usual names is taken.

    Settings of a training run that a tokenizer.json may hold are switched off in `backend`:
    truncation, padding, and the random segmentation of BPE dropout and of unigram sampling.
    """

    def __init__(self, backend: Backend, names: Mapping[str, Any] | None = None) -> None:
        backend.encode_special_tokens = True
        backend.no_truncation()
        backend.no_padding()
        model = backend.model
        if isinstance(model, models.BPE):
            model.dropout = None
        if isinstance(model, models.Unigram):
            model.alpha = model.nbest_size = None
        self.backend = backend
        self.size = 1 + max(backend.get_vocab().values(), default=-1)
        self._names = dict(names or {})
        self.bos_name = self._find_name("bos_token", FIRST_NAMES)
        self.eos_name = self._find_name("eos_token", LAST_NAMES)

    def check_rows(self, rows: int) -> None:
        """Raise InputError, which names the token, when an id has no row in a table of `rows`."""
        if self.size > rows:
            greatest = self.size - 1
            raise InputError(
                f"the tokenizer gives {self.backend.id_to_token(greatest)!r:.80} the id {greatest} "
                f"and the model has {rows} rows for tokens: use the tokenizer it was trained with"
            )

    @property
    def bos(self) -> int:
        """The id of the token before a text. Raises InputError when there is none."""
        return self.id(self.bos_name or FIRST_NAMES[0])

    @property
    def bos_ids(self) -> list[int]:
        """The token before a text as a list, empty without one or if `add_bos_token` is false.

        Raises InputError when the named token is not in the vocabulary.
        """
        if self.bos_name is None or self._names.get("add_bos_token") is False:
            return []
        return [self.id(self.bos_name)]

    @property
    def eos(self) -> int:
        """The id of the token after a text. Raises InputError when there is none."""
        return self.id(self.eos_name or LAST_NAMES[0])

    @property
    def vision_start(self) -> int:
        """The id of the token before image codes. Raises InputError when there is none."""
        return self.id("<vision>")

    @property
    def vision_end(self) -> int:
        """The id of the token after image codes. Raises InputError when there is none."""
        return self.id("</vision>")

    @cached_property
    def vision_marks(self) -> tuple[list[int], list[int]]:
        """The ids before and after image codes: one token each, or as in LWM their spelling's."""
        before, after = (self.backend.token_to_id(name) for name in SPECIAL[3:])
        return (
            self.encode("<vision>") if before is None else [before],
            self.encode("</vision>") if after is None else [after],
        )

    @cached_property
    def opening(self) -> list[int]:
        """The ids that the model expects before any text.

        `<s>` for our models; else what `add_bos_token` says; else what the tokenizer.json adds.
        """
        says = isinstance(self._names.get("add_bos_token"), bool)
        if says or self.backend.token_to_id("<vision>") is not None:
            return self.bos_ids
        whole = self.backend.encode("a", add_special_tokens=True)
        added = takewhile(
            lambda pair: pair[1], zip(whole.ids, whole.special_tokens_mask, strict=True)
        )
        return [i for i, _ in added]

    @cached_property
    def special(self) -> dict[str, int]:
        """The special tokens: their ids by spelling."""
        added = self.backend.get_added_tokens_decoder()
        return {token.content: i for i, token in added.items() if token.special}

    @cached_property
    def sentence_ends(self) -> list[int]:
        """The ids of tokens that end with a full stop, a question mark or an exclamation mark."""
        return sorted(
            i
            for word, i in self.backend.get_vocab().items()
            if word.rstrip("ĠĊ").endswith((".", "?", "!"))
        )

    @cached_property
    def _spelled(self) -> Backend:
        """The same tokenizer, which reads a special token's spelling as the token."""
        spelled = Backend.from_str(self.backend.to_str())
        spelled.encode_special_tokens = False
        return spelled

    def _find_name(self, key: str, usual: Sequence[str]) -> str | None:
        """A token's spelling as the files say, in older ones within an object; else a usual one."""
        said = self._names.get(key, "")
        said = said.get("content") if isinstance(said, dict) else said
        if said is None or (isinstance(said, str) and said):
            return said
        return next((name for name in usual if name in self.special), None)

    def id(self, token: str) -> int:
        """The id of a whole token. Raises InputError when the vocabulary lacks it."""
        found = self.backend.token_to_id(token)
        if found is None:
            raise InputError(
                f"the tokenizer has no token {token}: use one that was made for a world model"
            )
        return found

    def encode(self, written: str) -> list[int]:
        """Ids of the text alone, without `<s>` or `</s>`."""
        return _encode(self.backend, written)

    def encode_answer(self, answer: str) -> list[int]:
        """Ids of what is said after `ASSISTANT:` and a space, as they stand in the whole text.

        By itself the answer would begin with that space twice where a tokenizer puts one before
        every text, as LLaMA's does.
        """
        before = ":"
        return self.encode(f"{before} {answer}")[len(self.encode(before)) :]

    def encode_spelled(self, written: str) -> list[int]:
        """Ids of a rendered chat template: where it spells a special token, the token stands."""
        return _encode(self._spelled, written)

    def escape_special(self, said: str) -> str:
        """A user's words for a chat template: special tokens spelled in them are broken in two."""
        for name in self.special:
            if name and name in said:
                said = said.replace(name, name[0] + BREAK + name[1:])
        return said

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids, special tokens left out."""
        return self.backend.decode(list(ids), skip_special_tokens=True)


class Detokenizer:
    """Text from ids as they come, in pieces that end with whole characters.

    The pieces together are what `decode` gives for all ids at once. A piece is decoded behind the
    one before it, because a decoder drops the space before the first word that it sees.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._unseen = set(tokenizer.special.values())
        self._before: list[int] = []
        self._held: list[int] = []

    def add(self, ids: Sequence[int]) -> str:
        """The text that these ids add; "" while their last character is not whole."""
        self._held += [i for i in ids if i not in self._unseen]
        if not self._held:
            return ""
        known, text = self._known(), self._tokenizer.decode(self._before + self._held)
        if text.endswith(NO_CHARACTER) or len(text) <= len(known):
            return ""
        self._before, self._held = self._held, []
        return text[len(known) :]

    def finish(self) -> str:
        """The text that was held back; a character that was never completed is shown as U+FFFD."""
        text = self._tokenizer.decode(self._before + self._held)[len(self._known()) :]
        self._before, self._held = self._before + self._held, []
        return text

    def _known(self) -> str:
        return self._tokenizer.decode(self._before)


def _encode(backend: Backend, written: str) -> list[int]:
    """The ids of a text. A batch of one lets other threads run, which is worth it for a book."""
    if len(written) < LONG_TEXT:
        return backend.encode(written, add_special_tokens=False).ids
    return backend.encode_batch([written], add_special_tokens=False)[0].ids


def train_tokenizer(texts: Iterator[str], size: int) -> Tokenizer:
    """A byte-level BPE of `size` tokens; every digit is a token of its own."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return Tokenizer(backend)
