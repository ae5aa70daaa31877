"""Secondary structure along two proteins: what a linear probe reads off the vectors, and how sure it is.

In: PDB chains with DSSP states. A probe for three states is fitted on the residue vectors of some chains; two chains
that share neither cluster nor SCOP or CATH fold with any of them are shown. Out: strips of DSSP, of the model, and of
its untrained twin, paler where the probe is less sure. Source: papers.md 4.2 (Rives et al., Figure 4, which shows
d1nt4a_ and d3wr7a_).
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from proteinlm.datasets.chains import PdbChain, read_chains
from proteinlm.datasets.secondary_structure import SS3
from proteinlm.errors import InputError
from proteinlm.figures.base import Columns, Figure, Panel, Table
from proteinlm.figures.style import BLUE, GREY, VERMILLION, new_figure
from proteinlm.heads import linear
from proteinlm.tasks.base import Question, Reply, Wanted
from proteinlm.tasks.secondary_structure import ChainBlocks, three_of_eight

TRAINING, QUICK_TRAINING = 200, 60
SHOWN = 2
SHORTEST, LONGEST = 60, 110
"""Residues of the chains that are shown: a strip of so many is legible."""

STATES = {"H": ("helix", VERMILLION), "E": ("strand", BLUE), "C": ("coil", GREY)}
"""Name and colour of each state in `SS3`."""

TRUTH = "DSSP"


def choose(chains: list[PdbChain], training: int, random: np.random.Generator) -> tuple[list[PdbChain], list[PdbChain]]:
    """Chains to fit on and chains to show, unrelated to each other.

    Args:
        chains: representatives of clusters with a class in SCOP or CATH. training: how many to fit on.
        random: of the order in which they are tried.

    Raises:
        InputError: there are too few.
    """
    shown: list[PdbChain] = []
    fitted: list[PdbChain] = []
    taken: set[str] = set()
    for number in random.permutation(len(chains)):
        chain = chains[number]
        keys = set(chain.keys("fold"))
        if len(shown) < SHOWN:
            states = set(three_of_eight(chain.ss8_classes()).tolist())
            if SHORTEST <= len(chain.residues) <= LONGEST and states >= {0, 1, 2} and not keys & taken:
                shown.append(chain)
                taken |= keys
        elif not keys & taken and len(fitted) < training:
            fitted.append(chain)
    if len(shown) < SHOWN or len(fitted) < 2:
        raise InputError(
            f"{len(shown)} chains of {SHORTEST} to {LONGEST} residues with all three states to show and {len(fitted)} "
            f"unrelated ones to fit on; {SHOWN} and some dozens are needed"
        )
    return fitted, shown


class SecondaryStructureStrips(Figure):
    """Strips of predicted states for two chains."""

    name = "secondary-structure"
    title = "Secondary structure by a linear probe"
    source = "Rives et al. 2021, Figure 4"
    sources = ("chains",)

    def questions(self) -> Iterator[Question]:
        """The residue vectors of the chains to fit on, then of those to show."""
        chains = [
            chain
            for chain in read_chains(self.options.data)
            if chain.id == chain.cluster and (chain.cath is not None or chain.scop_sccs is not None)
        ]
        training = QUICK_TRAINING if self.options.quick else TRAINING
        self.fitted, self.shown = choose(chains, training, self.random())
        self.vectors: dict[Panel, dict[int, np.ndarray]] = {}
        for chain in (*self.fitted, *self.shown):
            yield Question(chain.residues, Wanted(kept=True, layer=self.options.layer))

    def collect(self, panel: Panel, number: int, reply: Reply) -> None:
        """Keep the vectors, which lie in a file."""
        assert reply.kept is not None, "kept vectors were wanted"
        self.vectors.setdefault(panel, {})[number] = reply.kept

    def finish(self) -> Table:
        """The state of each residue shown by DSSP, and its probabilities by each panel's probe."""
        columns = Columns("strip", "chain", "position", "residue", "state", "right", *(f"p_{state}" for state in SS3))
        classes = [three_of_eight(chain.ss8_classes()) for chain in (*self.fitted, *self.shown)]
        first = len(self.fitted)
        for shown, chain in enumerate(self.shown):
            for place, state in enumerate(classes[first + shown]):
                letter = SS3[state] if state >= 0 else ""
                truth = [float(letter == one) for one in SS3]
                columns.add(TRUTH, chain.id, place + 1, chain.residues[place], letter, 1, *truth)
        for panel, vectors in self.vectors.items():
            blocks = ChainBlocks([vectors[number] for number in range(first)], classes[:first], range(first))
            probe = linear.fit(blocks, linear.ProbeOptions(len(SS3), seed=self.options.seed))
            for shown, chain in enumerate(self.shown):
                for place, p_K in enumerate(probe.predict_proba(np.asarray(vectors[first + shown]))):
                    best = int(p_K.argmax())
                    right = int(best == classes[first + shown][place])
                    residue = chain.residues[place]
                    columns.add(self.label(panel), chain.id, place + 1, residue, SS3[best], right, *map(float, p_K))
        return columns.table(
            f"the probe was fitted on {first} chains, none of the cluster or fold of a chain shown; the paper's "
            "d1nt4a_ and d3wr7a_ are not among the data"
        )

    def draw(self, table: Table) -> Any:
        """A block of strips for each chain."""
        from matplotlib.patches import Patch

        chains, strips = table.distinct("chain"), table.distinct("strip")
        figure = new_figure(9.5, 1.0 + len(chains) * (0.55 + 0.34 * len(strips)), self.title)
        for axis, chain in zip(figure.subplots(len(chains), 1, squeeze=False)[:, 0], chains, strict=True):
            labels = []
            for row, strip in enumerate(strips):
                part = table.where("chain", chain).where("strip", strip)
                axis.imshow(_colours(part), extent=(0.5, len(part) + 0.5, row + 0.42, row - 0.42), aspect="auto")
                right = part.numbers("right").mean()
                labels.append(strip if strip == TRUTH else f"{strip} (Q3 {right:.2f})")
            axis.set_ylim(len(strips) - 0.5, -0.5)
            axis.set_yticks(range(len(strips)), labels, fontsize=8)
            axis.set_title(f"chain {chain}", fontsize=9, loc="left")
            axis.tick_params(axis="x", labelsize=7)
            axis.spines[:].set_visible(False)
        axis.set_xlabel("residue of the chain", fontsize=8)
        handles = [Patch(color=colour, label=name) for name, colour in STATES.values()]
        handles.append(Patch(facecolor="white", edgecolor="0.6", label="paler: less sure"))
        figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
        return figure


def _colours(part: Table) -> np.ndarray:
    """The colour of each residue's state, as pale as its probability is near a guess among three, (1, L, 3)."""
    from matplotlib.colors import to_rgb

    found = []
    for row, state in enumerate(part.columns["state"]):
        if not state:
            found.append((1.0, 1.0, 1.0))
            continue
        sure = (part.columns[f"p_{state}"][row] - 1 / 3) * 1.5
        colour = np.array(to_rgb(STATES[state][1]))
        found.append(tuple(1 - sure * (1 - colour)))
    return np.array(found)[None]
