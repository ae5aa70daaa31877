"""The table: speeds, ratios, memory, the floor, start-up, and whether each required ratio is met.

In: the dictionary that `embed.measure_size` fills and that the JSON files hold. Out: text, and verdicts.
"""

from typing import Any

from subjects import BEST_TRANSFORMERS, BF16_COSINE, COMPILED, FP32_COSINE, OURS, OURS_FP32, REFERENCE, SUBJECTS

COLUMNS = ("as run", "tuned")
REQUIRED_AS_RUN = {"35m": 8.0}
REQUIRED_TUNED = {"8m": 5.0, "150m": 7.0}
REQUIRED_TRANSFORMERS = 1.8
REQUIRED_FP32 = 2.5
WANTED = 10.0
"""Not required: both tuned, by whatever attention there is."""
NOISE = 0.1
"""Cores used by others above which a timing is called disturbed."""


def best(result: dict[str, Any], subject: str, column: str) -> float | None:
    """Seconds of a contestant's best pass; ours are the same in both columns."""
    columns = result["subjects"].get(subject, {}).get("columns", {})
    one = columns.get("as run" if SUBJECTS[subject].ours else column)
    return min(one["pass_seconds"]) if one else None


def faster(result: dict[str, Any], ours: str, subject: str, column: str) -> float | None:
    """How many times longer `subject` takes than `ours`, for the same proteins."""
    mine, theirs = best(result, ours, column), best(result, subject, column)
    return theirs / mine if mine and theirs else None


def verdicts(size: str, result: dict[str, Any]) -> list[dict[str, Any]]:
    """Every requirement that this size has figures for: text, value, limit, whether it is met."""
    found: list[dict[str, Any]] = []

    def judge(text: str, value: float | None, limit: float, required: bool = True) -> None:
        if value is not None:
            found.append({"text": text, "value": value, "limit": limit, "met": value >= limit, "required": required})

    if size in REQUIRED_AS_RUN:
        judge("bf16 against fair-esm as run", faster(result, OURS, REFERENCE, "as run"), REQUIRED_AS_RUN[size])
    if size in REQUIRED_TUNED:
        judge("bf16 against fair-esm, both tuned", faster(result, OURS, REFERENCE, "tuned"), REQUIRED_TUNED[size])
    rivals = [faster(result, OURS, name, column) for name in BEST_TRANSFORMERS for column in COLUMNS]
    known = [ratio for ratio in rivals if ratio is not None]
    judge("bf16 against the best transformers", min(known, default=None), REQUIRED_TRANSFORMERS)
    judge("fp32 against fair-esm, both tuned", faster(result, OURS_FP32, REFERENCE, "tuned"), REQUIRED_FP32)
    for name, limit in ((OURS_FP32, FP32_COSINE), (OURS, BF16_COSINE), (COMPILED, BF16_COSINE)):
        agreement = result["subjects"].get(name, {}).get("agreement")
        if agreement and not agreement["is_reference"]:
            judge(f"least cosine of {SUBJECTS[name].title}", agreement["least_cosine"], limit)
    judge("compiled attention, both tuned", faster(result, COMPILED, REFERENCE, "tuned"), WANTED, required=False)
    return found


def _cells(values: list[float | None], form: str) -> str:
    return "".join(f"{'-' if value is None else format(value, form):>9}" for value in values)


def _row(name: str, entry: dict[str, Any], result: dict[str, Any]) -> str:
    title = SUBJECTS[name].title
    if "unavailable" in entry:
        return f"  {title:<36} not measured: {entry['unavailable']}"
    seconds = [best(result, name, column) for column in COLUMNS]
    speeds = [result["residues"] / s if s else None for s in seconds]
    ratios = [faster(result, OURS, name, column) for column in COLUMNS]
    columns = entry["columns"]
    peaks = [columns[c]["peak_mib"] if c in columns else None for c in COLUMNS]
    if SUBJECTS[name].ours:
        peaks[1] = peaks[0]
    agreement = entry["agreement"]
    cosine = "reference" if agreement["is_reference"] else f"{agreement['least_cosine']:.7f}"
    mark = "" if agreement["equal"] else " !"
    return f"  {title:<36}{_cells(speeds, ',.0f')}{_cells(ratios, '.2f')}{_cells(peaks, ',.0f')}  {cosine:>9}{mark}"


