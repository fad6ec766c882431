"""The `eval training-speed` command."""

from pathlib import Path
from typing import Any

import click

from nvae_codec.errors import ModelError
from nvae_codec.eval.printed import WAYS, TrainingSpeed

from ..files import check_target, display_output, echo, write
from ..options import PATH, POSITIVE, Documented, device_option, note
from .options import BESIDE


def name_and_value(text: str) -> tuple[str, str]:
    """The two parts of NAME=VALUE."""
    name, sign, value = text.partition("=")
    if not (name and sign):
        raise click.BadParameter(f"{text!r} is not NAME=VALUE.")
    return name, value


@click.command(
    cls=Documented, results={"the file that --json keeps": TrainingSpeed}, short_help="Speed and memory of training."
)
@click.option("--preset", metavar="NAME", default="cifar10-small", help="As of `train`.")
@click.option("--batch-size", metavar="N", type=POSITIVE, help="Images in a step.  [default: the recipe's]")
@device_option()
@click.option("--steps", metavar="N", type=POSITIVE, default=24, help="Of every way.")
@click.option(
    "--skip",
    metavar="WAY",
    type=click.Choice(list(WAYS)),
    multiple=True,
    help=f"A way to leave out; any number. They are {'; '.join(WAYS)}.",
)
@click.option(
    "--set",
    "settings",
    metavar="NAME=VALUE",
    type=name_and_value,
    multiple=True,
    help="A field of the network, e.g. num_channels_enc=16; any number.",
)
@BESIDE
@click.option("--json", "output", metavar="FILE", type=PATH, help="Keep the figures in this file.")
def training_speed(
    preset: str, skip: tuple[str, ...], settings: tuple[tuple[str, str], ...], output: Path | None, **options: Any
) -> None:
    """Measure training steps in every way that a run can be executed, each in a process of its own, on random images.

    Prints a Markdown table. The ways differ in precision, memory layout, fused batch norms, recomputation and
    compilation.

    \b
    Examples:
      nvae-codec eval training-speed --preset cifar10-small --steps 15
      nvae-codec eval training-speed --skip "the same in fp16" --skip "bf16, cells compiled" --json speed.json
      nvae-codec eval training-speed --preset photo --set num_channels_enc=16 --batch-size 4
    """
    from nvae_codec.eval.document import to_json
    from nvae_codec.eval.printed import Speed
    from nvae_codec.eval.training_speed import check_settings, measure_ways
    from nvae_codec.model.presets import PRESETS

    if preset not in PRESETS:
        raise click.UsageError(f"There is no preset {preset}; there are {', '.join(PRESETS)}.")
    check_settings(preset, dict(settings))
    if output is not None:
        check_target(output, force=True)
    ways = [way for way in WAYS if way not in skip]
    found: dict[str, Speed] = {}
    echo("| way | images/s | first report, s | peak memory, MB |\n|---|---|---|---|")
    for way, speed in measure_ways(preset, ways, settings=dict(settings), **options):
        if isinstance(speed, str):
            echo(f"| {way} | failed: {speed[:100]} | | |")
            continue
        found[way] = speed
        first, megabytes = f"{speed.first_report_seconds:.1f}", f"{speed.peak_bytes / 1e6:,.0f}"
        echo(f"| {way} | {speed.images_per_second:.1f} | {first} | {megabytes} |")
    if not found:
        raise ModelError("nothing could be measured")
    speed = next(iter(found.values()))
    echo(f"\npreset {preset}, batch of {speed.batch_size}, {speed.device}")
    if output is not None:
        write(output, to_json(TrainingSpeed(preset=preset, ways=found)).encode(), force=True)
        note(f"wrote {display_output(output)}")
