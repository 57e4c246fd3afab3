"""Messages of a request as one prompt: rendered by the chat template, with codes in place."""

from collections.abc import Sequence
from dataclasses import dataclass

from ringworld.chat.session import make_example
from ringworld.data.example import Example
from ringworld.errors import InputError
from ringworld.serve.film_codes import FilmCodes, ShownMedium, choose_frames
from ringworld.serve.protocol import ChatBody, MessageBody, PartBody
from ringworld.serve.served import Served
from ringworld.text.template import IMAGE_PLACEHOLDER, Message, render


@dataclass(frozen=True)
class Prompt:
    """A prompt, and the pictures and films in it; text alone has none."""

    example: Example
    media: tuple[FilmCodes, ...] = ()

    @property
    def content(self) -> bytes:
        """The key of the first film or picture: pages are shared by prompts that have it."""
        return self.media[0].key if self.media else b""


def find_shown_media(body: ChatBody, fps: float) -> list[ShownMedium]:
    """The pictures and films of a conversation, in order. Raises InputError for a bad part."""
    io = (body.media_io_kwargs or {}).get("video")
    sampling = choose_frames(fps, io, body.mm_processor_kwargs)
    found = []
    for message in body.messages:
        for part in message.parts:
            if part.type == "text":
                continue
            if message.role != "user":
                raise InputError("only messages of the user can show pictures and films")
            place = part.image_url if part.type == "image_url" else part.video_url
            url = place.url if place else None
            if not url and part.uuid is None:
                raise InputError(f"a part of the type {part.type} needs {part.type} with a url")
            taken = None if part.type == "image_url" else sampling
            found.append(ShownMedium(url or None, part.uuid, taken))
    return found


def render_messages(messages: Sequence[MessageBody], served: Served) -> str:
    """The text of a conversation, a placeholder for each picture and film.

    Raises InputError when the template refuses the conversation.
    """
    words = served.words
    shown: list[Message] = [
        {
            "role": "system" if message.role == "developer" else message.role,
            "content": _show(message.parts, served),
        }
        for message in messages
    ]
    return render(
        served.template,
        shown,
        bos_token=words.bos_name or "",
        eos_token=words.eos_name or "",
    )


def make_prompt(rendered: str, media: Sequence[FilmCodes], served: Served) -> Prompt:
    """The prompt that the model answers: a rendered conversation with codes in place."""
    example = make_example(rendered, [m.codes for m in media], served.words, served.config)
    return Prompt(example, tuple(media))


def _show(parts: Sequence[PartBody], served: Served) -> str:
    """The content of a message for the template; a line break stands between text and pictures."""
    shown = ""
    for part in parts:
        if part.type == "text":
            said = served.words.escape_special(part.text or "").replace(IMAGE_PLACEHOLDER, "")
            gap = "\n" if shown.endswith(IMAGE_PLACEHOLDER) and said else ""
            shown += gap + said
        else:
            gap = "" if not shown or shown.endswith((IMAGE_PLACEHOLDER, "\n")) else "\n"
            shown += gap + IMAGE_PLACEHOLDER
    return shown
