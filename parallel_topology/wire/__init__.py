"""How does a value travel? No pickle.

structure  a value's tensors taken out of it, to be sent as they are
wire       plain values to bytes and back
"""
