"""What can a group do? Groups bound to connections, and the manager that holds one engine's.

bound        what stands between a group's collectives and its communicators: checks, waiting, errors
collectives, p2p, objects, transfer, capture   a group's calls, by kind
group        ParallelGroup: all of them
joining      what the ranks of one manager compare, and the groups they then create
manager      GroupManager
"""
