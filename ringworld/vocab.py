"""Every special number of the two vocabularies, named.

Text ids and image codes are two vocabularies in one stream: a boolean beside each token says which
table it belongs to. A frame is Q codes and an end marker: `eof` after every frame but the last,
`eov` after the last. Source: LWM (arXiv 2402.08268), where U = 8192, Q = 256, eof 8192, eov 8193.
"""

from dataclasses import dataclass

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

    @property
    def eof(self) -> int:
        """The vision id that ends a frame with another behind it."""
        return self.codes

    @property
    def eov(self) -> int:
        """The vision id that ends the last frame."""
        return self.codes + 1

    @property
    def frame_length(self) -> int:
        """The tokens of one frame, its end marker included."""
        return self.codes_per_frame + 1


LWM_VOCABULARY = Vocabulary(
    text=32000, bos=1, eos=2, codes=8192, codes_per_frame=256, vision_rows=8448
)
