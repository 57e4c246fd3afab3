"""The models that ship with the package."""

from pathlib import Path

ASSETS = Path(__file__).parents[1] / "assets"
NANO = ASSETS / "nano"
# A codec of the sizes of theirs that keeps more of small shapes. Its codes are not theirs.
SHAPES_CODEC = ASSETS / "shapes-codec"
NANO_PLAY = ASSETS / "nano-play"
SHIPPED_MODELS = {"nano": NANO, "nano-play": NANO_PLAY}
