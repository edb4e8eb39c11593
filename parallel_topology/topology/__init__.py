"""Who is who? The ranks of a job, divided over named axes, as values: no torch, no devices, no I/O.

whole       whole numbers as people give them
kinds       values of our own kinds, where something else was given
modes       sizes and strides: arithmetic on ints
layout      Ranks, Groups, Layout: made of modes, nothing enumerated until iterated
frozen      a dict that cannot be changed
notation    "tp2-pp4", "tp2-pp2@8", "tp2-dp4/expert:etp1-ep8": one small grammar, parsed and printed
orders      orders by the names of the systems they come from, each with its source
wording     how messages write sizes, names and ranks
validation  what makes a topology: every check, and the canonical form
views       further factorizations, as compositions of the base's modes
shares      stage layers, shards of a dim, batch shares: what every engine writes by hand
rank_view   RankView, RankGroup: what one rank sees
plan        every group a manager will create, in order, and what that costs
diff        what moves between two topologies
schema      how configurations write a topology
topology    ParallelTopology, which hands all of this out
"""
