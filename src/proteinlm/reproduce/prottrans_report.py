"""The table of ProtTrans' architectures as Markdown, from its JSON alone.

In: the results that `prottrans` has put together. Out: text: the costs and losses, Q3 and Q10 beside the paper's, and
which of the paper's orderings hold.
"""

from typing import Any

from proteinlm.metrics import Interval
from proteinlm.reproduce.probes import MEASURES

VERDICTS = {"holds": "hold", "reversed": "are reversed", "not resolved": "are not resolved"}
"""Of one ordering -> of many."""


def markdown(results: dict[str, Any]) -> str:
    """The table, for people."""
    return "\n".join([*_introduction(results), *_costs(results), *_scores(results), *_orderings(results)]) + "\n"


def _interval(values: dict[str, Any]) -> Interval:
    return Interval(values["value"], values["low"], values["high"], values["groups"])


def _short(values: dict[str, Any]) -> str:
    return f"{values['value']:.1f} ({values['low']:.1f} to {values['high']:.1f})"


def _tokens(results: dict[str, Any]) -> str:
    """How many were seen; batches are whole proteins, and alphabets differ in what stands around them."""
    least, most = (of(row["tokens"] for row in results["rows"]) for of in (min, max))
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def _introduction(results: dict[str, Any]) -> list[str]:
    job, labelled = results["job"], results["labelled"]
    return [
        f"# ProtTrans' architectures at scale `{job['scale']}`",
        "",
        f"Every model saw {_tokens(results)} tokens of one corpus, in the same order of proteins, with one optimiser "
        f"and schedule (AdamW, cosine); seed {job['seed']}. Q3: a linear probe on the last layer, trained on "
        f"{labelled['chains']:,} chains of NetSurfP-2.0, tested on {labelled['test_chains']} of CB513. Q10: a linear "
        f"probe on mean vectors, trained on {labelled['proteins']:,} proteins of DeepLoc, tested on "
        f"{labelled['test_proteins']:,} of its validation part. Intervals are 95 %, over chains or proteins; they do "
        "not hold the spread of training seeds. The paper's models are far larger, saw far more, and were judged by "
        "small networks instead of linear probes: its levels are not to be reached here, its orderings can be asked "
        "for.",
        "",
    ]


def _costs(results: dict[str, Any]) -> list[str]:
    lines = [
        "## Cost, and loss on held-out proteins",
        "",
        "Losses of different kinds do not compare; those that begin with ECE are of the same hidden residues. Memory "
        "is the most that the training process held, in parentheses what of it Python and its libraries held before "
        "the first step; it and the speed are of the first 20 steps of each model, one model after the other. Both "
        "parts of ELECTRA are trained together: their speed and memory are those of the pair. "
        "T5's parameters include the decoder, which its vectors do not pass through.",
        "",
        "| model | parameters | tokens/s | memory, MB | loss | of what |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in results["rows"]:
        memory = f"{row['memory']['peak'] / 1e6:,.0f} ({row['memory']['before'] / 1e6:,.0f})"
        lines.append(
            f"| {row['row']} | {row['parameters']:,} | {row['tokens_per_second']:,.0f} | {memory} | "
            f"{_interval(row['loss'])} | {row['loss']['of']} |"
        )
    return [*lines, ""]


def _scores(results: dict[str, Any]) -> list[str]:
    lines = [
        "## Q3 and Q10, percent",
        "",
        "| model | Q3 | untrained | paper | Q10 | untrained | paper | the paper's model |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in results["rows"]:
        paper, cells = row["paper"], []
        for measure in MEASURES:
            published = f"{paper[measure]:.0f}" if paper else ""
            cells += [_short(row[measure]), _short(row["untrained"][measure]), published]
        lines.append(f"| {row['row']} | {' | '.join(cells)} | {paper['model'] if paper else ''} |")
    one = results["baseline"]
    lines.append(f"| {one['row']} | {_short(one['Q3'])} | | | {_short(one['Q10'])} | | | |")
    return [*lines, ""]


def _orderings(results: dict[str, Any]) -> list[str]:
    lines = [
        "## The paper's orderings",
        "",
        "Differences in percent, by a paired bootstrap: each resample draws the same chains or proteins for both "
        "models. An ordering holds, or is reversed, where the interval leaves 0 out; of twenty pairs that do not "
        "differ at all, one would be expected to. The last column has the same of the untrained networks: what holds "
        "there too was not learnt.",
        "",
    ]
    for measure in MEASURES:
        ours = [one for one in results["orderings"] if one["measure"] == measure]
        verdicts = [one["verdict"] for one in ours]
        counted = ", ".join(f"{verdicts.count(one)} {of_many}" for one, of_many in VERDICTS.items())
        lines.append(f"- {measure}: of {len(ours)} pairs that the paper has apart, {counted}.")
    for other in ("untrained", results["baseline"]["row"]):
        for measure in MEASURES:
            ours = [one for one in results["learnt"] if (one["measure"], one["worse"]) == (measure, other)]
            above = [one["better"] for one in ours if one["verdict"] == "holds"]
            below = [one["better"] for one in ours if one["verdict"] == "reversed"]
            what = "its untrained network" if other == "untrained" else other
            lines.append(
                f"- {measure}, trained above {what}: {', '.join(above) or 'none'}"
                + (f"; below it: {', '.join(below)}" if below else "")
                + "."
            )
    lines += [
        "",
        "| | the paper's ordering | in the paper | here | | untrained |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for one in results["orderings"]:
        lines.append(
            f"| {one['measure']} | {one['better']} above {one['worse']} | {one['paper']:+.0f} | {_short(one)} | "
            f"{one['verdict']} | {_short(one['untrained'])}, {one['untrained']['verdict']} |"
        )
    return lines
