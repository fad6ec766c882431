"""How each preset is trained: `Recipe`, its schedules, and the recipes of the presets."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from nvae_codec.errors import ModelError
from nvae_codec.model.config import NVAEConfig
from nvae_codec.training.data.augment import CHANGES

OPTIMIZERS = ("adamax", "adam")
CHANGES_OF_IMAGES = ("smaller", *CHANGES)


@dataclass(frozen=True)
class Recipe:
    """What decides the weights that a run ends with. The defaults are those of the paper's CIFAR-10 run.

    Its length is given in epochs, with learning rates that change from epoch to epoch as in the paper, or in steps,
    with rates that change from step to step. Raises ModelError for values outside their range.
    """

    epochs: int = 0  # one of these two is 0
    steps: int = 0
    warm_up: int = 5  # of the learning rate, in the same unit
    batch_size: int = 32  # images per process
    optimizer: str = "adamax"  # or adam, which is not in the paper
    learning_rate: float = 1e-2
    learning_rate_min: float = 1e-4
    cooldown: float = 1.0  # last part of the run, after the warm-up, over which the rate falls. Not in the paper
    weight_decay: float = 3e-4
    norm_regularisation: float = 1e-2  # lambda, of spectral norms and batch-norm scales; beside nats per image
    norm_regularisation_first: float = 0.0  # at the start, annealed to the other as the KL term grows; 0: constant
    spectral: bool = True  # regularise the spectral norms, too; without, batch-norm scales alone
    draft_portion: float = 0.0  # first part of the run, which trains phases without latents. Not in the paper
    kl_anneal_portion: float = 0.3  # part of the run, after that, over which the KL coefficient grows to 1
    kl_const_portion: float = 1e-4  # part of the run before that
    kl_const_coefficient: float = 1e-4  # and the coefficient then
    free_bits: float = 0.0  # nats of every latent channel that cost nothing. Not in the paper
    clip_gradient: float = 0.0  # largest norm of the gradient; 0: any. Not in the paper
    centre_mixture: bool = False  # start from `nvae_codec.likelihoods.mixture.centre`. Not in the paper
    average: float = 0.0  # decay of an exponential moving average of the weights; 0: none. Likewise
    # Checkpoints without a gain on held-out images after which the run ends early; it keeps the best weights, be they
    # those that it began with. 0: it goes on, and keeps the last. Not in the paper
    patience: int = 0
    smaller: float = 0.0  # part of the images that are crops of images at half their size. Likewise
    noise: float = 0.0  # part that gets noise, other in each colour. Likewise
    half_chroma: float = 0.0  # part whose colours lose half of their resolution. Likewise
    rounded_colours: float = 0.0  # part whose colours are those of a JPEG file or a Photo CD. Likewise
    seed: int = 1  # 0 ... 2^32 - 1

    def __post_init__(self) -> None:
        kinds = {bool: "true or false", str: "a string", int: "integer", float: "number"}
        for field in dataclasses.fields(self):
            value, kind = getattr(self, field.name), kinds[field.type]  # type: ignore[index]
            fits = type(value) is field.type
            if field.type is float:
                fits = type(value) in (int, float) and math.isfinite(value)
            if field.type in (int, float):
                positive = field.name in ("batch_size", "learning_rate")
                kind = f"a {'positive' if positive else 'non-negative'} {kind}"
                fits = fits and (value > 0 if positive else value >= 0)
            if not fits:
                raise ModelError(f"{field.name} must be {kind}, got {value!r}")
        if self.optimizer not in OPTIMIZERS:
            raise ModelError(f"unknown optimizer {self.optimizer!r}; known: {', '.join(OPTIMIZERS)}")
        if (self.epochs == 0) == (self.steps == 0):
            raise ModelError("either epochs or steps must be positive, and the other 0")
        if self.seed >= 2**32:
            raise ModelError(f"seed must be below 2^32, got {self.seed}")
        if self.learning_rate_min > self.learning_rate:
            raise ModelError(
                f"learning_rate_min must be at most learning_rate = {self.learning_rate}, got {self.learning_rate_min}"
            )
        if self.norm_regularisation_first and not self.norm_regularisation:
            raise ModelError("norm_regularisation must be positive where norm_regularisation_first is")
        for name in ("draft_portion", "kl_anneal_portion", "kl_const_portion", "cooldown", *self.parts):
            if getattr(self, name) > 1:
                raise ModelError(f"{name} must be at most 1, got {getattr(self, name)}")
        if self.average >= 1:
            raise ModelError(f"average must be below 1, got {self.average}")

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)

    @property
    def parts(self) -> dict[str, float]:
        """Of how many training images something is done to make them more like other images, by its name."""
        return {name: getattr(self, name) for name in CHANGES_OF_IMAGES}

    def check_suits(self, config: NVAEConfig) -> None:
        """Raises ModelError for a network that cannot be trained by this recipe."""
        for name, part in self.parts.items():
            if part and config.image_channels != 3:
                raise ModelError(f"{name} is for networks of colour images")
        if config.side(config.num_latent_scales - 1) == 1 and self.batch_size == 1:
            raise ModelError("batch norms of one point need more than one image: batch_size must be 2 or more")
        if self.draft_portion and not config.corrects:
            raise ModelError("draft_portion is for networks whose latents correct phases (num_correction_channels)")
        if self.half_chroma and config.image_size % 2:
            raise ModelError("half_chroma is for images with an even side")


@dataclass(frozen=True)
class Schedule:
    """What changes from step to step in a run by `recipe` whose epochs have `steps_per_epoch` steps."""

    recipe: Recipe
    steps_per_epoch: int

    @property
    def total_steps(self) -> int:
        return self.recipe.steps or self.recipe.epochs * self.steps_per_epoch

    def learning_rate(self, step: int) -> float:
        """Linear from 0 in every step of the warm-up, then a cosine down to the minimum, from epoch to epoch.

        With a `cooldown` below 1 the rate stays at its highest until the cosine begins. Such a run can be cut short
        anywhere before: another one goes on from there and cools down at once.

        In the release the cosine begins with what the warm-up has reached, and so falls from base * (W - 1) / W after W
        warm-up steps; so it is here in runs by epochs. In runs by steps it falls from the base.
        """
        recipe = self.recipe
        unit, length = (1, recipe.steps) if recipe.steps else (self.steps_per_epoch, recipe.epochs)
        warm_up_steps = recipe.warm_up * unit
        if step < warm_up_steps:
            return recipe.learning_rate * step / warm_up_steps
        reached = (warm_up_steps - 1) / warm_up_steps if recipe.epochs and warm_up_steps else 1
        highest = recipe.learning_rate * reached
        falling = recipe.cooldown * max(length - recipe.warm_up - 1, 1)  # steps or epochs
        progress = max(1 - (length - 1 - step // unit) / falling, 0) if falling else 0
        height = highest - recipe.learning_rate_min
        return recipe.learning_rate_min + height * (1 + math.cos(math.pi * min(progress, 1))) / 2

    def has_latents(self, step: int) -> bool:
        """Whether the step trains latents, too."""
        return step >= self.recipe.draft_portion * self.total_steps

    def kl_coefficient(self, step: int) -> float:
        """Weight of the KL term: a small constant, then linear to 1."""
        anneal = self.recipe.kl_anneal_portion * self.total_steps
        if not anneal:
            return 1.0
        before = (self.recipe.draft_portion + self.recipe.kl_const_portion) * self.total_steps
        grown = (step - before) / anneal
        return max(min(grown, 1.0), self.recipe.kl_const_coefficient)

    def norm_regularisation(self, step: int) -> float:
        """lambda: geometric from first to last, with the KL coefficient as the way gone."""
        first, last = self.recipe.norm_regularisation_first, self.recipe.norm_regularisation
        if not (first and last):
            return last
        way = self.kl_coefficient(step)
        return math.exp((1 - way) * math.log(first) + way * math.log(last))


_LARGE: dict[str, Any] = dict(batch_size=4, norm_regularisation_first=1.0)
_PHASES: dict[str, Any] = dict(
    warm_up=200,
    optimizer="adam",
    learning_rate=2e-3,
    learning_rate_min=1e-5,
    weight_decay=0.0,
    kl_anneal_portion=0.1,
    spectral=False,
)

# By preset (`nvae_codec.model.config.PRESETS`); the data set that each is for has the same name where there is one.
RECIPES: dict[str, Recipe] = {
    # Of the paper (NVAE, table 6, and the released commands).
    "mnist": Recipe(epochs=400, batch_size=200),
    "cifar10": Recipe(epochs=400),
    "celeba64": Recipe(epochs=90, batch_size=16, norm_regularisation=1e-1),
    "imagenet32": Recipe(epochs=45, warm_up=1, batch_size=24, norm_regularisation_first=1.0),
    "celebahq256": Recipe(epochs=300, **_LARGE),
    "ffhq256": Recipe(epochs=200, learning_rate=8e-3, norm_regularisation=1e-1, **_LARGE),
    # Ours.
    "cifar10-small": Recipe(
        steps=30_000,
        warm_up=200,
        batch_size=32,
        learning_rate=6e-3,
        learning_rate_min=1e-5,
        kl_anneal_portion=0.1,
        clip_gradient=2000,
        centre_mixture=True,
        spectral=False,
    ),
    # Gradients of a head of phases are nearly always clipped: Adam then sees directions alone.
    "photo": Recipe(
        steps=7_500, batch_size=16, clip_gradient=4000, half_chroma=0.25, **_PHASES | {"learning_rate": 7e-4}
    ),
    "photo-next": Recipe(
        steps=20_000,
        batch_size=8,
        draft_portion=0.4,
        clip_gradient=4000,
        average=0.999,
        smaller=0.25,
        noise=0.1,
        half_chroma=0.25,
        rounded_colours=0.1,
        **_PHASES | {"learning_rate": 3e-4, "kl_anneal_portion": 0.02},
    ),
    "tiny": Recipe(steps=8_000, batch_size=16, clip_gradient=1000, **_PHASES | {"learning_rate": 1e-3}),
    "tiny-next": Recipe(
        steps=60_000,
        batch_size=16,
        cooldown=0.3,
        draft_portion=0.4,
        clip_gradient=1000,
        average=0.999,
        **_PHASES | {"learning_rate": 1e-3, "kl_anneal_portion": 0.02},
    ),
    "mnist-small": Recipe(steps=8_000, batch_size=32, clip_gradient=20, **_PHASES),
    "mnist-nvae": Recipe(steps=50_000, warm_up=100, batch_size=16, cooldown=0.9, kl_anneal_portion=0.01, average=0.999),
    "toy": Recipe(steps=300, warm_up=20, batch_size=8, learning_rate=4e-3, learning_rate_min=1e-5, centre_mixture=True),
}
DATASET_OF = {
    "cifar10-small": "cifar10",
    "tiny": "cifar10",
    "tiny-next": "cifar10",
    "mnist-small": "mnist",
    "mnist-nvae": "mnist",
    "photo": "folder",
    "photo-next": "folder",
    "toy": "folder",
}


def fine_tuning(config: NVAEConfig) -> Recipe:
    """For a network that has been trained, on other images: at a low rate, and no further than held-out images gain.

    Its length is a placeholder: whoever uses it knows the time. The rates are guesses, not yet measured.
    """
    common: dict[str, Any] = dict(
        steps=1_000, warm_up=50, batch_size=8, kl_anneal_portion=0.0, average=0.99, patience=6
    )
    if config.has_phases:
        return Recipe(**_PHASES | common | {"learning_rate": 3e-4, "learning_rate_min": 1e-6, "clip_gradient": 4000})
    return Recipe(**common | {"learning_rate": 1e-3, "learning_rate_min": 1e-5})
