"""A model made ready to serve: what the front needs of it, and the engine that runs it."""

from dataclasses import dataclass
from functools import cached_property

from ringworld.chat.dream import Dream, find_dream
from ringworld.chat.session import find_stops
from ringworld.chat.terminal import choose_template
from ringworld.inference.engine import Engine, EngineConfig
from ringworld.inference.generate import PAGE
from ringworld.inference.pool import count_page_bytes
from ringworld.mesh import axis_size
from ringworld.models.context_extension import extend_context
from ringworld.models.world import World
from ringworld.serve.config import ServeConfig
from ringworld.settings import Sampling
from ringworld.text.grammar import SchemaReader
from ringworld.text.tokenizer import Tokenizer
from ringworld.weights.model import Model, load_model

# Pages of each row that the cache has from the start: a thousand tokens. While the cache grows, the
# engine compiles for seconds and does nothing else.
PAGES_A_ROW = 4


@dataclass(frozen=True)
class Served:
    """A model with its context, chat template, and the ids that end an answer.

    `dream` is what games are begun from, None where the model has no actions.
    """

    model: Model
    config: World
    template: str
    stops: tuple[int, ...]
    dream: Dream | None = None

    @property
    def actions(self) -> tuple[str, ...]:
        """What can be done in the world that the model dreams; nothing where it dreams none."""
        return () if self.dream is None else self.dream.actions

    @property
    def words(self) -> Tokenizer:
        """The tokenizer."""
        return self.model.tokenizer

    @cached_property
    def schemas(self) -> SchemaReader:
        """What reads the JSON schemas that answers follow. Raises InputError when nothing can."""
        return SchemaReader(self.words, self.config.vocabulary.text, self.stops)

    @property
    def context(self) -> int:
        """The most tokens of a prompt and its answer."""
        return self.config.llama.context

    @property
    def sampling(self) -> Sampling:
        """How tokens are chosen where a request does not say: the model's own, or greedy."""
        return self.model.sampling or Sampling()

    def open_engine(self, asked: ServeConfig) -> Engine:
        """An engine on the mesh that is set, whose cache holds no more than it could ever use."""
        whole = PAGE * axis_size("seq")
        page = count_page_bytes(self.config, PAGE, asked.int8)
        useful = page * (1 + asked.rows * -(-self.context // whole))
        codes = asked.code_bytes if self.config.vocabulary.codes else 0
        room = min(asked.cache_bytes - codes, useful)
        limits = EngineConfig(cache_bytes=room, rows=asked.rows, page=PAGE, int8=asked.int8)
        engine = Engine(self.model.sharded_weights(), self.config, limits)
        engine.reserve(1 + asked.rows * PAGES_A_ROW)
        return engine


def load_served(asked: ServeConfig) -> Served:
    """Load the model on the mesh that is set.

    Raises InputError when a file is missing or damaged, or the model has no tokenizer.
    """
    model = load_model(asked.model, asked.weights.dtype, asked.weights.adapter)
    config = model.config
    if asked.context is not None:
        config = extend_context(config, asked.context, asked.rope)
    template = choose_template(model.chat_template, asked.template, has_document=False)
    ends = (config.vocabulary.eos, *model.ends)
    stops = find_stops(model.tokenizer, ends, template)
    return Served(model, config, template, stops, find_dream(model))
