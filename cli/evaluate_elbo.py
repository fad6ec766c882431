"""The `evaluate-elbo` command."""

import json
from pathlib import Path

import click

from nvae_codec.errors import enough_memory

from .options import THREADS, use_threads
from .progress import progress_bar


@click.command(short_help="Negative ELBO of a float network on its data set.")
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
@click.option(
    "--device",
    metavar="NAME",
    default="auto",
    show_default=True,
    help="cpu, cuda, cuda:N, or auto: a GPU where there is one.",
)
@click.option("--threads", metavar="N", type=THREADS, help="CPU threads, at most.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def evaluate_elbo(
    run: Path,
    data: Path | None,
    training: bool,
    images: int,
    samples: int,
    batch_size: int,
    seed: int,
    device: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """Negative ELBO and importance-weighted bound of a float network.

    RUN is the folder of a training run, or of an imported network. The network computes in 32 bits. Both bounds are
    given with two likelihoods: the codable one, whose probabilities sum to one, and the published one, of the NVAE
    release and the paper, which at 8 bits counts the value 254 twice. Only the codable one can become a file. The
    reconstruction, -log p(x | z), is the codable one's.

    \b
    Examples:
      nvae-codec evaluate-elbo runs/mine
      nvae-codec evaluate-elbo runs/nvae-cifar10 --images 10000 --samples 100 --json

    \b
    With --json the keys are images, samples, dimensions (sub-pixels of an image), latents,
    nats (per image) and bits_per_dim. The last two hold the same figures, with the keys
    negative_elbo, negative_elbo_published, importance_weighted, importance_weighted_published,
    reconstruction, kl (a list, one for each group, coarsest first).
    """
    from nvae_codec.device import choose_device
    from nvae_codec.errors import ModelError
    from nvae_codec.training.checkpoint import load_network
    from nvae_codec.training.data.batches import fixed_batch
    from nvae_codec.training.evaluation import evaluate
    from nvae_codec.training.run import Run

    use_threads(threads)
    chosen = choose_device(device)
    described, network = Run.load(run).moved(data), load_network(run)
    dataset = described.data.open(network.config.image_size, lambda line: click.echo(line, err=True))
    chosen_images = dataset.training if training else dataset.validation
    if not len(chosen_images):
        raise ModelError("no images are held out; --training takes training images")
    with enough_memory("a smaller --batch-size needs less"), progress_bar("evaluating", "draw") as progress:
        result = evaluate(
            network.to(chosen),
            fixed_batch(chosen_images, images),
            samples=samples,
            batch_size=batch_size,
            seed=seed,
            progress=progress,
        )
    figures = {
        name: getattr(result, name)
        for name in (
            "negative_elbo",
            "negative_elbo_published",
            "importance_weighted",
            "importance_weighted_published",
            "reconstruction",
        )
    }
    if as_json:
        click.echo(
            json.dumps(
                {
                    "images": result.images,
                    "samples": samples,
                    "dimensions": network.config.num_dimensions,
                    "latents": network.config.num_latents,
                    "nats": {**figures, "kl": list(result.kl)},
                    "bits_per_dim": {
                        **{name: result.bits(nats) for name, nats in figures.items()},
                        "kl": [result.bits(nats) for nats in result.kl],
                    },
                }
            )
        )
        return
    click.echo(f"{result.images} {'training' if training else 'validation'} images, draws for each: {samples}")
    click.echo(f"{'':48}{'nats/image':>14}{'bits/dim':>10}")
    for name, nats in figures.items():
        bound, _, published = name.partition("_published")
        words = {"negative_elbo": "negative ELBO", "importance_weighted": "importance-weighted bound"}.get(bound, bound)
        words += ", published likelihood" if name.endswith("_published") else ""
        click.echo(f"{words:<48}{nats:>14.3f}{result.bits(nats):>10.4f}")
    for group, nats in enumerate(result.kl):
        side = network.config.side(network.config.scale_of_group[group])
        click.echo(f"{f'KL of group {group}, side {side}':<48}{nats:>14.3f}{result.bits(nats):>10.4f}")
