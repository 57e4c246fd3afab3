"""Rows of other people's data as talks: turns of text, pictures and films.

    conversations  ShareGPT: [{"from": "human" | "gpt" | "system", "value": text}, ...]
    messages       OpenAI: [{"role": "user" | "assistant" | "system", "content": ...}, ...], where
                   the content is text, or parts {"type": "text" | "image_url" | "video_url", ...}
    messages or conversations, and `images` and `videos` (or `image`, `video`): the n-th <image> or
                   <video> that is written in the texts stands for the n-th of the list; where
                   there is no list these letters may stand in parts of the type "text" alone

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
from ringworld.media.sampling import FrameSampling

SPEAKERS = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "bing": "assistant",
    "model": "assistant",
}
STILL = {"image": True, "image_url": True, "video": False, "video_url": False}
LONGEST_PATH = 200  # letters of a path in a sentence
PLACEHOLDER = re.compile(r"<(image|video)>")
SAMPLING = tuple(field.name for field in fields(FrameSampling))

Part = str | Media


@dataclass(frozen=True)
class Turn:
    """What one speaker ("system", "user" or "assistant") says and shows, in order."""

    speaker: str
    parts: tuple[Part, ...]


def read_talk(row: Mapping[str, Any], folder: Path, sampling: FrameSampling) -> list[Turn]:
    """The turns of a row in any dialect: perhaps a system turn, then users and answers in turn.

    `folder` is where the row's paths start. Raises InputError when the row is in none of the
    dialects, shows something that is not there, or does not alternate.
    """
    key = next((key for key in ("conversations", "messages") if key in row), None)
    if key is None or not isinstance(row[key], list):
        raise InputError(
            "the row holds no list of conversations or messages: name the source's kind, or "
            "rename its key"
        )
    shown = {
        kind: iter([read_media(entry, kind, folder, sampling) for entry in _listed(row, kind)])
        for kind in ("image", "video")
    }
    placed = any(kind in row or f"{kind}s" in row for kind in shown)
    names = ("from", "value") if key == "conversations" else ("role", "content")
    turns = []
    for entry in row[key]:
        speaker, content = _spoken(entry, *names)
        parts = list(_read_content(content, folder, sampling))
        if placed:
            parts = [p for part in parts for p in _fill_places(part, shown)]
        elif isinstance(content, str) and (missing := PLACEHOLDER.search(content)):
            raise InputError(
                f"a text has {missing[0]} and the row lists no {missing[1]}s: add them, or write "
                'the text as a part of the type "text"'
            )
        turns.append(Turn(speaker, tuple(part for part in parts if part != "")))
    if left := next((kind for kind, rest in shown.items() if next(rest, None)), None):
        raise InputError(f"the row lists more {left}s than its texts have <{left}>: add the rest")
    return _check_turns(turns)


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
    held = [table[key] for key in ("bytes", "path", "url", kind) if table.get(key)]
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
    path = folder / (unquote(urlparse(place).path) if scheme else place)
    if not _is_file(path):
        shown = place if len(place) <= LONGEST_PATH else f"{place[:LONGEST_PATH]}..."
        raise InputError(f"the {kind} {shown!r} is not there: copy it or correct the path")
    return path


def _is_file(path: Path) -> bool:
    """Whether a file is there; names that no file can have are not."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _listed(row: Mapping[str, Any], kind: str) -> list[Any]:
    found = row.get(f"{kind}s", row.get(kind))
    if found is None:
        return []
    return found if isinstance(found, list) else [found]


def _spoken(entry: Any, speaker: str, content: str) -> tuple[str, Any]:
    if not isinstance(entry, Mapping) or content not in entry:
        raise InputError(f"a turn lacks {content}: give every turn {speaker} and {content}")
    if entry.get(speaker) not in SPEAKERS:
        raise InputError(
            f"a turn is by {entry.get(speaker)!r}: use one of system, user and assistant"
        )
    return SPEAKERS[entry[speaker]], entry[content]


def _read_content(content: Any, folder: Path, sampling: FrameSampling) -> Iterator[Part]:
    """Text or content parts, in order."""
    if isinstance(content, str):
        yield content
        return
    if not isinstance(content, list):
        raise InputError("a turn is neither text nor a list of parts: give it one of them")
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text" and isinstance(part.get("text"), str):
            yield part["text"]
        elif kind in STILL and kind in part:
            named = kind.removesuffix("_url")
            yield read_media(part[kind], named, folder, sampling, beside=part)
        else:
            raise InputError(
                f"a turn has a part of the type {kind!r}: use text, {', '.join(STILL)}, each with "
                "a key of its name"
            )


def _fill_places(part: Part, shown: Mapping[str, Iterator[Media]]) -> Iterator[Part]:
    """A text cut at its placeholders, with what they stand for."""
    if not isinstance(part, str):
        yield part
        return
    for i, piece in enumerate(PLACEHOLDER.split(part)):
        if i % 2 == 0:
            yield piece
        elif (media := next(shown[piece], None)) is not None:
            yield media
        else:
            raise InputError(f"the texts have more <{piece}> than the row has {piece}s: add them")


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
