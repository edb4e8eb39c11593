"""Who still reads globals, and what do they ask? Tables of functions of others, and a tree parsed; nothing is imported.

rows        the words of the tables
megatron    Megatron-core's functions
vllm        vLLM's
sglang      SGLang's
deepspeed   DeepSpeed's
systems     which tables there are
tree        where a tree of files asks them, and what to write instead
scopes      what a name stands for where it is used
"""
