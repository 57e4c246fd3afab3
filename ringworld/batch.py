"""A batch of packed rows: the one thing that data hands to training."""

from ringworld.attention.mask import Where
from ringworld.params import Leaf, pytree_dataclass


@pytree_dataclass
class Batch:
    """Packed rows, every field `[B, T]`.

    tokens, vision            the input ids (int32), and whether each is an image code (bool)
    targets, target_vision    the next token of the same segment, and its vocabulary
    weights                   the weight of predicting the target (float32); 0 where there is none
    positions, segments       where each token stands (int32); segment 0 is padding
    """

    tokens: Leaf
    vision: Leaf
    targets: Leaf
    target_vision: Leaf
    weights: Leaf
    positions: Leaf
    segments: Leaf

    @property
    def where(self) -> Where:
        """Positions and segments, as attention wants them."""
        return Where(self.positions, self.segments)
