"""Who carries a call out? The seam below the collectives, and what stands behind it.

communicator        the seam: what a communicator has to offer
reductions          what members' tensors are reduced by
group_options       the options of one group
forked              what a forked child must never touch
connections         gloo's sockets, to be ended whoever still holds the groups
contacts            how a gloo group's members come to connections when they first use each other
late                gloo groups within a host, made when one of the members first needs them
doorkeeper          does what others need of this member, wherever its program is
waiting             for gloo's work, so that Ctrl-C is obeyed
links               what one set of ranks communicates over, shared by the groups that have these ranks
refusal             what is wrong, to be said under the name of the group that was called
piece               memory of a message's first piece
channel             one way between two members, and how far it has come
flight              a message under way, with the memory that it needs
at_once             messages that are waited for at once
channels            all messages between members, each announced by a header
membership          what a communicator is told of the group that it is made for
torch_communicator  torch's process groups, the end of every chain
shared_memory       small collectives within a host
attendance          who of a group's members is there, and waiting for one
mail                small messages between two members, through memory
parcels             what is too large for these, left in memory until it is taken
two_levels          small collectives across hosts: through memory inside each, over gloo between them
rounds              a group's calls in one order, through memory that its members share
host_memory         that memory, which has no name
futex               sleeping on a word of it until another process has changed it
presence            whether a process lives
nccl                NCCL through nccl4py
turns               calls made in one order, by a thread of their own
descriptions        calls in words, and who differs
announcement        a message to all, whose length only its source knows
checked             a communicator that lets the members compare a call before another one makes it
factories           which factory a communicator's name stands for
handle              a collective under way
compiled            collectives as custom ops, for torch.compile
"""

from parallel_topology.installed import imported

imported("torch", __name__)
