"""The papers' figures, to be set beside ours. They come from other data, other weights and larger sets than are here.

In: the tables as printed. Out: tuples of `Published`, one for each task. `measure` is what our task calls it.
"""

from proteinlm.tasks.base import Published

_RIVES = "Rives et al. 2021, Table"


def _rows(source: str, measure: str, figures: dict[str, float]) -> tuple[Published, ...]:
    return tuple(Published(measure, model, value, source) for model, value in figures.items())


LANGUAGE = _rows(
    f"{_RIVES} 1",
    "ECE, hidden residues",
    {
        "4-gram": 17.18,
        "LSTM S": 14.42,
        "LSTM L": 13.54,
        "T-6": 11.79,
        "T-12": 10.45,
        "T-34 UR100": 10.32,
        "T-34 UR50/S": 8.54,
        "T-34 UR50/D": 8.46,
    },
)

_HOMOLOGY_MODELS = (
    "HHblits",
    "LSTM S",
    "LSTM L",
    "T-6",
    "T-12",
    "T-34 untrained",
    "T-34 UR100",
    "T-34 UR50/D",
    "T-34 UR50/S",
    "ESM-1b",
    "UniRep",
)

_HOMOLOGY = {
    # UniRep is from Table 8, which has this measure only.
    "fold, Hit-10": (0.584, 0.558, 0.574, 0.653, 0.639, 0.481, 0.599, 0.617, 0.639, 0.532, 0.527),
    "superfamily, Hit-10": (0.965, 0.760, 0.813, 0.878, 0.915, 0.527, 0.841, 0.932, 0.931, 0.913),
    "fold, AUC": (0.831, 0.801, 0.805, 0.768, 0.778, 0.755, 0.753, 0.822, 0.825, 0.770),
    "superfamily, AUC": (0.951, 0.863, 0.880, 0.901, 0.942, 0.807, 0.876, 0.932, 0.933, 0.880),
}

HOMOLOGY = tuple(
    line
    for measure, values in _HOMOLOGY.items()
    for line in _rows(f"{_RIVES} 2", f"{measure}, cosine", dict(zip(_HOMOLOGY_MODELS, values, strict=False)))
)

_ZERO_SHOT = "mean over 8 assays: masked-marginals"

VARIANTS = (
    *_rows(
        "mean |rho| over 41 other assays, those of DeepSequence",
        _ZERO_SHOT,
        {"DeepSequence": 0.514, "EVmutation": 0.508, "ESM-1b": 0.459, "ProtBERT-BFD": 0.428, "TAPE": 0.171},
    ),
    *_rows(
        "ProteinGym: mean over 217 other assays",
        _ZERO_SHOT,
        {"ESM-2 8M": 0.226, "ESM-2 35M": 0.321, "ESM-2 150M": 0.387, "ESM-2 650M": 0.414},
    ),
    *_rows(
        "ProteinGym: mean over 217 other assays", "mean over 8 assays: likelihood (200 variants)", {"UniRep": 0.190}
    ),
)
"""No paper tells figures for the very assays that are here, so that these say what is usual, no more."""

_TABLE_3 = {
    "HMM profile": (0.479, 0.478, 0.480),
    "T-6": (0.624, 0.618, 0.618),
    "T-12": (0.655, 0.650, 0.652),
    "T-34 untrained": (0.415, 0.413, 0.413),
    "T-34 UR100": (0.654, 0.649, 0.649),
    "T-34 UR50/S": (0.694, 0.688, 0.689),
    "T-34 UR50/D": (0.695, 0.689, 0.690),
    "ESM-1b": (0.711, 0.705, 0.706),
}

SECONDARY_STRUCTURE_LINEAR = tuple(
    line
    for place, level in enumerate(("family", "superfamily", "fold"))
    for line in _rows(f"{_RIVES} 3", f"Q8, {level}", {model: values[place] for model, values in _TABLE_3.items()})
)

SECONDARY_STRUCTURE_LSTM = (
    *_rows(
        f"{_RIVES} 4",
        "CB513, Q8",
        {
            "HMM profile": 0.712,
            "LSTM S": 0.604,
            "LSTM L": 0.624,
            "T-6": 0.620,
            "T-12": 0.654,
            "T-34 untrained": 0.568,
            "T-34 UR100": 0.643,
            "T-34 UR50/S": 0.691,
            "T-34 UR50/D": 0.692,
            "ESM-1b": 0.716,
        },
    ),
    *_rows(f"{_RIVES} 8", "CB513, Q8", {"UniRep": 0.584, "SeqVec": 0.621, "TAPE": 0.580}),
)

