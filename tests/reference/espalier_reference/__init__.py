"""An independent implementation of Espalier's formulas in NumPy, in double precision.

It is written from the papers, reads the program's own checkpoints and outputs, and says what every number in them
should be. Nothing here is shared with the C code but the file formats (checkpoints/FORMAT.md).
"""
