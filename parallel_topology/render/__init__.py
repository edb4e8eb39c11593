"""Pictures of a layout. Pure.

palette  colours
scene    what is to be seen
cells    a grid of cells, for terminals
text, svg, html, json   write it down
"""
