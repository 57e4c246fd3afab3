"""What a person asks of a model: questions about a clip, a clip from words, what happens next."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Int, UInt8

from ringworld.chat.config import VideoRequest
from ringworld.data.example import join, open_frames
from ringworld.distributed import is_first
from ringworld.errors import BadFileError, InputError
from ringworld.files import check_writable
from ringworld.inference.generate import draw_frames, write_text
from ringworld.media.clip import ANIMATIONS, write_animation
from ringworld.mesh import make_mesh
from ringworld.progress import Announce
from ringworld.settings import Sampling
from ringworld.tasks.clips import question_prompt, unconditional_prompt, video_prompt
from ringworld.weights.model import Model, load_model

# The longest answer to a question about a clip: a description of three shapes.
ANSWER_STEPS = 48


def answer_questions(
    model: Model, asked: Sequence[str], codes: Sequence[Int[np.ndarray, "_ Q"]]
) -> list[str]:
    """The model's answer to each question about the clip beside it, drawn greedily."""
    words = model.config.vocabulary
    prompts = [
        question_prompt(question, clip, model.tokenizer, words)
        for question, clip in zip(asked, codes, strict=True)
    ]
    written = write_text(
        model.sharded_weights(),
        prompts,
        model.config,
        steps=ANSWER_STEPS,
        sampling=Sampling(),
        seed=0,
    )
    return [model.tokenizer.decode(ids).strip() for ids in written]


def draw_captions(
    model: Model,
    captions: Sequence[str],
    *,
    frames: int,
    guidance: float,
    sampling: Sampling,
    seed: int,
) -> list[UInt8[np.ndarray, "_ Y X 3"]]:
    """A clip for each caption, with classifier-free guidance against the prompt without one."""
    codes = draw_frames(
        model.sharded_weights(),
        [video_prompt(caption, model.tokenizer) for caption in captions],
        [unconditional_prompt(model.tokenizer)] * len(captions),
        model.config,
        frames=frames,
        guidance=guidance,
        sampling=sampling,
        seed=seed,
    )
    return [model.codec.decode(clip) for clip in codes]


def continue_scene(
    model: Model,
    given: Int[np.ndarray, "Z Q"],
    *,
    frames_more: int,
    sampling: Sampling,
    seed: int,
) -> UInt8[np.ndarray, "more Y X 3"]:
    """The frames that the model draws after the given ones."""
    seen = open_frames(given, model.config.vocabulary, 0.0)
    codes = draw_frames(
        model.sharded_weights(),
        [join([unconditional_prompt(model.tokenizer), seen])],
        [],
        model.config,
        frames=frames_more,
        guidance=1.0,
        sampling=sampling,
        seed=seed,
    )
    return model.codec.decode(codes[0])


def draw_video(wanted: VideoRequest, announce: Announce) -> None:
    """Draw one clip and write it as .gif, .mp4 or .webm.

    Raises InputError, before the model is loaded, when the file exists and may not be replaced or
    cannot be written.
    """
    check_output(wanted.output, wanted.overwrite)
    with jax.set_mesh(make_mesh(**asdict(wanted.mesh))):
        model = load_model(wanted.model, wanted.weights.dtype, wanted.weights.adapter)
        if model.about:
            announce(model.about)
        clip = draw_captions(
            model,
            [wanted.caption],
            frames=wanted.frames,
            guidance=wanted.guidance,
            sampling=wanted.sampling,
            seed=wanted.seed,
        )[0]
    larger = clip.repeat(wanted.scale, axis=1).repeat(wanted.scale, axis=2)
    if is_first():
        write_animation(wanted.output, larger, wanted.fps)
    announce(f"wrote {wanted.output}")


def check_output(path: Path, overwrite: bool) -> None:
    """Raise InputError when a film cannot be written to `path`, before any work is done for it."""
    if path.suffix.lower() not in ANIMATIONS:
        raise InputError(f"{path.name} must end in .gif, .mp4 or .webm to say which kind to write")
    if path.is_dir():
        raise BadFileError(f"{path} is a folder: name a file")
    if path.exists() and not overwrite:
        raise BadFileError(
            f"{path} exists already: name another file, or allow it to be replaced",
            setting="overwrite",
        )
    check_writable(path)
