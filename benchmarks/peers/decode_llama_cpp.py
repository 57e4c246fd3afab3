"""Worker: decoding by llama.cpp, which runs in a process of Node's below this one."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

from benchmarks.peers.model_work import WRITTEN, draw_prompt
from benchmarks.protocol import Prepared, serve


def prepare(request: dict[str, Any]) -> Prepared:
    """The model of the file, and a prompt that it has read."""
    here = Path(request["installed"])
    script = Path(shutil.copy(Path(__file__).with_name("llama_cpp.mjs"), here))
    prompt = json.dumps(draw_prompt(request["length"]).tolist())
    command = ["node", str(script), request["file"], str(request["length"]), str(WRITTEN), prompt]
    node = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert node.stdin is not None
    assert node.stdout is not None
    asks, answers = node.stdin, node.stdout
    first = json.loads(answers.readline())

    def again() -> None:
        print("again", file=asks, flush=True)
        answers.readline()

    return Prepared(again, [first["loaded"], *map(float, first["ids"][:4])])


if __name__ == "__main__":
    serve(prepare)
