"""The integer network of a second decoder, written from docs/arithmetic.md: from a model file to raw outputs.

Everything is int64. Tensors are [tiles, channels, rows, columns]; names of tensors lead the way through the topology.
"""

import json
from functools import cache
from hashlib import sha256
from pathlib import Path

import numpy as np

DTYPES = {f"I{bits}": np.dtype(f"<i{bits // 8}") for bits in (8, 16, 32, 64)}
RAW = 32767  # the largest raw output, and where tables of activations end
TENTH = 6554  # the factor 0.1 of branches, times 2**16
# Whether residual convolutions are dilated: the first and the second one of the encoder's half.
DILATIONS = {"res53_mbconv": (2, 1), "res35_mbconv": (1, 2), "res55_mbconv": (2, 2)}


def read_model(path: Path) -> tuple[dict, dict[str, np.ndarray], bytes]:
    """Configuration, tensors and fingerprint of a `.safetensors` file."""
    data = Path(path).read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    entries = json.loads(data[8:begin])
    metadata = entries.pop("__metadata__")
    assert metadata["format"] == "nvae-codec model 1"
    config, tensors = json.loads(metadata["config"]), {}
    digest = sha256(json.dumps(config, sort_keys=True).encode())
    for name, entry in sorted(entries.items()):
        first, last = entry["data_offsets"]
        dtype, stored = DTYPES[entry["dtype"]], data[begin + first : begin + last]
        digest.update(f"{name} {dtype.name} {entry['shape']}".encode() + stored)
        tensors[name] = np.frombuffer(stored, dtype).reshape(entry["shape"]).astype(np.int64)
    assert metadata["fingerprint"] == digest.hexdigest()
    return config, tensors, digest.digest()


def rounded(x: np.ndarray, bits) -> np.ndarray:
    """round(x / 2**bits), halves up; a product where bits < 0."""
    bits = np.asarray(bits)
    half = np.where(bits > 0, np.left_shift(1, np.maximum(bits - 1, 0)), 0)
    return (x << np.maximum(-bits, 0)) + half >> np.maximum(bits, 0)


def rounded_sum(a: np.ndarray, left, b: np.ndarray, right) -> np.ndarray:
    """round(a / 2**left + b / 2**right), the sum exact."""
    bits = np.maximum(np.maximum(left, right), 0)
    return rounded((a << bits - left) + (b << bits - right), bits)


def by_channel(values: np.ndarray) -> np.ndarray:
    return values.reshape(-1, 1, 1)


def quarters(x: np.ndarray) -> list[np.ndarray]:
    return [x[..., i::2, j::2] for i, j in ((0, 0), (1, 1), (0, 1), (1, 0))]


def interleave(parts: list[np.ndarray]) -> np.ndarray:
    """Of every square of four points: upper left, upper right, lower left, lower right."""
    *shape, rows, columns = parts[0].shape
    whole = np.empty((*shape, 2 * rows, 2 * columns), np.int64)
    for part, (i, j) in zip(parts, ((0, 0), (0, 1), (1, 0), (1, 1)), strict=True):
        whole[..., i::2, j::2] = part
    return whole


def upsample(x: np.ndarray) -> np.ndarray:
    return x.repeat(2, axis=2).repeat(2, axis=3)


@cache
def interpolation(points: int, bits: int) -> np.ndarray:
    """Weights [2 points, points] of Resize."""
    matrix = np.zeros((2 * points, points), np.int64)
    for i in range(2 * points):
        left, rest = divmod(i * (points - 1), 2 * points - 1)
        weight = ((rest << bits + 1) + 2 * points - 1) // (2 * (2 * points - 1))
        matrix[i, left] += (1 << bits) - weight
        if weight:
            matrix[i, left + 1] += weight
    return matrix


