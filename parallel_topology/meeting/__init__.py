"""Are we all here, and do we agree? From a store to process groups that every rank has built alike.

deadline    one instant for all that waits, and how a caller overtakes what cannot be interrupted
control     one manager's own way to the store, every use of which ends
options     what a manager is told, and finds out about its process
token       a secret that all ranks hold, and how each proves that it has it
addresses   where stores listen, and which addresses gloo's connections are on
rendezvous  opening the store that an address or a launcher names
hosted      a store that this process runs for a manager
cards       what a rank shows of itself before anything is created
places      where in the store each rank's card stands
verdict     what the first rank says when all have answered, and why each believes it
remains     what a meeting leaves in the store, and who takes it away
agreement   cards compared before anything is created
opening     what a rank builds by itself when it is called
greeting    neighbours tell each other who they are, which verifies new groups
completion  ranks count themselves when they have built their groups
operations  which change is under way on a manager, and what came of those before
succession  what follows on a manager, decided for all its ranks, and for one successor at most
lobby       where those wait who are to join one, until they are called to a place
witness     who was where, when an operation failed
vigil       what a rank says of an operation shortly before its time is up
creation    the process groups of a manager, and their end
"""

from parallel_topology.installed import imported

imported("torch", __name__)
