"""The `eval reported` command."""

from pathlib import Path
from typing import Any

import click

from nvae_codec.eval.results import ReportedResults

from ..files import echo
from ..options import PATH, POSITIVE, data_option, device_option, model_option
from ..progress import progress_bar
from .options import (
    BATCH_SIZE,
    NOISE_SEED,
    Recorded,
    command_line,
    output_folder,
    results_folder,
    samples_option,
    write_texts,
)


@click.command(cls=Recorded, results=ReportedResults, short_help="The paper's figures beside measured ones.")
@click.option(
    "--run", metavar="RUN", type=PATH, help="The folder of a training run or of an imported network, or a checkpoint."
)
@model_option(
    "The integer model made of it, to make an archive with; --run's network is then the one that it was made of."
)
@click.option("--dataset", metavar="NAME", help="Whose held-out images are measured, as `train` reads it.")
@data_option("Where the data set lies.  [default: data/NAME]")
@click.option("--images", "num_images", metavar="N", type=POSITIVE, default=500, help="The first N held-out images.")
@samples_option()
@BATCH_SIZE
@NOISE_SEED
@device_option()
@click.option(
    "--measured",
    "earlier",
    metavar="RESULTS.json",
    type=PATH,
    multiple=True,
    help="What this command measured before, of other networks or data sets, to stand in the table too; any number.",
)
@output_folder("Keep results.json and the archive there.")
def reported(
    run: Path | None, dataset: str | None, earlier: tuple[Path, ...], folder: Path | None, **options: Any
) -> None:
    """Show what the paper reports (Vahdat and Kautz, NeurIPS 2020, Table 1), and measure a float network beside it.

    The figures of the paper are the authors'. Beside them stand, with --run, a network's negative ELBO on held-out
    images in the published and in the codable likelihood, and, with --model, what an archive of these images takes.

    \b
    Examples:
      nvae-codec eval reported
      nvae-codec eval reported --run runs/nvae-cifar10 --dataset cifar10 --images 10000
      nvae-codec eval reported --run runs/mine --model mine.safetensors --dataset cifar10 -o results/reported
    """
    if bool(run) != bool(dataset):
        raise click.UsageError("A --run is measured on a --dataset: name both or neither.")
    if (options["data"] or options["model"]) and not run:
        raise click.UsageError("--data and --model are for a --run.")
    from nvae_codec.eval.document import read
    from nvae_codec.eval.reported import MEMORY, Options, measure, report_table, texts
    from nvae_codec.eval.tables import table

    with results_folder(folder) as place:
        before = [row for path in earlier for row in read(ReportedResults, path, "results of this command").measured]
        chosen = Options(run=run, dataset=dataset, **options) if run and dataset else None
        results = measure(chosen, place, earlier=before, command=command_line(), watch=progress_bar)
        write_texts(folder, lambda: texts(results))
    echo(f"{table(*report_table(results))}\n* {MEMORY}")
