"""A toy language over residues, with the exact answer to every question that a masked language model can be asked.

A sequence is drawn letter by letter by an automaton of eight states: A C|D E, F I, F G H I, K L M, K L L M, K L L L M,
and so on, one word after the other (a regular language). What stands at a hidden place is only known with some
probability, which the forward-backward algorithm gives exactly; no model can do better.
"""

import numpy as np

from proteinlm.sequences.alphabet import STANDARD

# state: (probability, letter, next state) of every way out of it; 0 is the beginning of a word.
AUTOMATON: dict[int, list[tuple[float, str, int]]] = {
    0: [(0.5, "A", 1), (0.3, "F", 3), (0.2, "K", 5)],
    1: [(0.7, "C", 2), (0.3, "D", 2)],
    2: [(1.0, "E", 0)],
    3: [(0.4, "G", 4), (0.6, "I", 0)],
    4: [(1.0, "H", 7)],
    5: [(1.0, "L", 6)],
    6: [(0.5, "L", 6), (0.5, "M", 0)],
    7: [(1.0, "I", 0)],
}
STATES, LETTERS = len(AUTOMATON), len(STANDARD)

STEP = np.zeros((LETTERS, STATES, STATES))
"""Probability of writing a letter while going from one state to another."""
for _state, _ways in AUTOMATON.items():
    for _probability, _letter, _next in _ways:
        STEP[STANDARD.index(_letter), _state, _next] += _probability


def sample(length: int, random: np.random.Generator) -> str:
    """A sequence that begins with a word and breaks off anywhere."""
    state, letters = 0, []
    for _ in range(length):
        ways = AUTOMATON[state]
        _, letter, state = ways[random.choice(len(ways), p=[way[0] for way in ways])]
        letters.append(letter)
    return "".join(letters)


def posterior(evidence_LV: np.ndarray) -> np.ndarray:
    """Distribution of the letter at each place.

    Args:
        evidence_LV: probability of what is seen at each place, given each of the twenty letters there; shape (L, 20).

    Returns:
        probabilities given all that is seen at the other places, shape (L, 20).
    """
    length = len(evidence_LV)
    step_LSS = np.einsum("lv,vij->lij", evidence_LV, STEP)
    forward, backward = np.zeros((length + 1, STATES)), np.ones((length + 1, STATES))
    forward[0, 0] = 1.0
    for place in range(length):
        forward[place + 1] = forward[place] @ step_LSS[place]
        forward[place + 1] /= forward[place + 1].sum()
    for place in reversed(range(length)):
        backward[place] = step_LSS[place] @ backward[place + 1]
        backward[place] /= backward[place].sum()
    both = np.einsum("li,vij,lj->lv", forward[:-1], STEP, backward[1:])
    both /= both.sum(1, keepdims=True)
    return both
