"""`python -m parallel_topology`, and the console script."""

import signal
import sys

from parallel_topology.errors import MissingExtraError

_TALKING = ("selftest", "demo")
"""Commands with sockets, whose broken pipes are errors of the call and not the end of the program."""


def main() -> None:
    """Run the command line; without its extra, say what to install."""
    if sys.argv[1:2] and sys.argv[1] not in _TALKING:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends every command alike, as it ends `cat`
    try:
        from parallel_topology.cli import app

        app(prog_name="parallel-topology")  # however it is started: completion makes a variable of it
    except MissingExtraError as error:
        sys.exit(str(error))
    except ModuleNotFoundError as error:
        if error.name not in ("rich", "typer"):
            raise
        sys.exit(f"the command line needs {error.name}: pip install 'parallel-topology[cli]'")


if __name__ == "__main__":
    main()
