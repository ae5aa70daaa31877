"""The table: speeds, ratios, memory, the floor, start-up, and whether each required ratio is met.

In: the dictionary that `embed.measure_size` fills and that the JSON files hold. Out: text, and verdicts.
"""

from typing import Any

from subjects import (
    BEST_TRANSFORMERS,
    BF16_COSINE,
    COMPILED,
    COMPILED_FP32,
    FP32_COSINE,
    OURS,
    OURS_FP32,
    REFERENCE,
    SUBJECTS,
)

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


def products_seconds(result: dict[str, Any], precision: str) -> float:
    """What the matrix products of a pass take at the rate measured for that precision."""
    seconds: float = result["floor"]["flops"] / result["rates"][f"{precision}_flops_per_second"]
    return seconds


def exponentials_seconds(result: dict[str, Any]) -> float:
    """The same of the softmax's exponentials."""
    seconds: float = result["floor"]["exponentials"] / result["rates"]["exponentials_per_second"]
    return seconds


def verdicts(size: str, result: dict[str, Any]) -> list[dict[str, Any]]:
    """Every requirement that this size has figures for: text, value, limit, whether it is met.

    A ratio comes with the most that it could be on this machine: that of a program which takes no time but that of its
    products (and, in bf16, exponentials) at the rates measured here.
    """
    found: list[dict[str, Any]] = []

    def judge(text: str, value: float | None, limit: float, required: bool = True, most: float | None = None) -> None:
        if value is not None:
            met = value >= limit
            found.append({"text": text, "value": value, "limit": limit, "met": met, "required": required, "most": most})

    def ratio(text: str, ours: str, rivals: list[tuple[str, str]], limit: float, required: bool = True) -> None:
        known = [value for value in (faster(result, ours, *rival) for rival in rivals) if value is not None]
        least, seconds = min(known, default=None), best(result, ours, "as run")
        if least is not None and seconds is not None:
            exact = ours in (OURS_FP32, COMPILED_FP32)
            floor = products_seconds(result, "fp32") if exact else bf16_floor
            judge(text, least, limit, required, most=least * seconds / floor)

    bf16_floor = products_seconds(result, "bf16") + exponentials_seconds(result)
    if size in REQUIRED_AS_RUN:
        ratio("bf16 against fair-esm as run", OURS, [(REFERENCE, "as run")], REQUIRED_AS_RUN[size])
    tuned = [(REFERENCE, "tuned")]
    if size in REQUIRED_TUNED:
        ratio("bf16 against fair-esm, both tuned", OURS, tuned, REQUIRED_TUNED[size])
    rivals = [(name, column) for name in BEST_TRANSFORMERS for column in COLUMNS]
    ratio("bf16 against the best transformers", OURS, rivals, REQUIRED_TRANSFORMERS)
    ratio("fp32 against fair-esm, both tuned", OURS_FP32, tuned, REQUIRED_FP32)
    equal = {OURS_FP32: FP32_COSINE, COMPILED_FP32: FP32_COSINE, OURS: BF16_COSINE, COMPILED: BF16_COSINE}
    for name, limit in equal.items():
        agreement = result["subjects"].get(name, {}).get("agreement")
        if agreement and not agreement["is_reference"]:
            judge(f"least cosine of {SUBJECTS[name].title}", agreement["least_cosine"], limit)
    ratio("compiled attention, bf16, both tuned", COMPILED, tuned, WANTED, required=False)
    ratio("compiled attention, bf16, against the best transformers", COMPILED, rivals, REQUIRED_TRANSFORMERS, False)
    ratio("compiled attention, fp32, both tuned", COMPILED_FP32, tuned, REQUIRED_FP32, required=False)
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
    products, exponentials = products_seconds(result, "bf16"), exponentials_seconds(result)
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
    for name in (OURS_FP32, COMPILED_FP32):
        seconds = best(result, name, "as run")
        if seconds:
            lines.append(
                f"  {SUBJECTS[name].title}: {products_seconds(result, 'fp32') / seconds:.0%} of the fp32 GEMM rate "
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
        most = f"; {one['most']:.1f}x at the floor" if one["most"] else ""
        wish = "required" if one["required"] else "wanted"
        lines.append(f"  {word:<5} {one['text']}: {value} ({wish} {limit}{most})")
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
