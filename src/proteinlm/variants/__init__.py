"""What a language model thinks of substitutions: scores of variants from log probabilities of residues.

`changes` holds the variants of a wild type as arrays. `scoring` says which runs of a model each method needs, and makes
scores of what came back; it never calls a model, so that tasks and the command line share it. `run` calls the model.
`files` reads lists of variants and writes tables, `heatmap` draws, and `job` is what `plm variants` does.

Higher scores are better throughout: more probable than the wild type is above 0, in nats.
"""
