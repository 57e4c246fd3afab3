"""The model folders that ship with the package."""

from pathlib import Path

ASSETS = Path(__file__).parents[1] / "assets"
NANO = ASSETS / "nano"
# The one that draws: its codec and its weights were trained on from those of `NANO`.
NANO_WORLD = ASSETS / "nano-world"
SHIPPED_MODELS = {"nano": NANO, "nano-world": NANO_WORLD}