_PROTTRANS = {
    "ProtT5-XL-U50": (0.86, 0.74),
    "ProtT5-XL-BFD": (0.84, 0.71),
    "ProtBert-BFD": (0.83, 0.70),
    "ProtBert": (0.81, 0.66),
    "ProtAlbert": (0.79, 0.65),
    "ProtXLNet": (0.78, 0.63),
    "ProtElectra-Gen": (0.76, 0.61),
    "ProtElectra-Disc": (0.79, 0.65),
    "ProtTXL": (0.74, 0.59),
}

SECONDARY_STRUCTURE_CNN = tuple(
    line
    for place, measure in enumerate(("CB513, Q3", "CB513, Q8"))
    for line in _rows(
        "Elnaggar et al. 2021, secondary structure",
        measure,
        {model: values[place] for model, values in _PROTTRANS.items()},
    )
)

_CONTACTS_TABLE_3 = {
    "HMM profile": (0.148, 0.145, 0.146),
    "CCMpred": (0.327, 0.325, 0.326),
    "T-6": (0.244, 0.194, 0.186),
    "T-12": (0.328, 0.258, 0.252),
    "T-34 untrained": (0.087, 0.084, 0.084),
    "T-34 UR100": (0.283, 0.225, 0.220),
    "T-34 UR50/S": (0.439, 0.364, 0.353),
    "T-34 UR50/D": (0.439, 0.371, 0.363),
    "ESM-1b": (0.492, 0.435, 0.428),
}

_RESNET = "by a deep residual network on RaptorX's test set, for orientation"

CONTACTS_LINEAR = (
    *(
        line
        for place, level in enumerate(("family", "superfamily", "fold"))
        for line in _rows(
            f"{_RIVES} 3", f"P@L, long, {level}", {model: values[place] for model, values in _CONTACTS_TABLE_3.items()}
        )
    ),
    *_rows(
        f"{_RIVES} 5, {_RESNET}",
        "P@L, long, superfamily",
        {
            "LSTM S, deep network": 0.241,
            "LSTM L, deep network": 0.278,
            "T-6, deep network": 0.302,
            "T-12, deep network": 0.377,
            "T-34 untrained, deep network": 0.163,
            "T-34 UR100, deep network": 0.327,
            "T-34 UR50/S, deep network": 0.502,
            "T-34 UR50/D, deep network": 0.500,
            "ESM-1b, deep network": 0.569,
        },
    ),
    *_rows(
        f"{_RIVES} 8, {_RESNET}",
        "P@L, long, superfamily",
        {"UniRep, deep network": 0.219, "SeqVec, deep network": 0.290, "TAPE, deep network": 0.232},
    ),
)
"""Linear projections of UniRep, SeqVec and TAPE were not published."""

CONTACTS_ATTENTION = _rows(
    "README of fair-esm, 14,842 proteins",
    "P@L, long",
    {
        "Gremlin": 0.393,
        "T-6": 0.132,
        "T-12": 0.237,
        "ESM-1": 0.347,
        "ESM-1b": 0.411,
        "TAPE": 0.112,
        "ProtBert-BFD": 0.341,
        "ProtT5-XL-BFD": 0.356,
        "ProtT5-XL-U50": 0.479,
        "ESM-2 8M": 0.159,
        "ESM-2 35M": 0.288,
        "ESM-2 150M": 0.422,
        "ESM-2 650M": 0.501,
        "ESM-2 3B": 0.527,
        "ESM-2 15B": 0.545,
    },
)

_LOCALISATION = {
    "ProtT5-XL-U50": (0.81, 0.91),
    "ProtT5-XL-BFD": (0.77, 0.91),
    "ProtT5-XXL-U50": (0.79, 0.89),
    "ProtT5-XXL-BFD": (0.77, 0.90),
    "ProtBert-BFD": (0.74, 0.89),
    "ProtBert": (0.74, 0.89),
    "ProtAlbert": (0.74, 0.88),
    "ProtXLNet": (0.68, 0.87),
    "ProtElectra-Gen": (0.59, 0.85),
    "ProtElectra-Disc": (0.70, 0.86),
    "ProtTXL": (0.66, 0.85),
    "ProtTXL-BFD": (0.65, 0.86),
    "SeqVec": (0.68, 0.87),
}

LOCALISATION = tuple(
    line
    for place, measure in enumerate(("Q10", "Q2"))
    for line in _rows(
        "Elnaggar et al. 2021, localisation, on DeepLoc's test set",
        f"{measure}, network",
        {model: values[place] for model, values in _LOCALISATION.items()},
    )
)

LOCALISATION_ATTENTION = _rows(
    "Stärk et al. 2021, on DeepLoc's test set", "Q10", {"ProtBert-BFD": 0.80, "ESM-1b": 0.83, "ProtT5-XL-U50": 0.86}
)
