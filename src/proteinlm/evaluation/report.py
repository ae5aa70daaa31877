"""The report: results files side by side, as Markdown and as one HTML page that needs no other file.

In: files of results, and nothing else. Out: `report.md` and `report.html`. A row is a figure, a column a model; the
papers' figures stand beside. What was not run is told with the reason; so is every deviation from the paper.
"""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from proteinlm.checkpoints.files import atomic_file
from proteinlm.errors import InputError
from proteinlm.evaluation.plots import interval_plot
from proteinlm.evaluation.results import Run, TaskRun, read
from proteinlm.tasks.base import Published, Result

MARKDOWN, PAGE = "report.md", "report.html"

STYLE = """body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0 } td, th { padding: .25rem .7rem; border-bottom: 1px solid #ddd }
th { text-align: left; vertical-align: bottom } td.figure { white-space: nowrap; font-variant-numeric: tabular-nums }
td small { color: #777 } ul.notes { color: #555; font-size: 13px } svg { max-width: 100%; height: auto }
code { background: #f4f4f4; padding: 0 .2rem }"""

DIFFERENT = "columns are over different proteins (other data, another seed, or --quick): they do not compare"


@dataclass(frozen=True)
class Section:
    """One task in all runs.

    Args:
        name, title, source: of the task. columns: a `TaskRun` for each run, None where the run did not know the task.
        measures: rows, in the order in which they first appear. published: by measure.
    """

    name: str
    title: str
    source: str
    columns: tuple[TaskRun | None, ...]
    measures: tuple[str, ...]
    published: dict[str, tuple[Published, ...]]

    def figure(self, measure: str, column: int) -> Result | None:
        """The figure in one cell."""
        task = self.columns[column]
        found = [] if task is None else [result for result in task.results if result.measure == measure]
        return found[0] if found else None

    def notes(self) -> list[str]:
        """What is to be known of the figures, each said once."""
        results = [result for task in self.columns if task is not None for result in task.results]
        notes = list(dict.fromkeys(note for result in results for note in result.notes))
        over = [{result.pairing for result in results if result.measure == measure} for measure in self.measures]
        return [DIFFERENT, *notes] if any(len(pairings) > 1 for pairings in over) else notes


def report(sources: Sequence[Path], out: Path) -> Path:
    """Write the report of some runs.

    Args:
        sources: files of results, or folders with `results.json`, one for each column. out: folder, which is there.

    Returns:
        the Markdown file.

    Raises:
        InputError: a file cannot be used, or figures of different versions of a task stand side by side.
    """
    runs = [read(source) for source in sources]
    sections = gather(runs)
    for path, text in ((out / MARKDOWN, markdown(runs, sections)), (out / PAGE, page(runs, sections))):
        with atomic_file(path) as temporary:
            temporary.write_text(text, "utf-8")
    return out / MARKDOWN


def gather(runs: Sequence[Run]) -> list[Section]:
    """The tasks of all runs, in the order in which they first appear."""
    names = dict.fromkeys(task.name for run in runs for task in run.tasks)
    sections = []
    for name in names:
        columns = tuple(next((task for task in run.tasks if task.name == name), None) for run in runs)
        present = [task for task in columns if task is not None]
        versions = {task.version for task in present if task.results}
        if len(versions) > 1:
            raise InputError(f"task {name}: versions {sorted(versions)} side by side; evaluate the older runs again")
        measures = tuple(dict.fromkeys(result.measure for task in present for result in task.results))
        lines = dict.fromkeys(line for task in present for line in task.published)
        published = {measure: tuple(line for line in lines if line.measure == measure) for measure in measures}
        sections.append(Section(name, present[0].title, present[0].source, columns, measures, published))
    return sections


def headings(runs: Sequence[Run]) -> list[str]:
    """A name for each column, told apart by number where two are alike."""
    names = [run.name for run in runs]
    return [name if names.count(name) == 1 else f"{name} ({number})" for number, name in enumerate(names, 1)]


def cell(result: Result | None) -> tuple[str, str]:
    """A figure and its interval as text."""
    if result is None:
        return "", ""
    digits = 2 if abs(result.value) >= 2 else 3
    return f"{result.value:.{digits}f}", f"{result.low:.{digits}f} to {result.high:.{digits}f}"


