"""Examples as a model reads them that is told the row and the column of each code."""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int

from ringworld.data.example import Example, on_grid
from ringworld.data.packing.rows import Apart, Examples, example_lengths
from ringworld.vocab import Vocabulary


@dataclass(frozen=True)
class GridExamples:
    """Examples whose codes are put on the grid as each is read."""

    examples: Examples
    vocabulary: Vocabulary

    def __len__(self) -> int:
        """The number of examples."""
        return len(self.examples)

    def __getitem__(self, i: int, /) -> Example:
        """Example i."""
        return on_grid(self.examples[i], self.vocabulary)

    @property
    def lengths(self) -> Int[np.ndarray, "N"]:
        """The tokens of each example."""
        return example_lengths(self.examples)


def all_on_grid(examples: Examples | Apart, vocabulary: Vocabulary) -> Examples | Apart:
    """The examples for a model of this vocabulary: as they are, where it has no grid."""
    if not vocabulary.grid:
        return examples
    if isinstance(examples, Apart):
        sources = {name: GridExamples(own, vocabulary) for name, own in examples.sources.items()}
        return replace(examples, sources=sources)
    return GridExamples(examples, vocabulary)
