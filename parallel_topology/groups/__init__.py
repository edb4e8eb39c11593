"""The bound half: real process groups for one rank of a topology."""
