"""The learning curve of a run, drawn from its tables alone.

In: `training.csv` and `validation.csv` of a run's folder. Out: `learning_curve.png`.
"""

from pathlib import Path

from proteinlm.errors import InputError
from proteinlm.training.records import read_table

CURVE = "learning_curve.png"


def draw(folder: Path) -> Path:
    """Draw training loss and the first score of the validation (the ECE, say) against tokens seen.

    Args:
        folder: of a run.

    Returns:
        the picture's path.

    Raises:
        InputError: nothing was logged yet, or matplotlib is missing.
    """
    training, validation = read_table(folder / "training.csv"), read_table(folder / "validation.csv")
    if not training and not validation:
        raise InputError(f"{str(folder)!r} has no logged step yet; train for run.log_every steps at least")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError("drawing needs matplotlib; install it with: pip install 'proteinlm[plot]'") from error
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    tokens = [float(row["tokens"]) / 1e6 for row in training]
    axes.plot(tokens, [float(row["loss"]) for row in training], color="0.7", linewidth=0.8, label="training loss")
    axes.set_xlabel("tokens seen (millions)")
    axes.set_ylabel("loss of the step (nats)")
    if validation:
        beside = axes.twinx()
        tokens = [float(row["tokens"]) / 1e6 for row in validation]
        score = list(validation[0])[2]
        shown = "ECE" if score == "ece" else score
        low, middle, high = ([float(row[name]) for row in validation] for name in ("low", score, "high"))
        beside.fill_between(tokens, low, high, color="tab:blue", alpha=0.2, linewidth=0)
        beside.plot(tokens, middle, color="tab:blue", label=f"held-out {shown}, 95 % interval")
        beside.set_ylabel(
            "ECE over hidden residues" if score == "ece" else f"{shown}: exp of the mean loss of a target"
        )
        beside.legend(loc="upper right", frameon=False)
    axes.legend(loc="lower left", frameon=False)
    figure.savefig(folder / CURVE, dpi=150)
    return folder / CURVE
