"""Pictures of a layout. Pure.

palette  colours
scene    what is to be seen
shards   the parts of a tensor, and who holds each
cells    a grid of cells, for terminals
text, svg, html, json   write it down
"""
