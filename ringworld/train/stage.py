"""A part of a recipe: it starts from a folder and leaves a folder.

So what passes from stage to stage is on the disk: weights are read from it straight onto the mesh
of the next stage.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

from ringworld.distributed import first_goes_first, first_says
from ringworld.errors import InputError
from ringworld.models.world import World
from ringworld.progress import Announce

MODEL = "model"


class Data:
    """What the stages of a recipe are trained on."""

    def hashes(self) -> dict[str, str | None]:
        """The sha256 of what each field that is a path leads to; None where nothing is there."""
        return {}


S = TypeVar("S")
D = TypeVar("D", bound=Data, contravariant=True)


@dataclass(frozen=True, kw_only=True)
class Stage(ABC, Generic[D]):
    """One part of a recipe: it starts from a folder and leaves a folder in that of the run.

    `reads_data` is whether what it makes depends on the recipe's data.
    """

    reads_data: ClassVar[bool] = True
    name: str
    """the name of the stage, and of its folder"""

    @abstractmethod
    def check(self, data: D, source: Path | None, folder: Path) -> None:
        """Raise InputError for what can be seen to be wrong before the run writes anything.

        `source` is the folder that the stage starts from, None where another stage makes it.
        """

    @abstractmethod
    def run(self, data: D, source: Path | None, folder: Path, announce: Announce) -> Path:
        """Do in the run's folder what is left of the stage; returns the path of what it made."""

    @abstractmethod
    def kept(self, folder: Path) -> bool:
        """Whether the run in `folder` has anything that this stage would go on from."""

    def hashes(self) -> dict[str, str | None]:
        """The sha256 of what each field that is a path leads to; None where nothing is there."""
        return {}

    def extend(self, folder: Path, steps: int) -> str:
        """Make a stage of the run in `folder` ready to go on from `steps` steps to its own number.

        Returns in one sentence what that changes. Raises InputError when its steps are fixed.
        """
        raise InputError(f"the stage {self.name} has no steps to add: use another folder")


@dataclass(frozen=True, kw_only=True)
class StageWithoutSteps(Stage[Data]):
    """A stage that writes a model folder and learns nothing."""

    reads_data: ClassVar[bool] = False

    def kept(self, folder: Path) -> bool:
        """Whether the model is there."""
        return (folder / self.name / MODEL).exists()

    def run(self, data: Data, source: Path | None, folder: Path, announce: Announce) -> Path:
        """Write the model folder, unless it is there; returns its path."""
        done = folder / self.name / MODEL
        if not first_says(done.exists()):
            self.write(done, source)
        return done

    def require_start(self, start: S | None) -> S:
        """What the stage starts from. Raises InputError when there is nothing."""
        if start is None:
            raise InputError(f"the stage {self.name} has no model: give the recipe a start")
        return start

    @abstractmethod
    def output_config(self, before: World | None) -> World:
        """The sizes of what it makes of a model of these sizes, or of none.

        Raises InputError when it needs a model.
        """

    @abstractmethod
    def write(self, made: Path, source: Path | None) -> None:
        """Write the model folder `made`; all processes call this."""


def write_once(made: Path, write: Callable[[], None]) -> None:
    """Have the first process write the model folder `made`, unless it is there; others wait."""
    with first_goes_first():
        if not made.exists():
            made.parent.mkdir(parents=True, exist_ok=True)
            write()
