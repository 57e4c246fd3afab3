"""Still pictures with words: one frame of a scene, in LWM's chat forms for images.

    text then picture  <s>... USER: Generate an image of {wish} ASSISTANT: <vision>...</vision></s>
    picture then text  <s>... USER: {question}\\n<vision>...</vision> ASSISTANT: {answer}</s> ...
    picture alone      <s><vision>...</vision></s>

A picture is a video of one frame: its codes and the end of all frames. It needs a quarter of the
tokens of a clip, and teaches what the words of a clip need first: colours, shapes and places.
"""

import numpy as np
from jaxtyping import Int

from ringworld.data.example import Example
from ringworld.tasks.clips import (
    FRAMES_A_CLIP,
    TURNS,
    CodedClip,
    drawing_prompt,
    prompt_to_vision,
    video_alone,
    video_to_text,
)
from ringworld.tasks.shape_language import caption, caption_still, questions
from ringworld.tasks.shapes import freeze_scene
from ringworld.text.template import DESCRIBE_IMAGE
from ringworld.text.tokenizer import Tokenizer
from ringworld.vocab import Vocabulary

# How often a caption says where each thing is.
PLACED = 0.75


def image_prompt(wish: str, tokenizer: Tokenizer) -> Example:
    """The prompt that asks for a picture, up to and with `<vision>`; codes come next."""
    return drawing_prompt(f"an image of {wish}", tokenizer)


def text_to_image(
    wish: str, codes: Int[np.ndarray, "1 Q"], tokenizer: Tokenizer, vocabulary: Vocabulary
) -> Example:
    """An example of text then picture, of which the picture is learned."""
    return prompt_to_vision(image_prompt(wish, tokenizer), codes, tokenizer, vocabulary)


def still_example(
    rng: np.random.Generator,
    clip: CodedClip,
    tokenizer: Tokenizer,
    vocabulary: Vocabulary,
    forms: tuple[float, float, float],
    longest: int | None = None,
) -> Example:
    """One frame of a clip in one of three forms, each as often as `forms` says.

    They are text then picture, picture then text with as many turns as fit `longest` tokens, and
    picture alone.
    """
    number = int(rng.integers(FRAMES_A_CLIP))
    scene = freeze_scene(clip.scene, number, frames=FRAMES_A_CLIP)
    codes = clip.codes[number : number + 1]
    words = caption_still(scene) if rng.random() < PLACED else caption(scene, motion=False)
    form = rng.choice(3, p=forms)
    if form == 0:
        return text_to_image(words, codes, tokenizer, vocabulary)
    if form == 2:
        return video_alone(codes, tokenizer, vocabulary)
    pairs = [(DESCRIBE_IMAGE, caption_still(scene)), *questions(scene, motion=False)]
    chosen = rng.permutation(len(pairs))[:TURNS]
    return video_to_text([pairs[i] for i in chosen], codes, tokenizer, vocabulary, longest)
