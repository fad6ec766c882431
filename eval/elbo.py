"""Negative ELBO and importance-weighted bound of a float network on its data set."""

from dataclasses import fields
from pathlib import Path

from nvae_codec.device import choose_device
from nvae_codec.errors import ModelError, enough_memory
from nvae_codec.training.checkpoint import load_network
from nvae_codec.training.data.batches import fixed_batch
from nvae_codec.training.evaluation import evaluate
from nvae_codec.training.run import Run
from nvae_codec.wording import counted

from .printed import Bounds, Elbo
from .progress import Report, Watch, silent, unwatched


@enough_memory("a smaller --batch-size needs less")
def measure(
    run: Path,
    *,
    data: Path | None = None,
    training: bool = False,
    num_images: int = 500,
    samples: int = 1,
    batch_size: int = 16,
    seed: int = 0,
    device: str = "auto",
    report: Report = silent,
    watch: Watch = unwatched,
) -> tuple[Elbo, tuple[int, ...], str]:
    """Bounds on held-out, or on training, images, the sides of the groups of latents, coarsest first, and what was
    measured, in words.

    `run` is the folder of a training run or of an imported network; `data` is where its data set lies now. Raises
    ModelError and ImageError where these cannot be read, or if no images are held out.
    """
    chosen = choose_device(device)
    described, network = Run.load(run).moved(data), load_network(run)
    config = network.config
    dataset = described.data.open(config.image_size, report)
    images = dataset.training if training else dataset.validation
    if not len(images):
        raise ModelError("no images are held out; --training takes training images")
    with watch("evaluating", "draw") as progress:
        found = evaluate(
            network.to(chosen),
            fixed_batch(images, num_images),
            samples=samples,
            batch_size=batch_size,
            seed=seed,
            progress=progress,
        )
    nats = {field.name: getattr(found, field.name) for field in fields(Bounds)} | {"kl": list(found.kl)}
    bits = {name: found.bits(value) for name, value in nats.items() if name != "kl"}
    result = Elbo(
        num_images=found.images,
        samples=samples,
        dimensions=config.num_dimensions,
        latents=config.num_latents,
        nats=Bounds(**nats),
        bits_per_dim=Bounds(**bits, kl=[found.bits(value) for value in found.kl]),
    )
    what = counted(found.images, f"{'training' if training else 'held-out'} {images.noun}")
    return result, tuple(config.side(scale) for scale in config.scale_of_group), what
