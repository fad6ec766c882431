"""The `eval elbo` command."""

from pathlib import Path

import click

from nvae_codec.eval.printed import Bounds, Elbo

from ..files import echo
from ..options import device_option, threads_option, use_threads
from ..progress import progress_bar
from .options import Recorded


@click.command(
    cls=Recorded,
    results=Elbo,
    output="the object that --json prints",
    short_help="Negative ELBO of a float network on its data set.",
)
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--data",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Where the run's data set lies now, if not where it was.",
)
@click.option("--training", is_flag=True, help="Training images, not validation images.")
@click.option(
    "--images",
    "num_images",
    metavar="N",
    type=click.IntRange(min=1),
    default=500,
    show_default=True,
    help="How many, drawn at random, always the same ones; all, if there are fewer.",
)
@click.option(
    "--samples",
    metavar="K",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Draws of the latents for each image. The importance-weighted bound is tighter with more; the paper has 1000.",
)
@click.option(
    "--batch-size", metavar="N", type=click.IntRange(min=1), default=16, show_default=True, help="Images at a time."
)
@click.option(
    "--seed", metavar="N", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Of the noise."
)
@device_option()
@threads_option()
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def elbo(run: Path, training: bool, threads: int | None, as_json: bool, **options) -> None:
    """Negative ELBO and importance-weighted bound of a float network.

    RUN is the folder of a training run, or of an imported network. The network computes in 32 bits. Both bounds are
    given with two likelihoods: the codable one, whose probabilities sum to one, and the published one, of the NVAE
    release and the paper, which at 8 bits counts the value 254 twice. Only the codable one can become a file. The
    reconstruction, -log p(x | z), is the codable one's.

    \b
    Examples:
      nvae-codec eval elbo runs/mine
      nvae-codec eval elbo runs/nvae-cifar10 --images 10000 --samples 100 --json
    """
    from nvae_codec.eval.document import to_json
    from nvae_codec.eval.elbo import measure

    use_threads(threads)
    result, sides = measure(
        run, training=training, report=lambda line: click.echo(line, err=True), watch=progress_bar, **options
    )
    echo(to_json(result).rstrip() if as_json else describe(result, sides, "training" if training else "validation"))


def describe(result: Elbo, sides: tuple[int, ...], kind: str) -> str:
    """A table of all bounds, and the KL of every group of latents, whose side is in `sides`."""
    from dataclasses import fields

    from nvae_codec.eval.tables import table

    words = {"negative_elbo": "negative ELBO", "importance_weighted": "importance-weighted bound"}
    both, rows = (result.nats, result.bits_per_dim), []
    for name in (field.name for field in fields(Bounds) if field.name != "kl"):
        bound, _, _ = name.partition("_published")
        label = words.get(bound, bound) + (", published likelihood" if name.endswith("_published") else "")
        rows.append((label, *(getattr(bounds, name) for bounds in both)))
    for group, (side, nats, bits) in enumerate(zip(sides, result.nats.kl, result.bits_per_dim.kl, strict=True)):
        rows.append((f"KL of group {group}, side {side}", nats, bits))
    text = table(("", "nats/image", "bits/dim"), [(label, f"{nats:.3f}", f"{bits:.4f}") for label, nats, bits in rows])
    return f"{result.num_images} {kind} images, draws for each: {result.samples}\n{text}"
