"""The `eval elbo` command."""

from pathlib import Path
from typing import Any

import click

from nvae_codec.eval.printed import Bounds, Elbo

from ..files import echo
from ..options import (
    POSITIVE,
    RUN,
    Documented,
    data_option,
    device_option,
    json_option,
    note,
    threads_option,
    use_threads,
)
from ..progress import progress_bar
from .options import BATCH_SIZE, NOISE_SEED, samples_option


@click.command(
    cls=Documented,
    results={"the object that --json prints": Elbo},
    short_help="Negative ELBO of a float network on its data set.",
)
@RUN
@data_option()
@click.option("--training", is_flag=True, help="Training images, not held-out images.")
@click.option(
    "--images",
    "num_images",
    metavar="N",
    type=POSITIVE,
    default=500,
    help="How many, drawn at random, always the same ones; all, if there are fewer.",
)
@samples_option("The importance-weighted bound is tighter with more; the paper has 1000.")
@BATCH_SIZE
@NOISE_SEED
@device_option()
@threads_option()
@json_option()
def elbo(run: Path, training: bool, threads: int | None, as_json: bool, **options: Any) -> None:
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
    result, sides, what = measure(run, training=training, report=note, watch=progress_bar, **options)
    echo(to_json(result).rstrip() if as_json else describe(result, sides, what))


def describe(result: Elbo, sides: tuple[int, ...], what: str) -> str:
    """What was measured, a table of all bounds, and the KL of every group of latents, whose side is in `sides`."""
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
    return f"{what}, draws for each: {result.samples}\n{text}"
