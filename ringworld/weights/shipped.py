"""The models that ship with the package."""

from pathlib import Path

from ringworld.weights.file_names import CODEC

ASSETS = Path(__file__).parents[1] / "assets"
NANO = ASSETS / "nano"
# Nano with the codec of shapes, trained on to draw what words ask for.
NANO_WORLD = ASSETS / "nano-world"
SHAPES_CODEC = NANO_WORLD / CODEC
NANO_PLAY = ASSETS / "nano-play"
SHIPPED_MODELS = {"nano": NANO, "nano-world": NANO_WORLD, "nano-play": NANO_PLAY}
