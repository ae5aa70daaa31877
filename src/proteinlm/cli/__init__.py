"""The command `plm`: parse, call one function, print.

A module for each group of commands; nothing heavy is imported before a command runs. Exit codes: 0 all went well; 1
the output is complete, but records were refused (they are listed); 2 the input cannot be used, told in one line; 130
interrupted.
"""

import errno
import sys

import click

from proteinlm import __version__
from proteinlm.cli import (
    corpus,
    data,
    embedding,
    evaluate,
    figures,
    generate,
    models,
    prediction,
    pretrain,
    reproduce,
    variants,
)
from proteinlm.errors import InputError

COMMANDS: tuple[click.Command, ...] = (
    embedding.embed,
    embedding.contacts,
    embedding.merge,
    variants.variants,
    prediction.predict,
    prediction.heads,
    generate.generate,
    models.models,
    models.convert,
    models.contacts_fit,
    models.accelerate,
    corpus.corpus,
    data.data,
    data.split,
    data.leakage,
    pretrain.pretrain,
    evaluate.evaluate,
    evaluate.report,
    evaluate.compare,
    figures.figures,
    reproduce.reproduce,
)
"""Every command, and every group of commands."""

_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="plm")
def cli() -> None:
    """Protein language models: from a FASTA file to embeddings and contacts, with nothing lost in silence."""


for _command in COMMANDS:
    cli.add_command(_command)


def main() -> None:
    """Run the command line and exit with its code."""
    try:
        code = cli.main(prog_name="plm", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except click.Abort:
        click.echo("plm: interrupted", err=True)
        code = 130
    except InputError as error:
        click.echo(f"plm: error: {' '.join(str(error).split())}", err=True)
        code = 2
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        click.echo(f"plm: error: {error}", err=True)
        code = 2
    sys.exit(code)
