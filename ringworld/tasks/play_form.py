"""Episodes as tokens: each action is one text token before the frame that it causes.

    <s><vision> frame <eof> ACTION frame <eof> ACTION frame ... frame <eov></vision></s>

A frame is its codes, `<eof>` and `<eov>` are vision ids, and an action is one of the words of
`ACTIONS` with a space before it, which has to be one token. So a step has the same number of tokens
throughout, and a cell stands at the same distance behind itself in the frame before. Frames are
learned, but for the first; actions are given.
"""

import numpy as np
from jaxtyping import Int

from ringworld.data.example import Example, frames, join, open_frames, text
from ringworld.errors import InputError
from ringworld.tasks.clips import ending, unconditional_prompt
from ringworld.tasks.play_world import ACTIONS
from ringworld.text.tokenizer import Tokenizer
from ringworld.vocab import Vocabulary


def action_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """The token of each action. Raises InputError when one is not a single token."""
    found = {action: tokenizer.encode(f" {action}") for action in ACTIONS}
    for action, ids in found.items():
        if len(ids) != 1:
            raise InputError(
                f'" {action}" is {len(ids)} tokens of this tokenizer: use one that has a token for '
                "each action, such as that of nano"
            )
    return {action: ids[0] for action, ids in found.items()}


def episode_example(
    codes: Int[np.ndarray, "Z Q"],
    actions: Int[np.ndarray, "Z-1"],
    tokenizer: Tokenizer,
    vocabulary: Vocabulary,
) -> Example:
    """An episode of Z frames as codes and the ids of the actions between them."""
    parts = [unconditional_prompt(tokenizer), open_frames(codes[:1], vocabulary, 0.0)]
    for i, action in enumerate(actions, 1):
        last = i == len(actions)
        learned = (frames if last else open_frames)(codes[i : i + 1], vocabulary, 1.0)
        parts += [text([int(action)], 0.0), learned]
    return join([*parts, ending(tokenizer)])


def episode_tokens(count: int, vocabulary: Vocabulary) -> int:
    """The tokens of an episode of so many frames, for a tokenizer with a first token."""
    return (
        count * vocabulary.frame_length + count - 1 + len(("<s>", "<vision>", "</vision>", "</s>"))
    )
