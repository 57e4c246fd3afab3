"""What a world model makes of shapes: pictures and clips from words, next frames, answers, codec.

    FOLDER/shapes.json     every figure
    FOLDER/pictures.png    drawn pictures, a row for each number of things
    FOLDER/shapes.png      drawn clips, a row each; of a codec alone there are no drawings

Scenes are drawn from a seed that no recipe draws its clips from. A clip counts as right when the
judge finds the colour, shape and motion of everything that was asked for, and nothing else; a
picture when it finds the colour, shape and place. The second half of a clip is right
when each of its frames is such a picture.
The sample film, of which every model may have seen the minutes that are not held out, goes through
the codec, and a model continues what is held out.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from ringworld.chat.ask import draw_captions
from ringworld.data.samples import SampleFilm, read_sample_film
from ringworld.distributed import first_goes_first, is_first
from ringworld.evals.answers import measure_answers, measure_captions
from ringworld.evals.config import Shapes
from ringworld.evals.film_continuation import measure_film_continuation
from ringworld.evals.next_frames import measure_next_frames
from ringworld.evals.proportion import Proportion
from ringworld.evals.stills import draw_stills, draw_true, freeze_scenes, judge_stills
from ringworld.fetch import fetch
from ringworld.files import check_writable, whole
from ringworld.media.codec import Codec
from ringworld.mesh import make_mesh
from ringworld.progress import Announce
from ringworld.tasks.clips import FRAMES_A_CLIP
from ringworld.tasks.shape_judge import ClipScore, chance_of_exact, score_clip
from ringworld.tasks.shape_language import caption
from ringworld.tasks.shapes import Scene, draw, sample_scene
from ringworld.weights.codecs import is_codec, load_codec
from ringworld.weights.model import Model, load_model

MOST_THINGS = 3
SHOWN = 4  # clips of each number of things in their sheet
PICTURES_SHOWN = 12  # pictures of each number of things in theirs


@dataclass(frozen=True, kw_only=True)
class ClipFigures:
    """How many clips of `things` things were right as wholes, and the shares of right parts."""

    things: int
    whole: Proportion
    colour: float
    shape: float
    motion: float

    def __str__(self) -> str:
        """The counts in a line."""
        return (
            f"{self.things}: whole {self.whole}; colour {self.colour:.2f}, shape {self.shape:.2f}, "
            f"motion {self.motion:.2f}"
        )


def measure_shapes(wanted: Shapes, announce: Announce) -> None:
    """Measure a codec, and what its model draws and answers; `wanted.folder` gets the figures.

    Raises InputError when the model or the folder cannot be used.
    """
    check_writable(wanted.folder / "shapes.json")
    scenes = {n: draw_scenes(n, wanted) for n in range(1, MOST_THINGS + 1)}
    with jax.set_mesh(make_mesh(**asdict(wanted.mesh))):
        if is_codec(wanted.model):
            model, codec = None, load_codec(wanted.model)
        else:
            model = load_model(wanted.model, wanted.weights.dtype)
            codec = model.codec
        with first_goes_first():
            film = read_sample_film(fetch("film"), codec, wanted.folder / "data", announce)
        figures = measure_codec(codec, scenes, film, announce)
        if model is not None:
            figures |= measure_model(model, scenes, film, wanted, announce)
    if is_first():
        asked = {"scenes": wanted.scenes, "seed": wanted.seed, "guidance": wanted.guidance}
        figures["asked"] = {**asked, "sampling": asdict(wanted.sampling)}
        with whole(wanted.folder / "shapes.json") as draft:
            draft.write_text(json.dumps(figures, indent=1) + "\n")
    announce(f"wrote {wanted.folder / 'shapes.json'}")


def measure_model(
    model: Model,
    scenes: dict[int, list[Scene]],
    film: SampleFilm,
    wanted: Shapes,
    announce: Announce,
) -> dict[str, Any]:
    """The figures of answers and of drawings; the first drawings are put into the sheets."""
    answers = measure_answers(model, scenes)
    announce(f"questions about unseen clips: {answers}")
    captions = [measure_captions(model, s, max_things=MOST_THINGS) for s in scenes.values()]
    for each in captions:
        announce(f"captions of unseen clips, things {each}")
    pictures, rows = [], []
    for some in scenes.values():
        stills = freeze_scenes(some)
        drawings = draw_stills(model, stills, wanted)
        pictures.append(judge_stills(drawings, stills, max_things=MOST_THINGS))
        rows.append(drawings[:PICTURES_SHOWN])
        announce(f"pictures drawn as asked, things {pictures[-1]}")
    write_drawings(wanted.folder / "pictures.png", rows)
    drawn, shown = [], []
    for some in scenes.values():
        clips = draw_captions(
            model,
            [caption(scene) for scene in some],
            frames=FRAMES_A_CLIP,
            guidance=wanted.guidance,
            sampling=wanted.sampling,
            seed=wanted.seed,
        )
        drawn.append(judge_clips(clips, some))
        shown += clips[:SHOWN]
        announce(f"clips drawn as asked, things {drawn[-1]}")
    write_drawings(wanted.folder / "shapes.png", shown)
    following = []
    for some in scenes.values():
        following.append(measure_next_frames(model, some, wanted))
        announce(f"next frames, things {following[-1]}")
    ahead = measure_film_continuation(model, film, wanted)
    announce(f"held-out film continued: {ahead}")
    return {
        "answers": asdict(answers),
        "captions": [asdict(each) for each in captions],
        "pictures": [asdict(each) for each in pictures],
        "drawn": [asdict(each) for each in drawn],
        "next_frames": [asdict(each) for each in following],
        "film_continuation": asdict(ahead),
    }


def write_drawings(path: Path, rows: Sequence[Sequence[UInt8[np.ndarray, "Y X 3"]]]) -> None:
    """Write rows of equally many pictures of one size as a PNG file."""
    if is_first():
        with whole(path) as draft:
            sheet = np.concatenate([np.concatenate(list(row), axis=1) for row in rows])
            Image.fromarray(sheet).save(draft, "png")


def draw_scenes(things: int, wanted: Shapes) -> list[Scene]:
    """As many scenes as asked for of so many things, over plain grounds."""
    rng, scenes = np.random.default_rng((wanted.seed, things)), list[Scene]()
    while len(scenes) < wanted.scenes:
        scene = sample_scene(rng, max_things=MOST_THINGS)
        scenes += [scene] if len(scene.things) == things else []
    return scenes


def measure_codec(
    codec: Codec, scenes: dict[int, list[Scene]], film: SampleFilm, announce: Announce
) -> dict[str, Any]:
    """What is left of true clips after the codec: no model that draws with it can do better."""
    grounds = film.frames[film.held_out]
    size, figures, pictures = codec.config.size, [], []
    for some in scenes.values():
        stills = freeze_scenes(some)
        kept = codec.decode(codec.encode(draw_true(stills, size)))
        pictures.append(judge_stills(kept, stills, max_things=MOST_THINGS))
        announce(f"true pictures through the codec, things {pictures[-1]}")
        clips = np.concatenate([draw(scene, frames=FRAMES_A_CLIP, size=size) for scene in some])
        decoded = codec.decode(codec.encode(clips))
        figures.append(judge_clips(decoded.reshape(len(some), FRAMES_A_CLIP, size, size, 3), some))
        announce(f"true clips through the codec, things {figures[-1]}")
    rebuilt = codec.decode(film.codes[film.held_out])
    error = ((grounds / 255 - rebuilt / 255) ** 2).mean((1, 2, 3))
    psnr = float(np.mean(-10 * np.log10(error)))
    used = len(np.unique(film.codes))
    announce(f"held-out film: {psnr:.2f} dB; codes in use over the film: {used}")
    return {
        "codec_pictures": [asdict(each) for each in pictures],
        "codec": [asdict(each) for each in figures],
        "film_psnr": psnr,
        "codes_used": used,
    }


def judge_clips(
    clips: Sequence[UInt8[np.ndarray, "_ Y X 3"]] | UInt8[np.ndarray, "n Z Y X 3"],
    scenes: Sequence[Scene],
) -> ClipFigures:
    """The figures of clips, each of which should show the scene beside it."""
    scores: list[ClipScore] = [score_clip(c, s) for c, s in zip(clips, scenes, strict=True)]
    chance = np.mean([chance_of_exact(scene, max_things=MOST_THINGS) for scene in scenes])
    return ClipFigures(
        things=len(scenes[0].things),
        whole=Proportion(sum(score.exact for score in scores), len(scores), float(chance)),
        colour=float(np.mean([score.colour for score in scores])),
        shape=float(np.mean([score.shape for score in scores])),
        motion=float(np.mean([score.motion for score in scores])),
    )
