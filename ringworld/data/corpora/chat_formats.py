"""Rows of other people's data as conversations: turns of text, pictures and films.

    conversations  ShareGPT: [{"from": "human" | "gpt" | "system", "value": text}, ...]
    messages       OpenAI: [{"role": "user" | "assistant" | "system" | "developer", "content": ...},
                   ...], where the content is text, or parts {"type": "text" | "image_url" |
                   "video_url" | "image" | "video", ...}
    images, videos (or image, video) beside either: the n-th <image> or <video> that is written in
                   the texts, or the n-th part {"type": "image"} without a picture of its own (TRL),
                   stands for the n-th of the list; where there is no list, and where there are such
                   parts, these letters may stand in texts
    system         beside either: the system turn, where the list has none

Either list may have the other's keys. A key that is null or empty counts as absent, as Parquet and
JSON written from tables have them. An answer with `"weight": 0` (OpenAI), or with `train`,
`training` or `loss` false, is given and not learned. What these forms cannot carry (tools and their
calls, reasoning, names of speakers, sound) makes a row bad: it is never left out in silence. Keys
that no format defines, such as an id or a score, are not read.

A path is that of the row's file; Parquet may hold the bytes instead. A film may say its own `fps`,
`video_start`, `video_end` and the other keys of `FrameSampling`, beside its path.
"""

import base64
import binascii
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from ringworld.config import from_dict
from ringworld.data.corpora.encoding import Media
from ringworld.errors import InputError
from ringworld.files import find_name, is_there
from ringworld.media.sampling import FrameSampling

SPEAKERS = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "bing": "assistant",
    "model": "assistant",
}
STILL = {
    "image": True,
    "image_url": True,
    "input_image": True,
    "video": False,
    "video_url": False,
}
TEXTS = ("text", "input_text", "output_text")
# What a row or a turn may say beside its text, and the form of a conversation has no place for.
ROW_EXTRAS = ("tools", "functions", "audio", "audios")
TURN_EXTRAS = (
    "tool_calls",
    "function_call",
    "tool_call_id",
    "reasoning_content",
    "reasoning",
    "thinking",
    "refusal",
    "audio",
    "name",
)
# Keys by which a turn says whether it is learned, in OpenAI's files, axolotl's and ms-swift's.
LEARNED = ("weight", "train", "training", "loss")
SOURCES = ("bytes", "path", "url")  # the keys that hold a medium, or say where it is
LONGEST_PATH = 200  # letters of a path in a sentence
PLACEHOLDER = re.compile(r"<(image|video)>")
SAMPLING = tuple(field.name for field in fields(FrameSampling))


@dataclass(frozen=True)
class Slot:
    """A part {"type": "image"} or {"type": "video"}, whose medium is in the row's list."""

    kind: str


Part = str | Media


@dataclass(frozen=True)
class Turn:
    """What one speaker ("system", "user" or "assistant") says and shows, in order.

    `learned` is False for an answer that is given and not learned.
    """

    speaker: str
    parts: tuple[Part, ...]
    learned: bool = True


def read_conversation(row: Mapping[str, Any], folder: Path, sampling: FrameSampling) -> list[Turn]:
    """The turns of a row in any format: perhaps a system turn, then users and answers in turn.

    `folder` is where the row's paths start. Raises InputError when the row is in none of the
    formats, shows something that is not there, says what a turn cannot carry, or does not
    alternate.
    """
    keys = [key for key in ("conversations", "messages") if not _absent(row.get(key))]
    if len(keys) > 1:
        raise InputError("the row holds both conversations and messages: take one of them out")
    key = keys[0] if keys else None
    if key is None or not isinstance(row[key], list):
        raise InputError(
            "the row holds no list of conversations or messages: name the source's kind, or "
            "rename its key"
        )
    _refuse_extras(row, ROW_EXTRAS, "the row")
    shown = {
        kind: [read_media(entry, kind, folder, sampling) for entry in _listed(row, kind)]
        for kind in ("image", "video")
    }
    raw = [_read_turn(entry, folder, sampling) for entry in row[key]]
    if not _absent(row.get("system")):
        raw.insert(0, _read_turn({"role": "system", "content": row["system"]}, folder, sampling))
    return _check_turns(
        [Turn(turn.speaker, parts, turn.learned) for turn, parts in _fill(raw, shown)]
    )


