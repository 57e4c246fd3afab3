"""The figures of a played world: of the shipped model, and of a model that only repeats."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from ringworld.errors import InputError
from ringworld.evals import playing
from ringworld.evals.config import Playing
from ringworld.evals.playing import measure_episodes, measure_play
from ringworld.inference.next_frame import FrameWriter
from ringworld.mesh import local_mesh
from ringworld.tasks.play_policies import draw_episodes
from ringworld.weights.model import Model, load_model
from ringworld.weights.shipped import NANO, NANO_PLAY


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model(NANO_PLAY)


def test_the_shipped_model_is_measured_on_levels_that_no_training_saw(tmp_path: Path) -> None:
    told: list[str] = []
    wanted = Playing(episodes=6, steps=10, seed=17, folder=tmp_path / "play")
    measure_play(wanted, told.append)
    found = json.loads((tmp_path / "play" / "play.json").read_text())
    assert found["asked"] == {"episodes": 6, "steps": 10, "seed": 17}
    assert found["codec"] == {"right": 66, "tried": 66, "chance": 0.0}
    # The shipped model has 99.2 % of 3,000 frames right: 56 of 60 are five standard deviations off.
    assert found["one_step"]["right"] >= 56 and found["one_step"]["tried"] == 60
    assert found["action"]["right"] >= 56
    assert found["rollout"]["tried"] == 6
    assert 1 <= found["passes"] < 8
    assert told[1].startswith("one step, frames right: ") and told[-1].startswith("wrote ")


def test_a_model_that_repeats_the_frame_is_right_where_nothing_moves(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Repeats(FrameWriter):
        """Writes the frame that it saw last."""

        def write(self, before: int) -> np.ndarray:
            """The same codes again."""
            self._before, self._length = before, self._length + self._step
            return self._codes

    monkeypatch.setattr(playing, "FrameWriter", Repeats)
    played = draw_episodes(16, 6, 3, held_out=True)
    still = [
        [np.array_equal(a, b) for a, b in zip(each.levels, each.levels[1:], strict=False)]
        for each in played
    ]
    moves = [[action != "stay" for action in each.actions] for each in played]
    blocked = np.array(still) & np.array(moves)
    with jax.set_mesh(local_mesh()):
        found = measure_episodes(model, played)
    assert found.one_step.right == np.sum(still) and found.one_step.tried == 96
    assert found.one_step.chance == pytest.approx(np.mean(still))
    assert found.one_step_nothing_moves.right == found.one_step_nothing_moves.tried
    assert found.one_step_nothing_moves.tried == blocked.sum() > 0
    assert found.action.right == np.sum(still)
    same = [[np.array_equal(each.levels[0], x) for x in each.levels[1:]] for each in played]
    assert found.rollout_frames.right == np.sum(same)
    assert found.rollout.right == np.all(same, axis=1).sum()


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(InputError, match="0 episodes"):
        Playing(episodes=0)
    with pytest.raises(InputError, match="this model has no actions"):
        measure_play(Playing(model=NANO), print)
