"""Talks and captions as examples, in LWM's chat form; answers are learned, questions given.

    <s>{system} USER: {question}\\n<vision>...</vision> ASSISTANT: {answer}</s> USER: ...

What a picture or a film is written beside stands on another line. An answer that is drawn is
learned in its codes alone, as in `ringworld.tasks.clips`, whose forms these are.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ringworld.data.corpora.chat_formats import Part, Turn
from ringworld.data.corpora.encoding import Footage, Media, wrap
from ringworld.data.corpora.shards import Record
from ringworld.data.example import Example, document, join, text
from ringworld.text.template import DESCRIBE, SYSTEM
from ringworld.text.tokenizer import Tokenizer
from ringworld.vocab import Vocabulary

# Reads a film or a picture; its codes may come later.
See = Callable[[Media], Footage]


@dataclass(frozen=True)
class Shown:
    """Footage in an example, its codes learned or not."""

    footage: Footage
    weight: float


Draft = Sequence[Example | Shown]


def ready(draft: Draft) -> bool:
    """Whether all codes of the draft are known."""
    return all(part.footage.ready for part in draft if isinstance(part, Shown))


def finish(draft: Draft, origin: str, tokenizer: Tokenizer, vocabulary: Vocabulary) -> Record:
    """The example of a draft whose codes are known."""
    parts, seconds = [], [np.zeros(0)]
    for part in draft:
        if isinstance(part, Shown):
            seconds.append(np.array(part.footage.moments))
            codes = part.footage.codes
            part = wrap(codes, tokenizer, vocabulary, around=0.0, inside=part.weight)
        parts.append(part)
    example = parts[0] if len(parts) == 1 else join(parts)
    return Record(example=example, seconds=np.concatenate(seconds), origin=origin)


def make_talk(turns: Sequence[Turn], see: See, tokenizer: Tokenizer) -> Draft:
    """The example of alternating turns, after a system turn or LWM's own system prompt."""
    draft: list[Example | Shown] = [text(tokenizer.bos_ids, 0.0)]
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
                    draft += [text(tokenizer.encode(given), 0.0), Shown(see(part), 0.0)]
                    given = ""
            given += " ASSISTANT:"
            continue
        weight = 1.0 if turn.learned else 0.0
        spoken = any(isinstance(part, str) for part in parts)
        opening = isinstance(parts[0], str)
        draft.append(text(tokenizer.encode(given if opening else f"{given} "), 0.0))
        given = ""
        for i, part in enumerate(parts):
            if isinstance(part, str):
                ids = tokenizer.encode(part) if i else tokenizer.encode_answer(part)
                draft.append(text(ids, weight))
            else:
                draft.append(Shown(see(part), weight))
        draft.append(text([tokenizer.eos], weight if spoken else 0.0))
    return draft


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


def make_caption(media: Media, caption: str, order: str, see: See, tokenizer: Tokenizer) -> Draft:
    """A picture or film drawn from its caption, described by it, or alone."""
    if order == "vision":
        first, last = text(tokenizer.bos_ids, 0.0), text([tokenizer.eos], 0.0)
        return [first, Shown(see(media), 1.0), last]
    kind = "an image" if media.still else "a video"
    if order == "text-vision":
        turns = [Turn("user", (f"Generate {kind} of {caption}",)), Turn("assistant", (media,))]
    else:
        asked = DESCRIBE.replace("video", "image") if media.still else DESCRIBE
        turns = [Turn("user", (asked, media)), Turn("assistant", (caption,))]
    return make_talk(turns, see, tokenizer)


def make_document(ids: Sequence[int], tokenizer: Tokenizer) -> Draft:
    """A whole document by the ids of its text, every token and its end learned."""
    return [document(ids, tokenizer)]
