"""N-gram counts in the interface of every other model: logits of each residue from its context, and nothing else.

In: packed batches of the alphabet `COUNTED`, whose token ids are the codes of `models.ngram`. Out: logits that are
log probabilities over the 25 residues. What is said of a token never depends on what stands there, and no mask is
needed; contexts are true residues. There are no hidden states.
"""

import numpy as np
import torch
from jaxtyping import Float

from proteinlm.errors import InputError
from proteinlm.models.base import Output, ProteinModel, Want
from proteinlm.models.ngram import LETTERS, NGram
from proteinlm.sequences.alphabet import Alphabet
from proteinlm.sequences.batch import PackedBatch

COUNTED = Alphabet(name="n-gram", tokens=("<boundary>", *LETTERS), pad=0, mask=None, substitutes=(("J", "X"),))
"""The boundary and the 25 residues; the id of a token is its code in the keys of `NGram`."""


class NGramModel(ProteinModel):
    """An n-gram as a `ProteinModel`.

    Args:
        counts: of every residue in every context.

    >>> from proteinlm.models.ngram import NGramConfig
    >>> counts = NGram.fit([np.frombuffer(b"AAAC", dtype=np.uint8)], NGramConfig(left=1, alpha=1.0))
    >>> batch = PackedBatch.pack([COUNTED.encode("AC")])
    >>> logits = NGramModel(counts)(batch, Want(logits=True)).logits_TV
    >>> round(logits[1, COUNTED.residue_ids("C")[0]].exp().item() * (3 + 25), 6)
    2.0
    """

    alphabet = COUNTED
    num_layers = 0
    width = 0
    max_residues = None
    precisions: tuple[torch.dtype, ...] = (torch.float32,)

    def __init__(self, counts: NGram) -> None:
        super().__init__()
        self.counts = counts

    def forward(self, batch: PackedBatch, want: Want) -> Output:
        """Look contexts up; see `ProteinModel.forward`.

        Raises:
            InputError: anything but logits is wanted.
        """
        self.check(want)
        if want.layers:
            raise InputError("n-gram counts have no hidden states; ask them for logits only")
        if not want.logits:
            return Output()
        letters = np.frombuffer(LETTERS.encode(), np.uint8)
        tokens_T = batch.tokens_T.cpu().numpy()
        proteins = [letters[tokens_T[batch.tokens(b)] - 1] for b in range(len(batch))]
        logits_TV = torch.from_numpy(self.log_probabilities(proteins)).to(batch.tokens_T.device)
        return Output(logits_TV=self.wanted(logits_TV, want))

    def log_probabilities(self, proteins: list[np.ndarray]) -> Float[np.ndarray, "T 26"]:
        """Natural log of P(residue | context) at each place of some proteins end to end, by tokens of `COUNTED`.

        Args:
            proteins: letters, uint8, shape (L,) each.
        """
        joint_TV, context_T = self.counts.all_residues(proteins)
        alpha = self.counts.config.alpha
        found = np.full((len(context_T), len(COUNTED)), -np.inf, np.float32)
        found[:, 1:] = np.log(joint_TV + alpha) - np.log(context_T + alpha * len(LETTERS))[:, None]
        return found
