"""Sequences: from a file of residues to the packed batch that a model reads.

Three steps, one module each, in the order in which data flows. `fasta` streams records from a file and refuses, one
by one and with the reason, those that cannot be used. `alphabet` holds the token tables of the published models and
turns a residue string into token ids. `batch` lays several encoded sequences end to end, without padding. A residue
keeps its letter, its order and its record's id through all three.
"""
