"""What can a group do? Groups bound to connections, and the manager that holds one engine's.

tensors      the gate: which tensors are their bytes, and the others made right or refused
bound        what stands between a group's collectives and its communicators: waiting, and errors
prepared     what is asked of tensors, and where results go
packed       several tensors as the columns of one
collectives, lists, p2p, objects, transfer, capture   a group's calls, by kind
group        ParallelGroup: all of them
declared     a view whose groups were made when it was
life         what state a manager is in, for all threads, and in forked children
joining      what the ranks of one manager compare, and the groups they then create
holdings     a manager's way to the store, what it met the others by, its groups; and their end
elastic      how a manager is followed by one of another topology, on all ranks or on none
standby      a manager that is built while another serves, and then takes its place
newcomer     how a process joins one with nothing but its name and a store
manager      GroupManager
"""

from parallel_topology.installed import imported

imported("torch", __name__)
