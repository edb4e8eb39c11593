"""Who is where? Which ranks are on which host, what crosses hosts, and the orders that avoid it. Pure.

bounds        checks and canonical form of where hosts begin
spans         how groups lie on hosts
hosts         Hosts
crossings     how many messages cross, by who sends to whom in a group
reorder       orders of the axes that keep chosen groups inside hosts
device_links  how the devices of a host are joined, and the links that groups have
traffic       orders ranked by how many hosts their groups span, the heaviest axis first
"""
