"""Pictures of a layout. Pure.

palette  colours
scene    what is to be seen
shards   the parts of a tensor, and who holds each
bars     what ranks need of a model's memory: an image, a page
matrix   who sends how much to whom: the same
paper    what these are drawn on
cells    a grid of cells, for terminals
text, svg, html, json   write it down
"""