def _facts(run: Run) -> list[str]:
    quick = ", quick" if run.options.get("quick") else ""
    return [
        run.name,
        f"{run.model['parameters']:,}",
        f"{run.model['layers']} x {run.model['width']}",
        str(run.model["digest"])[:12],
        f"{run.options['precision']} on {run.options['device']}{quick}, seed {run.options['seed']}",
        f"{run.seconds['all']:.0f} s, of them the model {run.seconds['model']:.0f} s",
        f"{run.date}, proteinlm {run.software['proteinlm']}",
    ]


FACTS = ("model", "parameters", "layers x width", "digest", "run", "time", "when")


def _published_text(lines: Sequence[Published]) -> str:
    sources = dict.fromkeys(line.source for line in lines)
    parts = [
        "; ".join(f"{line.model} {line.value:g}" for line in lines if line.source == source) + f" [{source}]"
        for source in sources
    ]
    return " ".join(parts)


def _absent(section: Section, names: Sequence[str]) -> list[str]:
    """A line for each run in which the task gave no figures."""
    lines = []
    for name, task in zip(names, section.columns, strict=True):
        if task is None:
            lines.append(f"{name}: not asked for")
        elif task.status != "done":
            lines.append(f"{name}: {task.status}: {task.reason}")
    return lines


def markdown(runs: Sequence[Run], sections: Sequence[Section]) -> str:
    """The report as Markdown."""
    names = headings(runs)
    lines = ["# Evaluation", "", "95 % bootstrap intervals over proteins or clusters in brackets.", ""]
    lines += _table(FACTS, [_facts(run) for run in runs])
    for section in sections:
        lines += ["", f"## {section.title}", "", f"Task `{section.name}`; {section.source}.", ""]
        if section.measures:
            rows = []
            for measure in section.measures:
                found = [cell(section.figure(measure, column)) for column in range(len(runs))]
                figures = [f"{value} ({interval})" if value else "" for value, interval in found]
                rows.append([measure, *figures, _published_text(section.published[measure])])
            lines += _table(("measure", *names, "papers"), rows)
        lines += ["", *(f"- {line}" for line in [*_absent(section, names), *section.notes()])]
    return "\n".join(lines).rstrip() + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in (head, *rows)]
    lines = ["| " + " | ".join(row) + " |" for row in escaped]
    return [lines[0], "|" + " --- |" * len(head), *lines[1:]]


def page(runs: Sequence[Run], sections: Sequence[Section]) -> str:
    """The report as one HTML page, with plots inside it."""
    names = headings(runs)
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8"><title>Evaluation</title>',
        f"<style>{STYLE}</style></head><body>",
        "<h1>Evaluation</h1><p>95 % bootstrap intervals over proteins or clusters. In plots, grey lines are figures of "
        "the papers.</p>",
        _html_table(FACTS, [[html.escape(text) for text in _facts(run)] for run in runs]),
    ]
    for section in sections:
        parts.append(f"<h2>{html.escape(section.title)}</h2>")
        parts.append(f"<p>Task <code>{html.escape(section.name)}</code>; {html.escape(section.source)}.</p>")
        if section.measures:
            parts += [_html_figures(section, names), interval_plot(section, names)]
        notes = [*_absent(section, names), *section.notes()]
        parts.append('<ul class="notes">' + "".join(f"<li>{html.escape(note)}</li>" for note in notes) + "</ul>")
    return "\n".join([*parts, "</body></html>"]) + "\n"


def _html_figures(section: Section, names: Sequence[str]) -> str:
    rows = []
    for measure in section.measures:
        found = [cell(section.figure(measure, column)) for column in range(len(names))]
        figures = [f"{value}<br><small>{interval}</small>" for value, interval in found]
        papers = f"<small>{html.escape(_published_text(section.published[measure]))}</small>"
        rows.append([html.escape(measure), *figures, papers])
    return _html_table(("measure", *names, "papers"), rows)


def _html_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    first = "".join(f"<th>{html.escape(text)}</th>" for text in head)
    body = "".join("<tr>" + "".join(f'<td class="figure">{text}</td>' for text in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{first}</tr></thead><tbody>{body}</tbody></table>"
