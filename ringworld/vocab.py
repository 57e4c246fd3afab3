"""Every special number of the two vocabularies, named.

Text ids and image codes are two vocabularies in one stream: a boolean beside each token says which
table it belongs to. A frame is Q codes and an end marker: `eof` after every frame but the last,
`eov` after the last. Source: LWM (arXiv 2402.08268), where U = 8192, Q = 256, eof 8192, eov 8193.

With a `grid` codes have 2-D position embeddings, as those of DALL-E (arXiv 2102.12092). A model
reads code c at place p as the id c + p U (`grid_ids`), U being the rows of the vision table, and
looks up three of them: the code's, that of the place's row and that of its column.
"""

from dataclasses import dataclass
from math import isqrt

import numpy as np
from jaxtyping import Bool, Int

from ringworld.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """The ids of a world model. `vision_rows` rows hold the codes, the two markers and spares.

    A model of text alone has `codes = codes_per_frame = vision_rows = 0`.
    """

    text: int
    """rows of the text table"""
    bos: int
    """the id of the token before a text"""
    eos: int
    """the id of the token after a text"""
    codes: int = 0
    """codes of the codebook; 0 without vision"""
    codes_per_frame: int = 0
    """codes of a frame"""
    vision_rows: int = 0
    """rows of the vision table: codes, two markers and spares"""
    grid: bool = False
    """whether spare rows are 2-D position embeddings: of the row and the column of a code"""

    def __post_init__(self) -> None:
        if self.text < 1 or min(self.codes, self.codes_per_frame, self.vision_rows) < 0:
            raise InputError(
                f"a vocabulary cannot have {self.text} text ids, {self.codes} codes, "
                f"{self.codes_per_frame} of them a frame, and {self.vision_rows} vision rows: "
                "set text to 1 or more and the others to 0 or more"
            )
        if self.codes and self.vision_rows < self.codes + 2:
            raise InputError(
                f"{self.vision_rows} vision rows cannot hold {self.codes} codes and the ends of "
                f"frame and vision: set vision_rows to at least {self.codes + 2}"
            )
        if self.grid and (
            not self.codes
            or self.side**2 != self.codes_per_frame
            or self.vision_rows < self.first_grid_row + 2 * self.side
        ):
            raise InputError(
                f"{self.vision_rows} vision rows do not tell the rows and columns of "
                f"{self.codes_per_frame} codes a frame: use square frames, and at least "
                f"{self.first_grid_row + 2 * self.side} vision rows",
                setting="grid",
            )

    @property
    def eof(self) -> int:
        """The vision id that ends a frame with another behind it."""
        return self.codes

    @property
    def eov(self) -> int:
        """The vision id that ends the last frame."""
        return self.codes + 1

    @property
    def side(self) -> int:
        """The codes of a row and of a column of a square frame."""
        return isqrt(self.codes_per_frame)

    @property
    def first_grid_row(self) -> int:
        """The row of the vision table that tells the first row of a frame, where there is a grid.

        Those of the other rows of a frame follow, and then those of its columns.
        """
        return self.codes + 2

    @property
    def grid_offsets(self) -> Int[np.ndarray, "Q"]:
        """What is added to the codes of a frame, in order, for the ids that a model reads."""
        stride = self.vision_rows if self.grid else 0
        return stride * np.arange(self.codes_per_frame, dtype=np.int32)

    @property
    def frame_length(self) -> int:
        """The tokens of one frame, its end marker included."""
        return self.codes_per_frame + 1


LWM_VOCABULARY = Vocabulary(
    text=32000, bos=1, eos=2, codes=8192, codes_per_frame=256, vision_rows=8448
)


def grid_ids(
    tokens: Int[np.ndarray, "*rows n"], vision: Bool[np.ndarray, "*rows n"], words: Vocabulary
) -> Int[np.ndarray, "*rows n"]:
    """The tokens as a model reads them: codes with their places, where it has a grid.

    A frame begins behind a text token or a marker.
    """
    if not words.grid:
        return tokens
    index = np.arange(tokens.shape[-1], dtype=np.int32)
    is_code = vision & (tokens < words.codes)
    before = np.maximum.accumulate(np.where(is_code, np.int32(-1), index), axis=-1)
    place = (index - before - 1) % words.codes_per_frame
    return np.where(is_code, tokens + place * words.vision_rows, tokens).astype(np.int32)
