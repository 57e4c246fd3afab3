"""Clips with words, in both orders, in LWM's chat forms.

    text then video    <s>... USER: Generate a video of {wish} ASSISTANT: <vision>...</vision></s>
    video then text    <s>... USER: {question}\\n<vision>...</vision> ASSISTANT: {answer}</s>
                       USER: {question} ASSISTANT: {answer}</s> ...
    video alone        <s><vision>...</vision></s>

What is given is not learned, so an example teaches one modality. Video alone teaches the
unconditional distribution that classifier-free guidance needs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8

from ringworld.data.example import Example, frames, join, text
from ringworld.data.samples import write_arrays
from ringworld.media.codec import Codec
from ringworld.progress import Announce
from ringworld.tasks.shape_language import caption, questions
from ringworld.tasks.shapes import Scene, draw, reverse_scene, sample_scene
from ringworld.text.template import DESCRIBE, SYSTEM
from ringworld.text.tokenizer import Tokenizer
from ringworld.vocab import Vocabulary

FRAMES_A_CLIP = 6
# How often a clip is text then video, video then text, and video alone.
CLIP_FORMS = (0.5, 0.4, 0.1)
# The most questions about one clip: all share its codes, which are read once.
TURNS = 8


@dataclass(frozen=True)
class CodedClip:
    """A scene and the codes of its frames `[Z, Q]`."""

    scene: Scene
    codes: Int[np.ndarray, "Z Q"]


def video_prompt(wish: str, tokenizer: Tokenizer) -> Example:
    """The prompt that asks for a video, up to and with `<vision>`; codes come next."""
    return drawing_prompt(f"a video of {wish}", tokenizer)


def drawing_prompt(wanted: str, tokenizer: Tokenizer) -> Example:
    """The prompt that asks for "a video of ..." or "an image of ...", up to and with `<vision>`."""
    ids = tokenizer.encode(f"{SYSTEM} USER: Generate {wanted} ASSISTANT: ")
    return text([*tokenizer.bos_ids, *ids, tokenizer.vision_start], 0.0)


def unconditional_prompt(tokenizer: Tokenizer) -> Example:
    """The prompt for any video, `<s><vision>`, which guidance moves away from."""
    return text([*tokenizer.bos_ids, tokenizer.vision_start], 0.0)


def ending(tokenizer: Tokenizer) -> Example:
    """What follows the last frame: `</vision></s>`, not learned."""
    return text([tokenizer.vision_end, tokenizer.eos], 0.0)


def text_to_video(
    wish: str, codes: Int[np.ndarray, "Z Q"], tokenizer: Tokenizer, vocabulary: Vocabulary
) -> Example:
    """An example of text then video, of which the frames are learned."""
    return prompt_to_vision(video_prompt(wish, tokenizer), codes, tokenizer, vocabulary)


def prompt_to_vision(
    prompt: Example, codes: Int[np.ndarray, "Z Q"], tokenizer: Tokenizer, vocabulary: Vocabulary
) -> Example:
    """An example of a prompt and the frames that follow it, which are learned."""
    return join([prompt, frames(codes, vocabulary, 1.0), ending(tokenizer)])


def video_alone(
    codes: Int[np.ndarray, "Z Q"], tokenizer: Tokenizer, vocabulary: Vocabulary
) -> Example:
    """An example of video alone, of which the frames are learned."""
    return prompt_to_vision(unconditional_prompt(tokenizer), codes, tokenizer, vocabulary)


def question_prompt(
    asked: str, codes: Int[np.ndarray, "Z Q"], tokenizer: Tokenizer, vocabulary: Vocabulary
) -> Example:
    """A question and its video, up to where the answer begins."""
    opening = [
        *tokenizer.bos_ids,
        *tokenizer.encode(f"{SYSTEM} USER: {asked}\n"),
        tokenizer.vision_start,
    ]
    return join(
        [
            text(opening, 0.0),
            frames(codes, vocabulary, 0.0),
            text([tokenizer.vision_end, *tokenizer.encode(" ASSISTANT:")], 0.0),
        ]
    )


def video_to_text(
    turns: Sequence[tuple[str, str]],
    codes: Int[np.ndarray, "Z Q"],
    tokenizer: Tokenizer,
    vocabulary: Vocabulary,
    longest: int | None = None,
) -> Example:
    """An example of video then (question, answer) turns, of which the answers are learned.

    The first question comes before the video, the others follow the answer before them. With
    `longest` the turns end before one that does not fit so many tokens: in a row of its own it
    would be answered without the video.
    """
    (first, answer), *others = turns
    whole = join([question_prompt(first, codes, tokenizer, vocabulary), _say(answer, tokenizer)])
    for asked, answer in others:
        question = text(tokenizer.encode(f" USER: {asked} ASSISTANT:"), 0.0)
        more = join([whole, question, _say(answer, tokenizer)])
        if longest is not None and len(more) > longest:
            break
        whole = more
    return whole


def _say(answer: str, tokenizer: Tokenizer) -> Example:
    """An answer and its end, which are learned."""
    return text([*tokenizer.encode_answer(answer), tokenizer.eos], 1.0)


def clip_example(
    rng: np.random.Generator,
    clip: CodedClip,
    tokenizer: Tokenizer,
    vocabulary: Vocabulary,
    forms: tuple[float, float, float] = CLIP_FORMS,
    longest: int | None = None,
) -> Example:
    """One of three forms, each as often as `forms` says.

    They are text then video, video then text with as many turns as fit `longest` tokens, and video
    alone.
    """
    form = rng.choice(3, p=forms)
    words = caption(clip.scene)
    if form == 0:
        return text_to_video(words, clip.codes, tokenizer, vocabulary)
    if form == 2:
        return video_alone(clip.codes, tokenizer, vocabulary)
    pairs = [(DESCRIBE, words), *questions(clip.scene)]
    chosen = rng.permutation(len(pairs))[:TURNS]
    return video_to_text([pairs[i] for i in chosen], clip.codes, tokenizer, vocabulary, longest)


def reverse_clip(clip: CodedClip) -> CodedClip:
    """The clip in reverse. Frames are encoded one by one, so its codes are those of its frames."""
    return CodedClip(reverse_scene(clip.scene), clip.codes[::-1])


def draw_clips(
    grounds: Sequence[UInt8[np.ndarray, "Y X 3"]] | UInt8[np.ndarray, "n Y X 3"],
    codec: Codec,
    count: int,
    seed: int,
    cache: Path,
    announce: Announce,
    over_film: float,
    most_things: int,
) -> list[CodedClip]:
    """`count` random scenes with their codes, kept in `cache`.

    The share `over_film` of them is over one of the frames `grounds`, the others are on plain ones.
    """
    scenes = []
    for i in range(count):
        rng = np.random.default_rng((seed, i))
        over = grounds[int(rng.integers(len(grounds)))] if rng.random() < over_film else None
        scenes.append(sample_scene(rng, max_things=most_things, film=over))
    kept = cache / f"clips-{seed}-{count}-{most_things}-{over_film:g}.npz"
    if not kept.exists():
        announce(f"drawing and encoding {count} clips of moving shapes")
        size = codec.config.size
        codes = [
            codec.encode(np.concatenate([draw(s, frames=FRAMES_A_CLIP, size=size) for s in some]))
            for some in (scenes[i : i + 128] for i in range(0, count, 128))
        ]
        write_arrays(kept, codes=np.concatenate(codes).reshape(count, FRAMES_A_CLIP, -1))
    with np.load(kept) as arrays:
        return [CodedClip(s, c) for s, c in zip(scenes, arrays["codes"], strict=True)]
