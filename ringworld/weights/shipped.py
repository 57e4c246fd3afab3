"""The models that ship with the package."""

from pathlib import Path

ASSETS = Path(__file__).parents[1] / "assets"
NANO = ASSETS / "nano"
# Nano, trained on to draw what words ask for; it has the codec of nano.
NANO_WORLD = ASSETS / "nano-world"
# A codec of the sizes of theirs that keeps more of small shapes. Its codes are not theirs.
SHAPES_CODEC = ASSETS / "shapes-codec"
NANO_PLAY = ASSETS / "nano-play"
SHIPPED_MODELS = {"nano": NANO, "nano-world": NANO_WORLD, "nano-play": NANO_PLAY}
