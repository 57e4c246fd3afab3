"""The command line: `main` runs a verb and turns whatever ends it into an exit code.

Nothing heavy is imported here, so that Ctrl-C is quiet from the first moment on.
"""

import atexit
import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable
from types import FrameType

DONE, FAILED, BAD_INPUT = 0, 1, 2
OWN_NAME = "ringworld: "  # of sentences about what was wrong
# What a shell reports of a program that a signal ended.
INTERRUPTED, BROKEN_PIPE, TERMINATED = (
    128 + number for number in (signal.SIGINT, signal.SIGPIPE, signal.SIGTERM)
)


def main() -> None:
    """Run the command line and exit.

    The code is 0 (done), 2 (bad usage or input), 130 (stopped by Ctrl-C), 143 (by SIGTERM), 141
    (nobody reads the output any more) or 1 (anything else).
    """
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, _leave_at_once) for number in numbers}
    try:
        code = _run(sys.argv[1:])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    sys.exit(code)


def program() -> None:
    """Run the command line as a process of its own and end the process.

    After a signal the interpreter is not taken apart: a computation that XLA still runs on its
    threads would end that with a segmentation fault, and the exit code would be its signal's. Nor
    is it where one of several processes failed: JAX would wait for all of them first.
    """
    from ringworld.distributed import fail, leave, process_count, wait_for_verdict

    code = FAILED
    try:
        main()
    except SystemExit as end:
        if end.code == DONE and process_count() > 1:
            leave(DONE)
        failed = end.code in (INTERRUPTED, TERMINATED) or process_count() > 1
        if not isinstance(end.code, int) or not failed:
            raise
        code = end.code
    except Exception:
        if process_count() == 1:
            raise
        wait_for_verdict()
        traceback.print_exc()
        fail("stopped by an error that its own output tells", code)
    if process_count() == 1:  # where others have failed, what JAX does at its end may wait for them
        atexit._run_exitfuncs()
    os._exit(_drop_output(code))


def run(words: list[str], announce: Callable[[str], None]) -> None:
    """Do what the words ask for, in this process. Raises InputError as `Command.prepare` does."""
    from ringworld.cli.command import Command

    Command(words).prepare(announce)()


def announce(said: str) -> None:
    """Print a line for the person on standard error, of several processes in the first one only.

    Without standard error nobody is told.
    """
    from ringworld.distributed import is_first

    if is_first():
        _print(said)


def _print(said: str) -> None:
    if sys.stderr is not None:
        print(said, file=sys.stderr, flush=True)


def _run(words: list[str]) -> int:
    """The exit code of the command line. An unforeseen error is raised as it is."""
    from ringworld.cli.command import Command
    from ringworld.errors import InputError

    _guard_streams()
    command = Command(words)
    try:
        work = command.prepare(announce)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, _unwind)
        work()
        if sys.stdout is not None:
            sys.stdout.flush()
    except InputError as error:
        return _tell(f"{OWN_NAME}{command.explain(error)}", BAD_INPUT)
    except KeyboardInterrupt as stop:
        return _tell(str(stop), INTERRUPTED)
    except BrokenPipeError:
        return _drop_output(BROKEN_PIPE)
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # what rich makes of one
            return _drop_output(BROKEN_PIPE)
        if end.code == TERMINATED:
            return _tell("", TERMINATED)
        raise
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO) or error.filename:
            raise
        _drop_output(BAD_INPUT)
        said = f"ringworld: the output could not be written: {error.strerror}"
        return _tell(said, BAD_INPUT)
    return DONE


def _tell(said: str, code: int) -> int:
    """Print what there is to say, as well as can be, and give back the code.

    Where several processes compute together, all end with this code and one of them prints.
    """
    from ringworld.distributed import fail

    try:
        if not fail(said.removeprefix(OWN_NAME), code) and said:
            _print(said)
    except OSError:
        return _drop_output(code)
    return code


def _leave_at_once(number: int, frame: FrameType | None) -> None:
    """End the process while it still imports: nothing has begun, and there is nothing to say."""
    os._exit(128 + number)


def _unwind(number: int, frame: FrameType | None) -> None:
    """End the process at SIGTERM, so that nothing half-written stays."""
    sys.exit(TERMINATED)


def _guard_streams() -> None:
    """Make the standard streams safe to use, whatever they are.

    A closed one becomes the null device, so that no file is opened in its place. What an output's
    encoding has no letter for is written as "?".
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if stream is not None and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def _drop_output(code: int) -> int:
    """Send what is still buffered nowhere, so that the end of the process is quiet."""
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            os.dup2(null, stream.fileno())
    os.close(null)
    return code
