"""A model in GGUF files: one, or the parts into which llama.cpp's `gguf-split` has cut it.

Part i of n is called NAME-0000i-of-0000n.gguf. Each names its number and their count; the first has
all other entries, each the tensors of its own.
"""

import re
from pathlib import Path

from ringworld.errors import InputError
from ringworld.weights.gguf import Container, read_container
from ringworld.weights.settings import size_of

PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.S)
PART_NUMBER, PART_COUNT, TENSOR_COUNT = "split.no", "split.count", "split.tensors.count"


def read_model(path: Path) -> Container:
    """The entries and tensors of a GGUF file; any part of a split model stands for all of it.

    Raises InputError when a part is missing, or another model's.
    """
    file = read_container(path)
    count = size_of({PART_COUNT: 0} | file.entries, PART_COUNT, path, least=0)
    if count <= 1:
        return file
    number = size_of(file.entries, PART_NUMBER, path, least=0) + 1
    name = PART.fullmatch(path.name)
    if name is None or (int(name[2]), int(name[3])) != (number, count):
        raise InputError(
            f"{path} is part {number} of {count} of a model: name it "
            f"NAME-{number:05}-of-{count:05}.gguf, as the other parts beside it"
        )
    parts = [_read_part(path, name[1], i, count) for i in range(1, count + 1)]
    tensors = {name: tensor for part in parts for name, tensor in part.tensors.items()}
    held = sum(len(part.tensors) for part in parts)
    told = size_of({TENSOR_COUNT: held} | parts[0].entries, TENSOR_COUNT, parts[0].path, least=0)
    if not len(tensors) == held == told:
        raise InputError(
            f"the {count} parts of {path} hold {held} tensors of {told}: copy them all again"
        )
    return Container(parts[0].path, parts[0].entries, tensors)


def are_one_model(files: list[Path]) -> bool:
    """Whether files are parts of one split model, by their names."""
    names = [PART.fullmatch(file.name) for file in files]
    return len({name and (name[1], name[3]) for name in names}) == 1 and names[0] is not None


def _read_part(path: Path, name: str, number: int, count: int) -> Container:
    place = path.with_name(f"{name}-{number:05}-of-{count:05}.gguf")
    if not place.is_file():
        raise InputError(
            f"there is no {place}, part {number} of {count} of this model: copy all its parts into "
            "one folder"
        )
    part = read_container(place)
    if (part.entries.get(PART_NUMBER), part.entries.get(PART_COUNT)) != (number - 1, count):
        raise InputError(f"{place} is not part {number} of {count} of a model: copy it again")
    return part
