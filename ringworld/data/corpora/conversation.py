"""Conversations and captions as examples, in LWM's chat form: answers are learned.

    <s>{system} USER: {question}\\n<vision>...</vision> ASSISTANT: {answer}</s> USER: ...

Text and media beside each other stand on different lines. An answer that is drawn is
learned in its codes alone, as in `ringworld.tasks.clips`, whose forms these are.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ringworld.data.corpora.chat_formats import Part, Turn
from ringworld.data.corpora.encoding import EncodedMedia, Media, wrap_frames
from ringworld.data.corpora.shards import Record
from ringworld.data.example import Example, document, join, text
from ringworld.text.template import DESCRIBE, DESCRIBE_IMAGE, SYSTEM
from ringworld.text.tokenizer import Tokenizer
from ringworld.vocab import Vocabulary

# Reads a film or a picture; its codes come when the batch that it falls into is encoded.
EncodeMedia = Callable[[Media], EncodedMedia]


@dataclass(frozen=True)
class MediaPart:
    """A film or a picture within an example, and the loss weight of its codes."""

    encoded: EncodedMedia
    weight: float


PendingExample = Sequence[Example | MediaPart]


def is_complete(pending: PendingExample) -> bool:
    """Whether the codes of all its media are known."""
    return all(part.encoded.is_complete for part in pending if isinstance(part, MediaPart))


def finish_example(
    pending: PendingExample, origin: str, tokenizer: Tokenizer, vocabulary: Vocabulary
) -> Record:
    """The record of an example whose codes are all known."""
    parts, seconds = [], [np.zeros(0)]
    for part in pending:
        if isinstance(part, MediaPart):
            seconds.append(np.array(part.encoded.moments))
            codes = part.encoded.codes
            part = wrap_frames(codes, tokenizer, vocabulary, around=0.0, inside=part.weight)
        parts.append(part)
    example = parts[0] if len(parts) == 1 else join(parts)
    return Record(example=example, seconds=np.concatenate(seconds), origin=origin)


def make_conversation(
    turns: Sequence[Turn], encode: EncodeMedia, tokenizer: Tokenizer
) -> PendingExample:
    """The example of alternating turns, after a system turn or LWM's own system prompt."""
    pending: list[Example | MediaPart] = [text(tokenizer.bos_ids, 0.0)]
    given = SYSTEM
    if turns[0].speaker == "system":
        given = "".join(part for part in turns[0].parts if isinstance(part, str))
        turns = turns[1:]
    for turn in turns:
        parts = space_out(turn.parts)
        if turn.speaker == "user":
            given += " USER: "
            for part in parts:
                if isinstance(part, str):
                    given += part
                else:
                    pending += [text(tokenizer.encode(given), 0.0), MediaPart(encode(part), 0.0)]
                    given = ""
            given += " ASSISTANT:"
            continue
        weight = 1.0 if turn.learned else 0.0
        spoken = any(isinstance(part, str) for part in parts)
        opening = isinstance(parts[0], str)
        pending.append(text(tokenizer.encode(given if opening else f"{given} "), 0.0))
        given = ""
        for i, part in enumerate(parts):
            if isinstance(part, str):
                ids = tokenizer.encode(part) if i else tokenizer.encode_answer(part)
                pending.append(text(ids, weight))
            else:
                pending.append(MediaPart(encode(part), weight))
        pending.append(text([tokenizer.eos], weight if spoken else 0.0))
    return pending


def space_out(parts: Sequence[Part]) -> list[Part]:
    """The parts, text and media on different lines, texts that follow each other joined."""
    out: list[Part] = []
    for part in parts:
        if not out:
            out.append(part)
        elif isinstance(out[-1], str) and isinstance(part, str):
            out[-1] += part
        elif isinstance(out[-1], str):
            out[-1:] = [out[-1] if out[-1][-1:].isspace() else f"{out[-1]}\n", part]
        elif isinstance(part, str):
            out.append(part if part[:1].isspace() else f"\n{part}")
        else:
            out.append(part)
    return out


def reorder(turns: Sequence[Turn], order: str) -> list[Turn]:
    """The turns with the media of each user's turn after its text, before it, or as written."""
    if order == "as-written":
        return list(turns)
    ordered = []
    for turn in turns:
        media = [part for part in turn.parts if isinstance(part, Media)]
        words = "".join(part for part in turn.parts if isinstance(part, str)).strip()
        if turn.speaker == "user" and media and words:
            parts = (words, *media) if order == "text-vision" else (*media, words)
            turn = replace(turn, parts=parts)
        ordered.append(turn)
    return ordered


def make_caption(
    media: Media, caption: str, order: str, encode: EncodeMedia, tokenizer: Tokenizer
) -> PendingExample:
    """A picture or film drawn from its caption, described by it, or alone."""
    if order == "vision":
        first, last = text(tokenizer.bos_ids, 0.0), text([tokenizer.eos], 0.0)
        return [first, MediaPart(encode(media), 1.0), last]
    kind = "an image" if media.still else "a video"
    if order == "text-vision":
        turns = [Turn("user", (f"Generate {kind} of {caption}",)), Turn("assistant", (media,))]
    else:
        asked = DESCRIBE_IMAGE if media.still else DESCRIBE
        turns = [Turn("user", (asked, media)), Turn("assistant", (caption,))]
    return make_conversation(turns, encode, tokenizer)


def make_document(ids: Sequence[int], tokenizer: Tokenizer) -> PendingExample:
    """A whole document by the ids of its text, every token and its end learned."""
    return [document(ids, tokenizer)]
