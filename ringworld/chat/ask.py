"""What a person asks of a model: answers about a clip, drawings from words, what happens next."""

from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from ringworld.chat.config import DrawingRequest, ImageRequest, VideoRequest
from ringworld.data.example import Example, join, open_frames
from ringworld.distributed import is_first
from ringworld.errors import BadFileError, InputError
from ringworld.files import check_writable, whole
from ringworld.inference.generate import draw_frames, write_text
from ringworld.media.clip import ANIMATIONS, write_animation
from ringworld.mesh import make_mesh
from ringworld.progress import Announce
from ringworld.settings import Sampling
from ringworld.tasks.clips import question_prompt, unconditional_prompt, video_prompt
from ringworld.tasks.stills import image_prompt
from ringworld.weights.model import Model, load_model

# The longest answer to a question about a clip: a description of three shapes.
ANSWER_STEPS = 48
PICTURE_ENDINGS = (".png",)


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
    prompts = [video_prompt(caption, model.tokenizer) for caption in captions]
    return _draw(model, prompts, frames, guidance, sampling, seed)


def draw_pictures(
    model: Model, captions: Sequence[str], *, guidance: float, sampling: Sampling, seed: int
) -> list[UInt8[np.ndarray, "Y X 3"]]:
    """A picture for each caption, guided as a clip is."""
    prompts = [image_prompt(caption, model.tokenizer) for caption in captions]
    return [clip[0] for clip in _draw(model, prompts, 1, guidance, sampling, seed)]


def _draw(
    model: Model,
    prompts: Sequence[Example],
    frames: int,
    guidance: float,
    sampling: Sampling,
    seed: int,
) -> list[UInt8[np.ndarray, "_ Y X 3"]]:
    codes = draw_frames(
        model.sharded_weights(),
        prompts,
        [unconditional_prompt(model.tokenizer)] * len(prompts),
        model.config,
        frames=frames,
        guidance=guidance,
        sampling=sampling,
        seed=seed,
    )
    return [model.codec.decode(clip) for clip in codes]


def continue_clips(
    model: Model,
    given: Sequence[Int[np.ndarray, "Z Q"]],
    *,
    frames_more: int,
    sampling: Sampling,
    seed: int,
) -> list[UInt8[np.ndarray, "more Y X 3"]]:
    """The frames that the model draws after those of each clip, without words."""
    start, words = unconditional_prompt(model.tokenizer), model.config.vocabulary
    codes = draw_frames(
        model.sharded_weights(),
        [join([start, open_frames(frames, words, 0.0)]) for frames in given],
        [],
        model.config,
        frames=frames_more,
        guidance=1.0,
        sampling=sampling,
        seed=seed,
    )
    return [model.codec.decode(clip) for clip in codes]


def draw_video(wanted: VideoRequest, announce: Announce) -> None:
    """Draw one clip and write it as .gif, .mp4 or .webm.

    Raises InputError, before the model is loaded, when the file exists and may not be replaced or
    cannot be written.
    """
    check_output(wanted.output, ANIMATIONS, wanted.overwrite)
    with jax.set_mesh(make_mesh(**asdict(wanted.mesh))):
        clip = draw_captions(
            load_announced(wanted, announce),
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


def draw_image(wanted: ImageRequest, announce: Announce) -> None:
    """Draw one picture and write it as .png. Raises InputError as `draw_video` does."""
    check_output(wanted.output, PICTURE_ENDINGS, wanted.overwrite)
    with jax.set_mesh(make_mesh(**asdict(wanted.mesh))):
        picture = draw_pictures(
            load_announced(wanted, announce),
            [wanted.caption],
            guidance=wanted.guidance,
            sampling=wanted.sampling,
            seed=wanted.seed,
        )[0]
    larger = picture.repeat(wanted.scale, axis=0).repeat(wanted.scale, axis=1)
    if is_first():
        with whole(wanted.output) as draft:
            Image.fromarray(larger).save(draft, "png")
    announce(f"wrote {wanted.output}")


def load_announced(wanted: DrawingRequest, announce: Announce) -> Model:
    """The model that is to draw; what it was trained for is announced."""
    model = load_model(wanted.model, wanted.weights.dtype, wanted.weights.adapter)
    if model.about:
        announce(model.about)
    return model


def check_output(path: Path, endings: Collection[str], overwrite: bool) -> None:
    """Raise InputError when no such file can be written to `path`, before any work for it."""
    if path.suffix.lower() not in endings:
        *some, last = endings
        kinds = f"{', '.join(some)} or {last}" if some else last
        raise InputError(f"{path.name} must end in {kinds} to say which kind to write")
    if path.is_dir():
        raise BadFileError(f"{path} is a folder: name a file")
    if path.exists() and not overwrite:
        raise BadFileError(
            f"{path} exists already: name another file, or allow it to be replaced",
            setting="overwrite",
        )
    check_writable(path)
