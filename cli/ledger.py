"""The ledger that `compress` opens of each file that it has made."""

from dataclasses import asdict
from pathlib import Path
from textwrap import indent
from typing import TYPE_CHECKING

from nvae_codec.bitstreams.container import unpack
from nvae_codec.bitstreams.content import MAX_IMAGES, MAX_SIDE
from nvae_codec.errors import ImageError, about, enough_memory

from .progress import progress_bar
from .reports import LedgerReport

if TYPE_CHECKING:
    from nvae_codec.codec import Codec


def check_colour(shape: tuple[int, ...]) -> None:
    """Refuse samples of the shape [H, W], for when there is a float network."""
    if len(shape) == 2:
        raise ImageError("a float network has no likelihood for grey images; leave out --float-network")


class Ledgers:
    """Measures files; raises ModelError if the float network is not the one that the codec's model was made of."""

    def __init__(self, codec: "Codec", float_network: Path | None, draws: int, quiet: bool):
        from nvae_codec.training.export import load_float_network

        self.codec, self.draws, self.quiet = codec, draws, quiet
        self.float_network = None if float_network is None else load_float_network(float_network, codec)

    def __call__(self, name: str, data: bytes) -> tuple[dict, str]:
        """Of a file: the key that its report gets, null if the network has no part in it, and a table for its line."""
        if not any(chunk.neural_images for chunk in unpack(data, max_pixels=MAX_IMAGES * MAX_SIDE**2).chunks):
            return {"ledger": None}, "\n  no ledger, as nothing of it is coded by the network"
        from nvae_codec.rate.ledger import ledger

        from ..eval.tables import ledger_table

        failure = about("the file was made, but its ledger cannot be")
        with failure, enough_memory(), progress_bar(f"ledger of {name}", "tile", self.quiet) as progress:
            entry = ledger(self.codec, data, self.float_network, draws=self.draws, progress=progress)
        return {"ledger": asdict(LedgerReport(**entry.to_dict()))}, "\n" + indent(ledger_table(entry), "  ")
