"""`python -m parallel_topology`, and the console script."""

import sys


def main() -> None:
    """Run the command line; without its extra, say what to install."""
    try:
        from parallel_topology.cli import app

        app(prog_name="parallel-topology")  # however it is started: completion makes a variable of it
    except ModuleNotFoundError as error:
        if error.name not in ("rich", "typer"):
            raise
        sys.exit(f"the command line needs {error.name}: pip install 'parallel-topology[cli]'")


if __name__ == "__main__":
    main()