@dataclass(frozen=True)
class _RawTurn:
    """A turn before the media of the row's lists are put in; `plain` where its content was text."""

    speaker: str
    parts: tuple[Part | Slot, ...]
    learned: bool
    plain: bool


def _absent(value: Any) -> bool:
    """Whether a key says nothing: null, or an empty text, list or object."""
    return value is None or (isinstance(value, str | list | tuple | Mapping) and not len(value))


def _refuse_extras(table: Mapping[str, Any], extras: tuple[str, ...], who: str) -> None:
    if extra := next((key for key in extras if not _absent(table.get(key))), None):
        raise InputError(
            f"{who} has {extra}, which a conversation of ours cannot carry: write what matters of "
            "it into the text, or leave the row out"
        )


def _read_turn(entry: Any, folder: Path, sampling: FrameSampling) -> _RawTurn:
    """One entry of the list, in the keys of either format."""
    if not isinstance(entry, Mapping):
        raise InputError("a turn is no object: give every turn a role and content")
    names = ("role", "content") if _absent(entry.get("from")) else ("from", "value")
    speaker, content = (entry.get(name) for name in names)
    if content is None:
        raise InputError(f"a turn lacks {names[1]}: give every turn {' and '.join(names)}")
    if not isinstance(speaker, str) or speaker not in SPEAKERS:
        raise InputError(f"a turn is by {speaker!r}: use one of system, user and assistant")
    who = SPEAKERS[speaker]
    _refuse_extras(entry, TURN_EXTRAS, f"a turn of the {who}")
    parts = tuple(_read_content(content, folder, sampling))
    return _RawTurn(who, parts, _is_learned(entry, who), isinstance(content, str))


def _is_learned(entry: Mapping[str, Any], speaker: str) -> bool:
    """Whether an answer is learned: unless one of the keys of `LEARNED` says 0 or false."""
    said = {key: entry[key] for key in LEARNED if entry.get(key) is not None}
    if wrong := next((key for key, value in said.items() if value not in (0, 1)), None):
        raise InputError(f"a turn has the {wrong} {said[wrong]!r}: give 0 or 1, or true or false")
    if speaker != "assistant" and any(said.values()):
        raise InputError(
            f"a turn of the {speaker} is to be learned, and only answers are: take "
            f"{next(key for key, value in said.items() if value)} out of it"
        )
    return all(said.values())


def _read_content(content: Any, folder: Path, sampling: FrameSampling) -> Iterator[Part | Slot]:
    """Text or content parts, in order."""
    if isinstance(content, str):
        yield content
        return
    if not isinstance(content, list):
        raise InputError("a turn is neither text nor a list of parts: give it one of them")
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind in TEXTS and isinstance(part.get("text"), str):
            yield part["text"]
        elif kind in STILL:
            named = kind.removesuffix("_url").removeprefix("input_")
            own = [part.get(key) for key in (kind, f"{named}_url")]
            held = next((entry for entry in own if not _absent(entry)), None)
            if held is not None or any(not _absent(part.get(key)) for key in SOURCES):
                entry = part if held is None else held
                yield read_media(entry, named, folder, sampling, beside=part)
            elif kind == named:
                yield Slot(named)
            else:
                raise InputError(f"a part of the type {kind!r} has no {kind}: give its path")
        else:
            raise InputError(
                f"a turn has a part of the type {kind!r}: use text, {', '.join(STILL)}, each with "
                "a key of its name"
            )


def _fill(
    raw: list[_RawTurn], shown: Mapping[str, list[Media]]
) -> Iterator[tuple[_RawTurn, tuple[Part, ...]]]:
    """Each turn with its parts, the media of the row's lists where their places are."""
    slots = any(isinstance(part, Slot) for turn in raw for part in turn.parts)
    written = any(shown.values()) and not slots  # places are letters in texts
    left = {kind: iter(media) for kind, media in shown.items()}
    for turn in raw:
        parts: list[Part] = []
        for part in turn.parts:
            if isinstance(part, str) and not written:
                if turn.plain and not slots and (missing := PLACEHOLDER.search(part)):
                    raise InputError(
                        f"a text has {missing[0]} and the row lists no {missing[1]}s: add them, or "
                        'write the text as a part of the type "text"'
                    )
                parts.append(part)
            else:
                parts += _fill_places(part, left)
        yield turn, tuple(part for part in parts if part != "")
    if more := next((kind for kind, rest in left.items() if next(rest, None)), None):
        raise InputError(f"the row lists more {more}s than its texts have <{more}>: add the rest")


