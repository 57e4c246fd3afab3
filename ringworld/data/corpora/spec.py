"""What a build is asked for: sources, in TOML, read to the letter.

    seed = 7
    on_bad = "skip"

    [[text]]
    name = "books"
    path = "books"

    [[captions]]
    name = "films"
    path = "films.jsonl"
    fps = 2
    max_frames = 30

Paths are those of the spec's folder. docs/data.md tells every key.
"""

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ringworld.config import from_dict
from ringworld.errors import InputError
from ringworld.media.sampling import FrameSampling

# Rows of the input that make one shard, and that a killed worker costs. A thousand captions of
# thirty frames are 8 M tokens of LWM's, 35 MB.
ROWS_PER_SHARD = 1000

CaptionOrder = Literal["text-vision", "vision-text", "vision"]
ChatOrder = Literal["as-written", "text-vision", "vision-text"]


@dataclass(frozen=True, kw_only=True)
class Source:
    """What every source has: a name, a file or a folder, and how many rows make a shard."""

    name: str
    path: str
    rows_per_shard: int = ROWS_PER_SHARD

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", self.name):
            raise InputError(
                f"the source name {self.name!r} names files: use small letters, digits, - and _"
            )
        if self.rows_per_shard < 1:
            raise InputError(
                f"{self.name}: rows_per_shard must be at least 1, not {self.rows_per_shard}"
            )


@dataclass(frozen=True, kw_only=True)
class TextSource(Source):
    """A folder of text files, each a document, every token learned."""

    suffixes: tuple[str, ...] = (".txt",)


@dataclass(frozen=True, kw_only=True)
class DocumentSource(Source):
    """JSONL or Parquet with a column of text, each row a document, every token learned."""

    column: str = "text"


@dataclass(frozen=True, kw_only=True)
class ChatSource(Source, FrameSampling):
    """JSONL or Parquet of talks in any of the three common dialects; answers are learned.

    `orders` is what a question about a picture or a film puts first, one drawn for each row;
    "as-written" leaves media where they stand. With `every_order` a row is kept in all of them.
    """

    orders: tuple[ChatOrder, ...] = ("as-written",)
    every_order: bool = False

    def __post_init__(self) -> None:
        _check_media(self, self.orders)


@dataclass(frozen=True, kw_only=True)
class CaptionSource(Source, FrameSampling):
    """JSONL or Parquet of a picture or a film and its caption.

    `orders` are the forms, one drawn for each row: "text-vision" learns to draw the caption,
    "vision-text" to say it, "vision" to draw without words. With `every_order` a row is kept in all
    of them, its film encoded once.
    """

    caption: str = "caption"
    orders: tuple[CaptionOrder, ...] = ("text-vision", "vision-text")
    every_order: bool = False

    def __post_init__(self) -> None:
        _check_media(self, self.orders)


@dataclass(frozen=True, kw_only=True)
class FieldSource(Source):
    """LWM's JSONL, its keys put together by LWM's language of `fields`.

    The options are LWM's: `ringworld.data.corpora.fields` says what each does.
    """

    fields: str = ""
    fields_from_example: str = ""
    fields_index: int = -1
    subfield_separator: str = " "
    add_bos_token: bool = True
    add_eos_token: bool = True
    prepend_text: str = ""
    max_n_frames: int = -1

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.fields) == bool(self.fields_from_example):
            raise InputError(
                f"{self.name} needs either fields or fields_from_example: give one of them"
            )


def count_forms(source: Source) -> int:
    """How many examples a row of the source becomes: one, or one for each of its orders."""
    return (
        len(source.orders)
        if isinstance(source, ChatSource | CaptionSource) and source.every_order
        else 1
    )


AnySource = TextSource | DocumentSource | ChatSource | CaptionSource | FieldSource


@dataclass(frozen=True, kw_only=True)
class Spec:
    """A build: its sources by kind, what reads them, and what is done with bad rows.

    `tokenizer` is a tokenizer.json or a model folder, `codec` a codec's folder; without them the
    shipped ones. Bad rows are refused, or skipped up to `max_bad` of them.
    """

    tokenizer: str = ""
    codec: str = ""
    seed: int = 0
    on_bad: Literal["refuse", "skip"] = "refuse"
    max_bad: int = 100
    text: tuple[TextSource, ...] = ()
    documents: tuple[DocumentSource, ...] = ()
    chat: tuple[ChatSource, ...] = ()
    captions: tuple[CaptionSource, ...] = ()
    fields: tuple[FieldSource, ...] = ()

    def __post_init__(self) -> None:
        if not self.sources:
            raise InputError("the spec names no source: add [[text]], [[captions]] or another")
        names = [source.name for source in self.sources]
        if twice := {name for name in names if names.count(name) > 1}:
            raise InputError(f"two sources are called {min(twice)}: rename one")
        if self.seed < 0 or self.max_bad < 0:
            raise InputError("seed and max_bad must be at least 0: raise the one that is not")

    @property
    def sources(self) -> tuple[AnySource, ...]:
        """All of them, in the order of the kinds and then of the file."""
        return (*self.text, *self.documents, *self.chat, *self.captions, *self.fields)

    @property
    def sees(self) -> bool:
        """Whether any source may hold vision ids."""
        return bool(self.chat or self.captions or self.fields)


def read_spec(path: Path) -> Spec:
    """The spec of a TOML file. Raises InputError when it is missing or not to the letter."""
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise InputError(f"there is no spec at {path}: give the path of a TOML file") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: give the path of a TOML file") from error
    except UnicodeDecodeError as error:
        line = 1 + error.object.count(b"\n", 0, error.start)
        raise InputError(f"{path}:{line}: this is not UTF-8: write the spec as UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as TOML ({error}): correct it") from error
    return from_dict(Spec, table, str(path))


def _check_media(source: ChatSource | CaptionSource, orders: tuple[str, ...]) -> None:
    Source.__post_init__(source)
    FrameSampling.__post_init__(source)
    if not orders:
        raise InputError(f"{source.name} names no order: give one or more")
