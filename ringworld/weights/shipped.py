"""The models that ship with the package."""

from pathlib import Path

from ringworld.weights.file_names import CODEC

ASSETS = Path(__file__).parents[1] / "assets"
NANO = ASSETS / "nano"
# Nano with the codec of shapes, trained on to draw what words ask for.
NANO_WORLD = ASSETS / "nano-world"
SHAPES_CODEC = NANO_WORLD / CODEC
NANO_PLAY = ASSETS / "nano-play"
# The language model of nano, grown to 64K tokens.
NANO_TEXT = ASSETS / "nano-text"
SHIPPED_MODELS = {folder.name: folder for folder in (NANO, NANO_TEXT, NANO_WORLD, NANO_PLAY)}
