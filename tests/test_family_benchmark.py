"""The table of the models that ship says what the evaluations left."""

from pathlib import Path
from typing import Any

from benchmarks.family import HIDDEN, Bench, list_commands, make_rows
from ringworld.cli.options import parse_options
from ringworld.cli.verbs import VERBS


def counted(right: int) -> dict[str, Any]:
    return {"right": right, "tried": 10, "chance": 0.5}


def shapes(right: int) -> dict[str, Any]:
    each = [{"things": n, "whole": counted(right - n)} for n in (1, 2, 3)]
    names = ("pictures", "drawn", "next_frames", "codec_pictures", "codec")
    captions = [{**some, "f1": 0.9} for some in each]
    ahead = {"nearer": counted(right), "error": 0.02, "repeated_error": 0.03}
    whole = {"answers": counted(right), "captions": captions, "film_psnr": 21.34}
    whole |= {"film_continuation": ahead}
    return {**whole, **dict.fromkeys(names, each)}


def test_each_evaluation_has_its_rows() -> None:
    trial = dict(depth=0.5, round=0, city="Ar", number=1, response="1")
    trials = [dict(trial, length=n, found=n == 1024) for n in (4096, 1024, 4096)]
    played = ("one_step", "one_step_nothing_moves", "action", "rollout")
    found = {
        **dict.fromkeys(HIDDEN, {"trials": trials}),
        "nano/shapes": shapes(8),
        "nano-world/shapes": shapes(9),
        "nano-play/play": dict.fromkeys(played, counted(7)),
    }
    rows = list(make_rows(found, 30))
    assert rows[0][:3] == ("nano", "needles at 1,024 tokens", "1 of 1")
    assert rows[1][:3] == ("nano", "needles at 4,096 tokens", "0 of 2")
    assert rows[5][:3] == ("nano-text", "two of four needles at 4,096 tokens", "0 of 2")
    assert rows[6] == ("nano", "questions about unseen clips", "8 of 10", "49 to 94 %", "50 %")
    world = {what: right for model, what, right, *_ in rows if model == "nano-world"}
    assert world["clips of three things drawn from words"] == "6 of 10"
    assert world["true clips of one thing through the codec"] == "8 of 10"
    assert world["captions of unseen clips of two things"] == "7 of 10"
    assert world["F1 of captions of unseen clips of two things"] == "0.900"
    assert world["held-out film, nearer than its last frame repeated"] == "9 of 10"
    assert world["its squared error, and that of the last frame"] == "0.0200 / 0.0300"
    assert world["held-out film through the codec"] == "21.3 dB"
    assert rows[-1][:3] == ("nano-play", "rollouts of 30 frames right to the end", "7 of 10")
    assert len(rows) == 2 * 3 + 2 * (1 + 18 + 3 + 3) + 4


def test_the_commands_are_those_of_the_command_line(tmp_path: Path) -> None:
    commands = list_commands(Bench(folder=tmp_path))
    assert len({place.parent for place in commands}) == len(commands)
    for place, words in commands.items():
        verb = " ".join(words[:2])
        asked: Any = parse_options(VERBS[verb].options, words[2:], verb)
        assert asked.folder == place.parent
