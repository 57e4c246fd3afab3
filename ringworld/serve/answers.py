"""From the engine's updates to the JSON of answers, whole or in chunks."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ringworld.inference.request import TokenScore
from ringworld.serve.engine_thread import AnswerPiece, Update
from ringworld.serve.film_codes import FilmCodes
from ringworld.text.tokenizer import NO_CHARACTER, Detokenizer, Tokenizer

JSON = dict[str, Any]


@dataclass
class AnswerChoice:
    """One answer, or what it has gained: its text, its ids with their scores, and why it ended.

    `stop` is the string that ended it, if one did.
    """

    index: int
    text: str = ""
    ids: list[int] = field(default_factory=list)
    scores: list[TokenScore] = field(default_factory=list)
    finish: str | None = None
    stop: str | None = None

    def add(self, more: "AnswerChoice") -> None:
        """Append what was gained."""
        self.text += more.text
        self.ids += more.ids
        self.scores += more.scores
        self.finish = more.finish or self.finish
        self.stop = more.stop or self.stop


class TextWriter:
    """The text of one answer as its ids come: whole characters, and nothing of a stop string.

    What could be the beginning of a stop string is held back until it is clear.
    """

    def __init__(self, words: Tokenizer, stops: Sequence[str]) -> None:
        self._detokenizer, self._stops = Detokenizer(words), stops
        self._sent, self._held = 0, ""
        self.stop: str | None = None

    def add(self, piece: AnswerPiece) -> str:
        """The text that a piece adds."""
        self._held += self._detokenizer.add(piece.ids)
        if piece.finish is None:
            kept = len(self._held) - self._find_beginning()
        elif piece.text is not None:
            rest = (self._held + self._detokenizer.finish())[len(piece.text) - self._sent :]
            self.stop = next((stop for stop in self._stops if rest.startswith(stop)), None)
            self._held = piece.text[self._sent :]
            kept = len(self._held)
        else:
            self._held += self._detokenizer.finish()
            kept = len(self._held)
        out, self._held = self._held[:kept], self._held[kept:]
        self._sent += len(out)
        return out

    def _find_beginning(self) -> int:
        """How many of the last characters may begin a stop string."""
        most = max((len(stop) for stop in self._stops), default=1) - 1
        for count in range(min(most, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-count:]) for stop in self._stops):
                return count
        return 0


class ChatWriter(TextWriter):
    """The same without the white space before the first word."""

    _begun = False

    def add(self, piece: AnswerPiece) -> str:
        """The text that a piece adds."""
        text = super().add(piece)
        text = text if self._begun else text.lstrip()
        self._begun |= bool(text)
        return text


class Answers:
    """All answers of a ticket, a writer for each: `samples` for the first prompt, and so on."""

    def __init__(self, writers: Sequence[TextWriter], samples: int) -> None:
        self._samples, self._writers = samples, writers
        self.choices = [AnswerChoice(i) for i in range(len(writers))]
        self.reused = 0

    def take(self, update: Update) -> list[AnswerChoice]:
        """What an update adds to the answers, which are kept."""
        gained = []
        for piece in update.pieces:
            i = piece.prompt * self._samples + piece.sample
            finish = "stop" if piece.finish == "cancelled" else piece.finish
            text = self._writers[i].add(piece)
            stop = self._writers[i].stop
            more = AnswerChoice(i, text, [*piece.ids], [*piece.scores], finish, stop)
            self.choices[i].add(more)
            gained.append(more)
        self.reused = update.reused
        return gained

    @property
    def tokens(self) -> int:
        """The tokens of all answers."""
        return sum(len(choice.ids) for choice in self.choices)


def count_usage(prompt: int, answers: Answers, media: Sequence[FilmCodes]) -> JSON:
    """The usage of a request: tokens of the prompt and of the answers, and what was seen."""
    details: JSON = {"cached_tokens": answers.reused}
    if media:
        tokens = [film.codes.shape[0] * (film.codes.shape[1] + 1) for film in media]
        rates = [film.fps for film in media if film.fps is not None]
        details["video_tokens"] = sum(tokens)
        details["video_frames"] = sum(len(film.seconds) for film in media)
        details["text_tokens"] = prompt - sum(tokens)
        details["sampled_fps"] = rates[-1] if rates else None
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answers.tokens,
        "total_tokens": prompt + answers.tokens,
        "prompt_tokens_details": details,
    }


def describe_media(media: Iterable[FilmCodes]) -> list[JSON]:
    """What was taken of each picture and film: the frames' times in seconds, and their tokens."""
    return [
        {
            "type": "video" if film.is_film else "image",
            "seconds": [round(moment, 3) for moment in film.seconds],
            "tokens": film.codes.shape[0] * (film.codes.shape[1] + 1),
            "sampled_fps": film.fps,
        }
        for film in media
    ]


# ---- log-probabilities


class TokenSpeller:
    """The text of single tokens, as they stand behind others; each is spelled once and kept.

    A token that is no whole character, or special, is spelled so that no two are alike.
    """

    def __init__(self, words: Tokenizer) -> None:
        self._words, self._kept = words, dict[int, str]()
        self._anchor = words.encode(":")
        self._before = len(words.decode(self._anchor))

    def spell(self, token: int) -> str:
        """The text of a token."""
        if token not in self._kept:
            self._kept[token] = self._spell(token)
        return self._kept[token]

    def _spell(self, token: int) -> str:
        text = self._words.decode([*self._anchor, token])[self._before :]
        if text and NO_CHARACTER not in text:
            return text
        special = self._words.backend.id_to_token(token)
        return special if special in self._words.special else f"token_id:{token}"


def spell_bytes(token: str) -> list[int] | None:
    """The bytes of a spelled token; None when it is no text."""
    return None if token.startswith("token_id:") else [*token.encode()]


def list_tops(token: int, score: TokenScore) -> list[tuple[int, float]]:
    """The likeliest tokens of a place with their log-probabilities, and the chosen one."""
    tops = [*score.top]
    if token not in (other for other, _ in tops):
        tops.append((token, score.logprob))
    return tops


def chat_logprobs(choice: AnswerChoice, speller: TokenSpeller) -> JSON:
    """The log-probabilities of an answer, in the form of /v1/chat/completions."""

    def entry(token: int, logprob: float) -> JSON:
        spelled = speller.spell(token)
        return {"token": spelled, "logprob": logprob, "bytes": spell_bytes(spelled)}

    return {
        "content": [
            entry(token, score.logprob) | {"top_logprobs": [entry(*top) for top in score.top]}
            for token, score in zip(choice.ids, choice.scores, strict=True)
        ],
        "refusal": None,
    }


def text_logprobs(
    ids: Sequence[int], scores: Sequence[TokenScore | None], start: int, speller: TokenSpeller
) -> JSON:
    """Log-probabilities in the form of /v1/completions; the first of a prompt has None.

    `start` is the offset of the first token in the text of the answer.
    """
    tokens = [speller.spell(token) for token in ids]
    offsets = []
    for token in tokens:
        offsets.append(start)
        start += len(token)
    tops = [
        None if score is None else {speller.spell(i): value for i, value in list_tops(token, score)}
        for token, score in zip(ids, scores, strict=True)
    ]
    return {
        "tokens": tokens,
        "token_logprobs": [None if score is None else score.logprob for score in scores],
        "top_logprobs": tops,
        "text_offset": offsets,
    }
