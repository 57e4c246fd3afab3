"""Episodes as tokens: actions before the frames that they cause, and what is learned of them."""

import numpy as np
import pytest

from ringworld.errors import InputError
from ringworld.tasks.play_form import action_ids, episode_example, episode_tokens
from ringworld.tasks.play_world import ACTIONS
from ringworld.text.load import load_tokenizer
from ringworld.text.tokenizer import Tokenizer
from ringworld.vocab import Vocabulary
from ringworld.weights.shipped import NANO

WORDS = Vocabulary(text=2048, bos=1, eos=2, codes=32, codes_per_frame=4, vision_rows=40)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(NANO)


def test_an_action_stands_before_the_frame_that_it_causes(tokenizer: Tokenizer) -> None:
    ids = action_ids(tokenizer)
    codes = np.arange(12).reshape(3, 4)
    acted = np.array([ids["left"], ids["stay"]])
    made = episode_example(codes, acted, tokenizer, WORDS)
    start, end = tokenizer.vision_start, tokenizer.vision_end
    first, second, third = codes.tolist()
    expected = [1, start, *first, 32, acted[0], *second, 32, acted[1], *third, 33, end, 2]
    assert made.tokens.tolist() == expected
    assert len(made) == episode_tokens(3, WORDS)
    text = [0, 1, 7, 13, 19, 20]
    assert np.flatnonzero(~made.vision).tolist() == text
    # The first frame is given; of the others each code and each end is learned, no action is.
    assert np.flatnonzero(made.weights).tolist() == [*range(8, 13), *range(14, 19)]


def test_every_action_is_one_token_of_its_own(tokenizer: Tokenizer) -> None:
    ids = action_ids(tokenizer)
    assert list(ids) == list(ACTIONS)
    assert len(set(ids.values())) == len(ACTIONS)
    assert [tokenizer.decode([number]).strip() for number in ids.values()] == list(ACTIONS)


def test_a_tokenizer_without_the_actions_is_refused(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ringworld.tasks.play_form.ACTIONS", {"somersault": (0, 0)})
    with pytest.raises(InputError, match='" somersault" is [2-9] tokens'):
        action_ids(tokenizer)
