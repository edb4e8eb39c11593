"""Are we all here, and do we agree? From a store to process groups that every rank has built alike.

options     what a manager is told, and finds out about its process
rendezvous  where ranks meet: stores, and the network gloo uses
starts      which keys of a store that outlives its ranks are the present ones'
agreement   cards compared before anything is created
witness     who was where, when an operation failed
creation    process groups over a store or out of the default group, their verification and end
"""