def correlate(x: np.ndarray, weight: np.ndarray, stride: int, dilation: int) -> np.ndarray:
    """The sum over taps of the shifted input times the tap's matrix, zeros around the input."""
    (tiles, channels, rows, columns), (outputs, inputs, side, _) = x.shape, weight.shape
    groups, reach = channels // inputs, dilation * (side // 2)
    padded = np.pad(x, ((0, 0), (0, 0), (reach, reach), (reach, reach)))
    down, across = -(-rows // stride), -(-columns // stride)
    total = np.zeros((tiles, groups, outputs // groups, down * across), np.int64)
    for i in range(side):
        for j in range(side):
            part = padded[:, :, i * dilation :: stride, j * dilation :: stride][:, :, :down, :across]
            matrix = weight[:, :, i, j].reshape(groups, outputs // groups, inputs)
            total += matrix @ part.reshape(tiles, groups, inputs, down * across)
    return total.reshape(tiles, outputs, down, across)


class Network:
    """Raw outputs and features; what they mean for latents and samples is said in `second_payload`."""

    def __init__(self, path: Path):
        self.config, self.tensors, self.fingerprint = read_model(path)
        bits = int(self.tensors["activation_bits"])
        self.largest = {16: 32767, 12: 2047}[bits]
        self.interpolation_bits = {16: 14, 12: 6}[bits]
        c = self.config
        counts = [c["num_groups_per_scale"]]  # groups of each scale, the finest first
        for _ in range(c["num_latent_scales"] - 1):
            counts.append(max(c["min_groups_per_scale"], counts[-1] // 2) if c["ada_groups"] else counts[-1])
        self.scales = [scale for scale in reversed(range(len(counts))) for _ in range(counts[scale])]
        self.groups, self.latents, self.side = len(self.scales), c["num_latent_per_group"], c["image_size"]
        self.corrects = c["num_correction_channels"] > 0
        self.levels = (c["num_phase_levels"] or c["num_preprocess_blocks"]) if c["pixel_head"] == "phases" else 0

    def group_side(self, group: int) -> int:
        return self.side >> self.config["num_preprocess_blocks"] + self.scales[group]

    def has(self, name: str) -> bool:
        return any(key.startswith(f"{name}.") for key in self.tensors)

    def clamp(self, x: np.ndarray) -> np.ndarray:
        return x.clip(-self.largest, self.largest)

    # Ops

    def output(self, name: str, total: np.ndarray, activation: str, raw: bool = False) -> np.ndarray:
        """What Conv and Activate do with their sums."""
        bias, shift = (by_channel(self.tensors[f"{name}.output.{part}"]) for part in ("bias", "shift"))
        t = rounded(total + bias, shift)
        t = t.clip(-RAW, RAW) if raw else self.clamp(t)
        if not activation:
            return t
        bits = int(self.tensors[f"{name}.output.table_bits"])
        table = self.tensors[f"activation_tables.{activation}_{bits}"]
        return table[t + len(table) // 2]

    def conv(self, name, x, activation="", *, stride=1, dilation=1, raw=False) -> np.ndarray:
        return self.output(name, correlate(x, self.tensors[f"{name}.weight"], stride, dilation), activation, raw)

    def activate(self, name: str, x: np.ndarray, activation: str) -> np.ndarray:
        return self.output(name, x * by_channel(self.tensors[f"{name}.weight"]), activation)

    def activate_conv(self, name: str, x: np.ndarray, activation: str = "", raw: bool = False) -> np.ndarray:
        """Elu, then a convolution."""
        return self.conv(f"{name}.1", self.activate(f"{name}.0", x, "elu"), activation, raw=raw)

    def shifts(self, name: str) -> list[np.ndarray]:
        return [by_channel(self.tensors[f"{name}.{side}_shift"]) for side in ("left", "right")]

    def sum(self, name: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        left, right = self.shifts(name)
        return self.clamp(rounded_sum(a, left, b, right))

    def residual(self, name: str, skip: np.ndarray, branch: np.ndarray, gate: np.ndarray | None) -> np.ndarray:
        left, right = self.shifts(name)
        if self.largest == RAW:
            factor = TENTH if gate is None else gate * TENTH
        else:
            d = max(int(right.min()) - 11, 0)
            factor, right = rounded((np.int64(1 << 14) if gate is None else gate) * TENTH, 15 + d), right - d
        return self.clamp(rounded_sum(skip, left, branch * factor, right))

    def resize(self, x: np.ndarray) -> np.ndarray:
        rows, columns = (interpolation(points, self.interpolation_bits) for points in x.shape[2:])
        return rounded(rows @ x @ columns.T, 2 * self.interpolation_bits)

    def gate(self, name: str, x: np.ndarray) -> np.ndarray:
        """Squeeze and excite."""
        points, gain = x.shape[2] * x.shape[3], int(self.tensors[f"{name}.mean.gain"])
        share = (2**25 + points) // (2 * points)
        mean = self.clamp(rounded(x.sum(axis=(2, 3), keepdims=True) * share, 24 - gain))
        return self.conv(f"{name}.excite", self.conv(f"{name}.squeeze", mean, "relu"), "sigmoid")

    # Cells

    def cell(self, name: str, x: np.ndarray) -> np.ndarray:
        """A residual cell. What stands in its skip and branch says whether it goes up or down."""
        skip, down, up = x, self.has(f"{name}.skip.activate"), self.has(f"{name}.skip.conv")
        if down:
            parts = quarters(self.activate(f"{name}.skip.activate", x, "swish"))
            skip = np.concatenate([self.conv(f"{name}.skip.convs.{i}", part) for i, part in enumerate(parts)], axis=1)
        if up:
            skip = self.conv(f"{name}.skip.conv", self.resize(x))
        branch = self.branch(name, x, down, up)
        gate = self.gate(f"{name}.gate", branch) if self.has(f"{name}.gate") else None
        return self.residual(f"{name}.join", skip, branch, gate)

    def branch(self, name: str, x: np.ndarray, down: bool, up: bool) -> np.ndarray:
        """The ops of a cell's branch, of which Upsample alone has a number but no tensors."""
        architecture = self.config["architecture"]
        at = {int(key.split(".")[name.count(".") + 2]) for key in self.tensors if key.startswith(f"{name}.branch.")}
        elu = architecture in ("res_elu", "res_bnelu")
        in_encoder = name.startswith(("preprocess", "encoder"))
        dilations = list(DILATIONS.get(architecture, (1, 1)) if in_encoder else (1, 1))
        for number in range(max(at) + 1):
            op = f"{name}.branch.{number}"
            if number not in at:
                assert up
                x = upsample(x)
            elif self.tensors[f"{op}.weight"].ndim == 1:
                x = self.activate(op, x, "elu" if elu else "swish")
            else:
                activation = "swish" if f"{op}.output.table_bits" in self.tensors else ""
                side = self.tensors[f"{op}.weight"].shape[2]
                stride = 2 if down and side > 1 else 1
                down = down and side == 1
                dilation = dilations.pop(0) if side == 3 else 1
                x = self.conv(op, x, activation, stride=stride, dilation=dilation)
        return x

    def cells(self, name: str, x: np.ndarray) -> np.ndarray:
        number = 0
        while self.has(f"{name}.{number}"):
            x, number = self.cell(f"{name}.{number}", x), number + 1
        return x

    # Latents

    def features(self, samples: np.ndarray, scores: np.ndarray | None) -> list[np.ndarray]:
        """Of all groups, coarsest first, from the b high bits of samples."""
        x = self.image_input(samples)
        x = self.cells("preprocess", self.conv("stem", x if scores is None else np.concatenate([x, scores], axis=1)))
        found: list[np.ndarray] = []
        for group in reversed(range(self.groups)):
            x = self.cells(f"encoder_cells.{group}", x)
            found.append(x if group else self.activate_conv("encoder_top", x, "elu"))
            if group and self.scales[group - 1] != self.scales[group]:
                x = self.cell(f"encoder_downs.{self.scales[group]}", x)
        return found[::-1]

    def start(self, name: str, tiles: int, side: int) -> np.ndarray:
        value = self.tensors[name]
        return np.broadcast_to(value, (tiles, len(value), side, side))

    def begin(self, tiles: int) -> tuple[np.ndarray, np.ndarray]:
        """The stream, and the raw prior of the first group."""
        side = self.group_side(0)
        return self.start("start_op.value", tiles, side), np.zeros((tiles, 2 * self.latents, side, side), np.int64)

    def posterior(self, group: int, stream: np.ndarray, prior: np.ndarray, feature: np.ndarray) -> np.ndarray:
        """Raw means, then raw log sigmas."""
        if group:
            combined = self.conv(f"encoder_combiners.{group - 1}", stream)
            feature = self.sum(f"encoder_sums.{group - 1}", feature, combined)
        raw = self.conv(f"posterior_heads.{group}", feature, raw=True)
        return (raw + prior).clip(-RAW, RAW) if group and self.config["res_dist"] else raw

    def update(self, group: int, stream: np.ndarray, latents: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """The stream after a group's latents are known, and the raw prior of the next group."""
        if self.has("vanilla_stem"):
            return self.conv("vanilla_stem", latents), None
        stream = self.conv(f"decoder_combiners.{group}", np.concatenate([stream, latents], axis=1))
        if group + 1 == self.groups:
            return stream, None
        if self.scales[group + 1] != self.scales[group]:
            stream = self.cell(f"decoder_ups.{self.scales[group + 1]}", stream)
        stream = self.cells(f"decoder_cells.{group}", stream)
        return stream, self.activate_conv(f"prior_heads.{group}", stream, raw=True)

    def flow(self, name: str, latents: np.ndarray) -> np.ndarray:
        """The shifts of one flow cell."""
        x = self.conv(f"{name}.depthwise", self.conv(f"{name}.first", latents, "elu"), "elu")
        return self.conv(f"{name}.last", self.activate(f"{name}.activate", x, "elu"), raw=True)

    # Pixels

    def image_input(self, samples: np.ndarray) -> np.ndarray:
        bits = 1 if self.config["likelihood"] == "bernoulli" else self.config["num_x_bits"]
        return 2 * samples - (2**bits - 1)

    def pixels(self, stream: np.ndarray) -> np.ndarray:
        """Parameters of all pixels, without phases."""
        return self.activate_conv("image_head", self.cells("postprocess", stream), raw=True)

    def lattices(self) -> list[tuple[int, int, int]]:
        """Row, column and stride of the pixels of every phase."""
        found = [(0, 0, 1 << self.levels)]
        for level in reversed(range(self.levels)):
            h = 1 << level
            found += [(h, h, 2 * h), (0, h, 2 * h), (h, 0, 2 * h)]
        return found

    def phase(self, name: str, features: np.ndarray, planes: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Features and parameters."""
        number = 0
        while self.has(cell := f"{name}.cells.{number}"):
            x = self.activate(f"{cell}.branch.0", features, "swish")
            x = self.conv(f"{cell}.branch.2", self.conv(f"{cell}.branch.1", x, "swish"))
            features, number = self.sum(f"{cell}.join", features, x), number + 1
        parts = [features, self.activate(f"{name}.activate", features, "swish")]
        if planes:
            parts.append(self.conv(f"{name}.interpolate", np.concatenate(planes, axis=1)))
        return features, self.conv(f"{name}.head", np.concatenate(parts, axis=1), raw=True)

    def phases(self, stream: np.ndarray, known, scores):
        """Features and parameters of each phase. Samples `known` of the lattice (y, x, s) are asked for when it has
        been given. Returns the scores of all pixels, if the model has scores: `scores` makes them of the parameters and
        samples of a phase."""
        stride = 1 << self.levels
        if self.corrects:
            features = self.start("phases.stem.value", len(stream), self.side // stride)
        else:
            features = self.activate_conv("phases.stem", stream)
        features, parameters = self.phase("phases.first", features, [])
        yield features, parameters
        has_scores = self.config["phase_scores"]
        score = scores(parameters, known((0, 0, stride))) if has_scores else None
        for level in range(self.levels):
            if level:
                features = upsample(features)
            last = level == self.levels - 1 and not self.corrects
            features, score = yield from self.level(level, features, known, score, scores if has_scores else None, last)
        return score

    def level(self, number: int, features: np.ndarray, known, score, scores, last: bool):
        """Three phases; returns features and scores for the next level."""
        name, stride = f"phases.levels.{number}", 1 << self.levels - number
        half = stride // 2
        planes, errors = [self.image_input(known((0, 0, stride)))], [score]
        features = self.conv(f"{name}.combine", np.concatenate([features, planes[0]], axis=1))
        for index, lattice in enumerate(((half, half, stride), (0, half, stride), (half, 0, stride))):
            if index:
                addition = self.conv(f"{name}.additions.{index - 1}", planes[-1])
                features = self.sum(f"{name}.sums.{index - 1}", features, addition)
            if scores:
                feedback = f"{name}.feedback.{index}"
                features = self.sum(f"{feedback}.sum", features, self.conv(f"{feedback}.conv", errors[-1]))
            if self.has(filters := f"{name}.noise_filters.{index}"):
                noise = self.conv(f"{filters}.filters", np.concatenate(planes, axis=1), "swish")
                features = self.sum(f"{filters}.sum", features, self.conv(f"{filters}.last", noise))
            features, parameters = self.phase(f"{name}.phases.{index}", features, planes)
            yield features, parameters
            if index < 2 or (scores and not last):
                samples = known(lattice)
                planes.append(self.image_input(samples))
                errors.append(scores(parameters, samples) if scores else None)
        if not scores or last:
            return features, None
        before, centres, rows, columns = errors
        return features, interleave([before, rows, columns, centres])

    def correction_streams(self, stream: np.ndarray) -> list[np.ndarray]:
        """What the stream says to each of the last six phases."""
        finest = [self.activate_conv("corrections.stem", stream, "swish")]
        number = 0
        while self.has(up := f"corrections.ups.{number}"):
            finest.append(self.conv(f"{up}.1", upsample(finest[-1]), "swish"))
            number += 1
        return [self.conv(f"corrections.streams.{i}", finest[i // 3 - 2]) for i in range(6)]

    def correction(self, number: int, features: np.ndarray, stream: np.ndarray) -> np.ndarray:
        """Raw corrections of one of the last six phases."""
        name = f"corrections.of_phases.{number}"
        x = self.conv(f"{name}.from_features", self.activate(f"{name}.activate", features, "swish"))
        x = self.activate(f"{name}.hidden", self.sum(f"{name}.sum", x, stream), "swish")
        return self.conv(f"{name}.last", x, raw=True)