def size_lines(size: str, result: dict[str, Any]) -> list[str]:
    """The block of one size."""
    lengths = f"{result['residues']:,} residues, median {result['median']}, {result['shortest']}-{result['longest']}"
    lines = [
        f"ESM-2 {size}: {result['shape']}, random weights. {result['proteins']} proteins, {lengths}; best of "
        f"{result['passes']} passes on {result['threads']} threads.",
        f"  {'':<36}{'residues/s':>18}{'bf16 is faster':>18}{'peak MiB':>18}  least cosine",
        f"  {'':<36}" + 3 * "".join(f"{column:>9}" for column in COLUMNS) + "  to fp32",
    ]
    lines += [_row(name, result["subjects"][name], result) for name in SUBJECTS if name in result["subjects"]]
    if any(not entry["agreement"]["equal"] for entry in result["subjects"].values() if "agreement" in entry):
        lines.append(f"  ! not equal: bf16 and int8 are to keep a cosine above {BF16_COSINE}")
    disturbed = [
        SUBJECTS[name].title
        for name, entry in result["subjects"].items()
        for column in entry.get("columns", {}).values()
        if column["cores_of_others_in_best"] > NOISE
    ]
    if disturbed:
        lines.append(f"  disturbed by other programs even in its best pass: {'; '.join(dict.fromkeys(disturbed))}")
    return [*lines, *_floor_lines(result), *_verdict_lines(size, result)]


def _floor_lines(result: dict[str, Any]) -> list[str]:
    """The least work, what the machine could do at most, and how near we come."""
    floor, rate, residues = result["floor"], result["rates"], result["residues"]
    products = floor["flops"] / rate["bf16_flops_per_second"]
    exponentials = floor["exponentials"] / rate["exponentials_per_second"]
    copies = floor["bytes"] / rate["bytes_per_second"]
    lines = [
        f"  floor per residue: {floor['flops'] / residues / 1e6:.1f} MFLOP (attention included), "
        f"{floor['exponentials'] / residues:,.0f} exponentials, {floor['bytes'] / residues:,.0f} bytes",
        f"  at measured rates ({rate['bf16_flops_per_second'] / 1e9:,.0f} GFLOP/s bf16, "
        f"{rate['exponentials_per_second'] / 1e9:.2f} G exponentials/s, {rate['bytes_per_second'] / 1e9:.0f} GB/s): "
        f"{products / residues * 1e6:.2f} + {exponentials / residues * 1e6:.2f} + {copies / residues * 1e6:.2f} us",
    ]
    for name in (OURS, COMPILED):
        seconds = best(result, name, "as run")
        if seconds:
            lines.append(
                f"  {SUBJECTS[name].title}: {seconds / residues * 1e6:.2f} us per residue, "
                f"{products / seconds:.0%} of the bf16 GEMM rate, "
                f"{(products + exponentials) / seconds:.0%} with the exponentials counted"
            )
    seconds = best(result, OURS_FP32, "as run")
    if seconds:
        share = floor["flops"] / rate["fp32_flops_per_second"] / seconds
        lines.append(
            f"  {SUBJECTS[OURS_FP32].title}: {share:.0%} of the fp32 GEMM rate "
            f"({rate['fp32_flops_per_second'] / 1e9:,.0f} GFLOP/s)"
        )
    return lines


def _verdict_lines(size: str, result: dict[str, Any]) -> list[str]:
    lines = []
    for one in verdicts(size, result):
        word = ("PASS" if one["met"] else "MISS") if one["required"] else ("reached" if one["met"] else "not reached")
        exact = one["limit"] < 1
        value, limit = (
            (f"{one['value']:.7f}", f"> {one['limit']}")
            if exact
            else (
                f"{one['value']:.2f}x",
                f">= {one['limit']}x",
            )
        )
        lines.append(f"  {word:<5} {one['text']}: {value} ({'required' if one['required'] else 'wanted'} {limit})")
    return lines


def startup_lines(size: str, found: dict[str, Any]) -> list[str]:
    """The block of the start-up."""
    lines = [f"Start-up, fresh processes, best of several (weights: ESM-2 {size})"]
    if "plm_missing" in found:
        lines.append(f"  plm: not measured: {found['plm_missing']}")
    else:
        word = "MISS: it imports torch" if found["help_imports_torch"] else "PASS: torch is not imported"
        lines.append(f"  {'plm --help':<46}{found['help_seconds']:>7.2f} s   {word}")
        lines.append(f"  {'plm embed, ten proteins, from start to file':<46}{found['plm_ten_seconds']:>7.2f} s")
    if "fair_esm_missing" in found:
        lines.append(f"  fair-esm: not measured: {found['fair_esm_missing']}")
    else:
        lines.append(f"  {'fair-esm, load and the same ten, to files':<46}{found['fair_esm_ten_seconds']:>7.2f} s")
    return lines
