"""The training step compiled for TPUs that are not there.

libtpu compiles for a named topology on any machine. What comes back is the program that the chips
would run: how much memory each needs, what they send each other, and what the sending hides behind.
"""

import importlib.util
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial

import jax
from jax.experimental import topologies
from jax.sharding import Mesh
from jax.stages import Compiled

from ringworld.errors import InputError
from ringworld.mesh import RULES, Rules, make_mesh
from ringworld.models.world import World, specs
from ringworld.plan.hlo import Collective, collectives, read_program
from ringworld.settings import MeshShape
from ringworld.train.build import abstract_batch, build
from ringworld.train.loss import loss
from ringworld.train.optimizer import AdamW, make_optimizer

# libtpu asks the machine which chips it has. These answer for a machine that has none.
NO_CHIPS = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5p-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
}
# The program is the same whatever the schedule and the balance of the loss; these are LWM's.
STEPS, VISION_SHARE = 1000, 0.5


@dataclass(frozen=True, kw_only=True)
class Memory:
    """The memory of one chip, in bytes, by what it holds.

    `temporaries` are the most that is held at one time beside the rest. (XLA's own
    `temp_size_in_bytes` counts some buffers of loops twice on a TPU: 63.7 GiB for a step that the
    compiler itself finds room for in 48.6.)
    """

    arguments: int  # the state and the batch
    results: int  # what does not take the place of an argument that is given up
    temporaries: int
    program: int

    @property
    def total(self) -> int:
        """All that a chip must have."""
        return self.arguments + self.results + self.temporaries + self.program


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a compiled program needs and does; `seconds` are those of the processor to compile."""

    memory: Memory
    collectives: tuple[Collective, ...]
    seconds: float

    def of(self, kind: str) -> tuple[Collective, ...]:
        """The collectives of one kind, such as "collective-permute"."""
        return tuple(c for c in self.collectives if c.kind == kind)

    @property
    def permutes(self) -> int:
        """How many places of the program rotate something round a ring."""
        return len(self.of("collective-permute"))

    @property
    def asynchronous(self) -> int:
        """How many of those let the chip go on while they travel."""
        return sum(c.during is not None for c in self.of("collective-permute"))

    @property
    def hidden(self) -> int:
        """How many of those travel behind a matrix product or a kernel."""
        return sum(c.hidden for c in self.of("collective-permute"))

    def bytes(self, kind: str, open_turns: int | None = None) -> int | None:
        """What a chip puts into the collectives of one kind in a step.

        A loop whose turns the program computes, as the ring does, is taken to make `open_turns`;
        None without that.
        """
        total = 0
        for collective in self.of(kind):
            runs = collective.runs(open_turns)
            if runs is None:
                return None
            total += runs * collective.bytes
        return total


def describe_mesh(topology: str, shape: MeshShape) -> Mesh:
    """A mesh over chips that are only described, `v5p:4x4x8` for 128 of them: for compiling.

    Raises InputError without libtpu, for a topology that it does not know, and for a mesh that
    needs more chips than the topology has.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise InputError("libtpu is not installed: pip install 'ringworld[tpu]' to compile for TPU")
    for name, value in NO_CHIPS.items():
        os.environ.setdefault(name, value)
    try:
        chips = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    except jax.errors.JaxRuntimeError as error:
        if "INVALID_ARGUMENT" not in str(error):
            raise
        raise InputError(
            f'libtpu describes no chips by the name "{topology}": write the kind of chip and the '
            "sizes of its torus, as in v5p:2x2x4"
        ) from error
    return make_mesh(**asdict(shape), devices=chips)


def compile_step(
    c: World, mesh: Mesh, options: Mapping[str, str] | None = None, rules: Rules = RULES
) -> tuple[Compiled, float]:
    """The training step compiled for a described mesh, one row to every `data` and `fsdp` place.

    It is the step that training builds. Rows are as long as the context of the model; `rules` say
    over what weights are divided. The second result is the processor's seconds, so that other work
    on the machine does not count. `options` are the compiler's own, such as
    `{"xla_tpu_scoped_vmem_limit_kib": "65536"}`. Raises InputError when a chip's memory is too
    small for the step.
    """
    rows = mesh.shape["data"] * mesh.shape["fsdp"]
    began = time.process_time()
    with jax.set_mesh(mesh):
        optimizer = make_optimizer(AdamW(), STEPS, specs(c))
        learned = partial(loss, c=c, vision_share=VISION_SHARE)
        built = build(specs(c), mesh, optimizer, learned, rules)
        batch = abstract_batch(mesh, rows, c.llama.context)
        lowered = jax.jit(built.step, donate_argnums=0).lower(built.state, batch)
        try:
            compiled = lowered.compile(compiler_options=dict(options or {}))
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise InputError(
                f"the step does not fit ({str(error).splitlines()[0]}): divide it over more chips"
            ) from error
    return compiled, time.process_time() - began


def report(compiled: Compiled, seconds: float) -> Report:
    """What a compiled program needs and does, read from its text and its own account.

    Raises InputError where the platform gives neither.
    """
    account, text = compiled.memory_analysis(), compiled.as_text()
    if account is None or text is None:
        raise InputError("this platform tells nothing of its programs: compile for CPU or TPU")
    arguments = account.argument_size_in_bytes
    results = account.output_size_in_bytes - account.alias_size_in_bytes
    memory = Memory(
        arguments=arguments,
        results=results,
        temporaries=account.peak_memory_in_bytes - arguments - results,
        program=account.generated_code_size_in_bytes,
    )
    found = collectives(read_program(text))
    return Report(memory=memory, collectives=tuple(found), seconds=seconds)
