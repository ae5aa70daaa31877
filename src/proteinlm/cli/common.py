"""What the commands have in common: list options, the progress bar, and the options that several commands take.

In: what the user typed. Out: values that one function below the command line takes. Imports nothing heavy.
"""

import re
import sys
import time
from collections.abc import Callable
from typing import Any

import click

from proteinlm.embedding.progress import Progress

CONTENTS = ("embeddings", "logits", "contacts")
STORAGES = ("fp32", "fp16", "bf16")

LIST_OPTIONS = {
    "--include": re.compile("|".join(CONTENTS)),
    "--layers": re.compile(r"-?\d+(,-?\d+)*"),
    "--devices": re.compile(r"cpu|cuda(:\d+)?"),
}
"""Options that take several values, and what a further value looks like."""


class ListCommand(click.Command):
    """A command whose list options also take their values apart: `--include logits contacts`, `--layers -1 6`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Join the values that follow such an option by commas, then parse as usual."""
        joined: list[str] = []
        pattern: re.Pattern[str] | None = None
        for argument in args:
            if joined and joined[-1] in LIST_OPTIONS:
                joined.append(argument)
            elif pattern is not None and pattern.fullmatch(argument):
                joined[-1] += f",{argument}"
            else:
                pattern = LIST_OPTIONS.get(argument)
                joined.append(argument)
        return super().parse_args(ctx, joined)


def say(line: str) -> None:
    """Tell the user one line, on standard error."""
    click.echo(line, err=True)


class Bar(Progress):
    """Lines on standard error, and a bar there if it is a terminal."""

    def __init__(self) -> None:
        self._bar: Any = None

    def say(self, line: str) -> None:
        """Print the line."""
        say(line)

    def begin(self, residues: int) -> None:
        """Draw the bar."""
        from tqdm import tqdm

        self._bar = tqdm(total=residues, unit=" residues", unit_scale=True, disable=None, file=sys.stderr)

    def advance(self, residues: int) -> None:
        """Move the bar."""
        self._bar.update(residues)

    def end(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()


class TrainingBar:
    """Steps done of steps to do, with loss and speed: a bar if standard error is a terminal, else a line now and then.

    Args:
        seconds: between lines; the last step gets one in any case.
    """

    def __init__(self, seconds: float = 10.0) -> None:
        self._seconds, self._told = seconds, -seconds
        self._bar: Any = None

    def say(self, line: str) -> None:
        """Print a line, above the bar."""
        if self._bar is None:
            say(line)
        else:
            self._bar.write(line, file=sys.stderr)

    def step(self, done: int, steps: int, loss: float, tokens_per_second: float) -> None:
        """One more step is done."""
        if not sys.stderr.isatty():
            now = time.monotonic()
            if now - self._told >= self._seconds or done == steps:
                say(f"step {done:,} of {steps:,}: loss {loss:.3f}, {tokens_per_second:,.0f} tokens/s")
                self._told = now
            return
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(total=steps, initial=done - 1, unit=" steps", dynamic_ncols=True, file=sys.stderr)
        self._bar.set_postfix_str(f"loss {loss:.3f}, {tokens_per_second:,.0f} tokens/s", refresh=False)
        self._bar.update(1)

    def end(self) -> None:
        """Leave the bar as it is; lines go below it."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def listed(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """The values of a list option, given apart, by commas or by repeating it."""
    return tuple(item.strip() for value in values for item in value.split(",") if item.strip())


def layer_numbers(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> tuple[int, ...]:
    """Layer numbers."""
    try:
        return tuple(int(item) for item in listed(context, parameter, values))
    except ValueError as error:
        raise click.BadParameter(f"{', '.join(values)!r} are not layer numbers; -1 is the last") from error


model_option = click.option(
    "--model",
    default="default",
    show_default=True,
    metavar="NAME|PATH",
    help="Name (see `plm models`), hub id or path.",
)
"""Which model: ours where none is named."""


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say how a model is run, which `embed` and `contacts` share."""
    options = [
        model_option,
        click.option(
            "--precision",
            type=click.Choice(["auto", "fp32", "bf16"]),
            default="auto",
            show_default=True,
            help="Number format of the arithmetic; auto takes bf16 where the hardware has it, fp32 is exact.",
        ),
        click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."),
        click.option(
            "--long",
            type=click.Choice(["window", "error", "crop"]),
            default="window",
            show_default=True,
            help="Proteins beyond the model's length: overlapping windows, refused, or cropped.",
        ),
        click.option(
            "--tokens-per-batch", type=click.IntRange(min=1), default=4096, show_default=True, help="Size of a batch."
        ),
        click.option(
            "--shard", metavar="I/N", help="Do every N-th block only (array jobs); `plm merge` ends the work."
        ),
        click.option("--workers", type=int, default=1, show_default=True, help="Processes on this machine."),
        click.option("--devices", multiple=True, callback=listed, help="One process on each: cuda:0,cuda:1."),
        click.option(
            "--attention",
            metavar="KERNEL",
            help="Attention kernel by name, which runs or is refused; else the fastest.",
        ),
        click.option("--strict", is_flag=True, help="Stop at the first record that cannot be embedded."),
        click.option("--download", is_flag=True, help="Fetch the weights if they are not on this machine."),
    ]
    for option in reversed(options):
        command = option(command)
    return command
