"""Embedding: from a FASTA file to a file of vectors, with nothing lost on the way.

The file is scanned once and cut into blocks (`plan`); block and FASTA determine each other, so that a run can be
killed, sharded or spread over processes without changing what is computed. A block is read, run through
`inference.forward_all` and pooled (`pooling`), and its vectors and refusals are kept in one part file of the work
folder `OUT.parts` (`parts`). When every block is there, completeness is proven and the parts are written, in the order
of the input, to the file that was asked for (`merge`, `formats`). `run` goes through these steps; `workers` does so in
several processes. Ids travel with their vectors at every step; no step pairs two lists by position.
"""
