"""What a data set is, apart from its files, and what was asked for when it is opened."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nvae_codec.training.data.fit import AtLeast, FirstOf, Fit, Resized, Squares
from nvae_codec.training.data.splits import Purposes, Splits
from nvae_codec.training.data.stored import Report


@dataclass(frozen=True)
class Definition:
    """A data set that a network can be trained on.

    `layouts` are the ways in which its files may lie, in the order in which they are looked for: each gives training
    and held-out images, or None if there are no such files. It raises ImageError for files that are damaged.
    """

    name: str
    title: str
    side: int  # of its items; 0: as the network wants them
    advice: str  # what to download, and where to put it; {root} stands for the data set's folder
    layouts: "tuple[Callable[[Request], Splits | None], ...]"
    aliases: tuple[str, ...] = ()  # beside our own short name, what the NVAE release calls it
    preset: str = ""  # of network and recipe, where none has the name of the data set
    channels: int = 3  # 1: grey levels, which are binarised
    margin: int = 0  # pixels of zeros that items have more than the images, at each border
    validation_percent: float = 5.0  # held out by a hash of names, where the files say nothing else
    other_sizes: Fit | None = None  # what becomes of image files of another size; None: they are left out
    # (root, names of image files) -> what each is for, where that was published; None: the file that says so is missing
    published_split: Callable[[Path, Sequence[str]], Purposes | None] | None = None

    def for_side(self, side: int) -> "Definition":
        """The definition for networks of so many pixels: without the margin, where these take the images as stored."""
        bare = self.margin and side == self.stored_side
        return dataclasses.replace(self, side=side, margin=0) if bare else self

    @property
    def stored_side(self) -> int:
        """Side of the images in the files, 0 for any."""
        return self.side - 2 * self.margin


@dataclass(frozen=True)
class Request:
    """What `open_dataset` was asked for."""

    definition: Definition
    root: Path
    side: int
    fit: str  # crop or resize, of a data set with images of any size
    percent: float
    cache_bytes: int
    report: Report

    def image_fit(self) -> Fit:
        """What becomes of image files."""
        kind = self.definition
        if kind.side == 0:
            return AtLeast(self.side) if self.fit == "crop" else Resized(self.side)
        squares = Squares(kind.stored_side, kind.channels, kind.margin)
        return squares if kind.other_sizes is None else FirstOf(squares, kind.other_sizes)

    def report_split(self, purposes: Purposes | None, what: str) -> None:
        """Say how the files ("image files", "arrays", "images") were told apart."""
        if purposes is None:
            self.report(
                f"no names say which {what} are for training: {self.percent:g} % are held out by a hash of their names"
            )
        elif None in purposes:
            self.report(f"{purposes.count(None):,} of {len(purposes):,} {what} are for neither training nor validation")
