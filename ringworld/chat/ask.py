"""What a person asks of a model: questions about a clip, a clip from words, what happens next."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Int, UInt8

from ringworld.data.example import join, open_frames
from ringworld.inference.generate import draw_frames, write_text
from ringworld.media.clip import write_animation
from ringworld.mesh import make_mesh
from ringworld.settings import MeshShape, Sampling
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


def draw_wishes(
    model: Model,
    wishes: Sequence[str],
    *,
    frames: int,
    guidance: float,
    sampling: Sampling,
    seed: int,
) -> list[UInt8[np.ndarray, "_ Y X 3"]]:
    """A clip for each wish, guided away from what the model draws without one."""
    codes = draw_frames(
        model.sharded_weights(),
        [video_prompt(wish, model.tokenizer) for wish in wishes],
        [unconditional_prompt(model.tokenizer)] * len(wishes),
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


def draw_video(
    folder: Path,
    wish: str,
    output: Path,
    *,
    frames: int,
    fps: float,
    guidance: float,
    sampling: Sampling,
    seed: int,
    mesh: MeshShape,
) -> None:
    """Draw one clip with the model of a folder and write it as .gif or .mp4."""
    model = load_model(folder)
    with jax.set_mesh(make_mesh(**asdict(mesh))):
        clips = draw_wishes(
            model, [wish], frames=frames, guidance=guidance, sampling=sampling, seed=seed
        )
    write_animation(output, clips[0], fps)
