"""The `train` command."""
from pathlib import Path

import click


@click.command()
@click.option("--preset", metavar="NAME", default="photo", show_default=True,
              help="The network: photo, or one of the paper's by name.")
@click.option("--data", metavar="DIR", type=click.Path(path_type=Path), required=True,
              help="A folder of pictures, or of tar archives of pictures. A twentieth of them is held out.")
@click.option("--run", "run_folder", metavar="DIR", type=click.Path(path_type=Path), required=True,
              help="Where checkpoint.pt, config.json and stats.jsonl go.")
@click.option("--steps", type=click.IntRange(min=1), default=5500, show_default=True)
@click.option("--batch-size", type=click.IntRange(min=2), default=16, show_default=True)
@click.option("--learning-rate", type=click.FloatRange(min=0, min_open=True), default=4e-3, show_default=True)
@click.option("--kl-warm-up", type=click.FloatRange(0, 1), default=0.3, show_default=True,
              help="Part of the steps over which the KL term grows.")
@click.option("--norm-regularisation", type=click.FloatRange(min=0), default=1e-2, show_default=True,
              help="Of the batch norms' scales.")
@click.option("--clip-gradient", type=click.FloatRange(min=0, min_open=True),
              help="Largest norm of the gradient.  [default: none]")
@click.option("--bfloat16/--float32", "low_precision", default=False,
              help="Precision of the network while training.  [default: float32]")
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.")
def train(
    preset: str,
    data: Path,
    run_folder: Path,
    steps: int,
    batch_size: int,
    learning_rate: float,
    kl_warm_up: float,
    norm_regularisation: float,
    clip_gradient: float | None,
    low_precision: bool,
    seed: int,
    threads: int | None,
) -> None:
    """Train a network on a folder of pictures. The same command again continues an interrupted run.

    \b
    Examples:
      nvae-codec train --data pictures/ --run runs/mine
      nvae-codec convert runs/mine/checkpoint.pt --data pictures/ -o mine.safetensors
      nvae-codec compress one.png --model mine.safetensors
    """
    import dataclasses
    import math

    from nvae_codec.model.config import PRESETS
    from nvae_codec.training.data import load_pictures
    from nvae_codec.training.loop import TrainingOptions
    from nvae_codec.training.loop import train as run

    from .batch import use_threads

    if preset not in PRESETS:
        raise click.UsageError(f"There is no preset {preset}; there are {', '.join(PRESETS)}.")
    config = PRESETS[preset]
    if config.image_channels != 3:
        raise click.UsageError(f"The preset {preset} is not for colour pictures, "
                               "which are all that this version trains on.")
    use_threads(threads)
    if config.num_nf:
        click.echo(f"note: {preset} is trained without its {config.num_nf} pairs of flow cells per group, "
                   "which this version does not have", err=True)
        config = dataclasses.replace(config, num_nf=0)
    options = TrainingOptions(steps=steps, batch_size=batch_size, learning_rate=learning_rate, kl_warm_up=kl_warm_up,
                              norm_regularisation=norm_regularisation, clip_gradient=clip_gradient or math.inf,
                              low_precision=low_precision, seed=seed)

    def report(line: str) -> None:
        click.echo(line, err=True)

    pictures, held_out = load_pictures(data, config.image_size, report)
    run(config, options, pictures, held_out, run_folder, report)
