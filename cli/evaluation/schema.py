"""The `eval schema` command."""

import json

import click

from ..files import echo


@click.command(short_help="The JSON schema of results.")
@click.argument("kind", type=click.Choice(["rate", "compare", "reported", "bench", "elbo", "training-speed"]))
def schema(kind: str) -> None:
    """Print the JSON schema of what the command of this name writes, or prints, as JSON.

    \b
    Examples:
      nvae-codec eval schema rate > rate.schema.json
    """
    from nvae_codec.eval import document, printed, results

    kinds = {
        "rate": results.RateResults,
        "compare": results.CompareResults,
        "reported": results.ReportedResults,
        "bench": printed.Bench,
        "elbo": printed.Elbo,
        "training-speed": printed.TrainingSpeed,
    }
    echo(json.dumps(document.schema(kinds[kind]), indent=1))
