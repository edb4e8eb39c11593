"""Hand a manager's groups to other people's code, creating no process groups: a module for each of these.

device_mesh          torch's DeviceMesh, and with it FSDP2, DTensor, tensor parallelism, Transformers, Accelerate
modules              how a live module keeps its weights, by its parameters
megatron             Megatron-core's ProcessGroupCollection
deepspeed            the `mpu` of `deepspeed.initialize`
transformer_engine   what `set_context_parallel_group` takes

Nothing of theirs is imported before it is needed; what takes a group itself (DDP, PipelineStage) needs no adapter.
See docs/interop.md.
"""

from parallel_topology.installed import imported

imported("torch", __name__)
