"""The model folder that ships with the package."""

from pathlib import Path

NANO = Path(__file__).parents[1] / "assets" / "nano"
