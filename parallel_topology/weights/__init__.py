"""Who holds what? Pure.

checks  will a model divide over a topology, and what would do
"""
