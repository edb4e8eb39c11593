"""How does a value travel? No pickle.

frames     what stands before every message between members
weight     how much memory a message may ask for
classes    classes that a receiver may allow
arrays     NumPy's arrays and scalars
structure  a value's tensors taken out of it, to be sent as they are
wire       plain values to bytes and back
"""
