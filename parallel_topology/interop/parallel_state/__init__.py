"""Code that reads parallel_state's globals, served by a manager: `with serving(groups, "megatron"): model(x)`.

served      the block
answers     what a function asks, answered by one manager
coordinator a group as the GroupCoordinator of vLLM and SGLang
required    whether `initialize_*` asks for the manager's topology; who is in a group
buffers     memory by name, for each manager
blocks      which block is open here: contexts, generators, autograd's threads
swaps       functions whose code is another one while a block is open

What each function asks stands in the tables of `parallel_topology.reads`.
"""

from parallel_topology.interop.parallel_state.served import serving

__all__ = ["serving"]
