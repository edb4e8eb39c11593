"""`parallel-topology ARGUMENTS` with a planted fault, whose name is the first argument: started by torchrun."""

import sys
from functools import partial

from parallel_topology.cli import app
from parallel_topology.selftest import worlds
from tests.selftest import faults

if __name__ == "__main__":
    worlds.launched = partial(worlds.launched, manager=getattr(faults, sys.argv.pop(1)))
    app()
