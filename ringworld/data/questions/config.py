"""What can be asked of `ringworld data qa`. Imports no tokenizer."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from ringworld.data.questions.endpoint import Budget, Endpoint
from ringworld.errors import InputError

# Tokens of a turn, question and answer: what a chunk's share of a context must have room for.
LONGEST_TURN = 384
# Beside a chunk and its turn a context holds the opening and some room at the seams.
LEAST_ROOM = 64


@dataclass(frozen=True, kw_only=True)
class QA:
    """Ask a model for a question and an answer about every chunk of the documents."""

    documents: Annotated[Path, tyro.conf.Positional]
    """a folder of .txt files, one file, or a .jsonl"""
    tokenizer: Path
    """a tokenizer.json, or the model folder that holds one"""
    endpoint: Endpoint
    budget: Budget = field(default_factory=Budget)
    folder: Path = Path("runs/qa")
    """for the rows, the pairs, the report and the cache"""
    text_field: str = "text"
    """which field of a line of the .jsonl holds the text"""
    context: int = 32_768
    """the most tokens of a row"""
    chunk: int = 1_000
    """tokens of a chunk, as in LWM"""
    shortest: int = 100
    """a last chunk with fewer tokens is not asked about"""

    def __post_init__(self) -> None:
        least = self.chunk + LONGEST_TURN + LEAST_ROOM
        if not 1 <= self.shortest <= self.chunk:
            raise InputError("shortest lies between 1 and chunk: correct one of them")
        if self.context < least:
            raise InputError(
                f"a context of {self.context:,} tokens holds no chunk of {self.chunk:,} with its "
                f"question: use at least {least:,}"
            )