def _fill_places(part: Part | Slot, left: Mapping[str, Iterator[Media]]) -> Iterator[Part]:
    """A text cut at its placeholders, with what they stand for, or the medium of a slot."""
    if isinstance(part, Media):
        yield part
        return
    pieces = PLACEHOLDER.split(part) if isinstance(part, str) else ["", part.kind]
    for i, piece in enumerate(pieces):
        if i % 2 == 0:
            yield piece
        elif (media := next(left[piece], None)) is not None:
            yield media
        else:
            raise InputError(f"the texts have more <{piece}> than the row has {piece}s: add them")


def read_media(
    entry: Any,
    kind: str,
    folder: Path,
    sampling: FrameSampling,
    beside: Mapping[str, Any] | None = None,
) -> Media:
    """A picture or a film: its path, a file or data address, its content, or a table with one.

    What the entry says of `fps` or `num_frames` replaces both of the source's; its frames are never
    more than the source's `max_frames`. Raises InputError for an address elsewhere, a missing file,
    and keys of sampling that are wrong.
    """
    table = dict(entry) if isinstance(entry, Mapping) else {"path": entry}
    own = {**(beside or {}), **table}
    said = {key: own[key] for key in SAMPLING if own.get(key) is not None}
    given = asdict(sampling)
    if "fps" in said:
        given.pop("num_frames", None)
    own_sampling = from_dict(FrameSampling, given | said, f"the {kind}")
    return Media(
        source=_find(table, kind, folder),
        still=STILL[kind],
        sampling=own_sampling.at_most(sampling.max_frames),
    )


def _find(table: Mapping[str, Any], kind: str, folder: Path) -> Path | bytes:
    """The file or the content; Parquet may hold the latter, its path then being a name alone."""
    held = [table[key] for key in (*SOURCES, kind) if table.get(key)]
    if held and isinstance(held[0], bytes):
        return held[0]
    if not held or not isinstance(held[0], str):
        raise InputError(f"the {kind} has no path: give one")
    return _locate(held[0], kind, folder)


def _locate(place: str, kind: str, folder: Path) -> Path | bytes:
    if place.startswith("data:"):
        try:
            return base64.b64decode(place.partition(";base64,")[2], validate=True)
        except binascii.Error as error:
            raise InputError(f"the {kind} is no base64 address: encode it again") from error
    scheme = urlparse(place).scheme if "://" in place else ""
    if scheme not in ("", "file"):
        raise InputError(f"the {kind} is an address of {scheme}: download it and give its path")
    path = folder / find_name(folder, unquote(urlparse(place).path) if scheme else place)
    if not is_there(path) or not path.is_file():
        shown = place if len(place) <= LONGEST_PATH else f"{place[:LONGEST_PATH]}..."
        raise InputError(f"the {kind} {shown!r} is not there: copy it or correct the path")
    return path


def _listed(row: Mapping[str, Any], kind: str) -> list[Any]:
    """What a row lists of a kind, under its plural or its singular."""
    found = [row[key] for key in (f"{kind}s", kind) if not _absent(row.get(key))]
    if len(found) > 1:
        raise InputError(f"the row has both {kind}s and {kind}: keep one of them")
    listed = found[0] if found else []
    return listed if isinstance(listed, list) else [listed]


def _check_turns(turns: list[Turn]) -> list[Turn]:
    talk = turns[1:] if turns and turns[0].speaker == "system" else turns
    expected = ("user", "assistant")
    wrong = next((i for i, t in enumerate(talk) if t.speaker != expected[i % 2]), None)
    if wrong is not None:
        raise InputError(
            f"turn {wrong + 1} is by the {talk[wrong].speaker}: let user and assistant alternate, "
            "the user first"
        )
    if not talk or len(talk) % 2:
        raise InputError("the talk ends without an answer: add it, or leave its question out")
    for turn in turns:
        bare = not any(isinstance(part, Media) or part.strip() for part in turn.parts)
        if bare and turn.speaker != "system":
            raise InputError(f"the {turn.speaker} says nothing in a turn: fill it or leave it out")
        if turn.speaker == "system" and any(isinstance(part, Media) for part in turn.parts):
            raise InputError("the system shows something: move it to the user's turn")
    return turns
