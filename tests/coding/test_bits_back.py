"""Tiles on stacks, with a toy model: several stacks at once, REC groups, chains, and files of version 1."""

import numpy as np
import pytest
from accounting import MEMORY, account, decoded_chains
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_model import PhasedToyModel, ToyModel

from nvae_codec.bitstreams.content import GREY, RGB, TileBatch
from nvae_codec.coding.ans import RESERVE_WORDS, Stack, generator_words
from nvae_codec.coding.bits_back import Tiles, decode, encode
from nvae_codec.coding.chains import Search, decode_chains, encode_chains
from nvae_codec.coding.latents import IntegerNormal, half_width, posterior_on_grid
from nvae_codec.colour.detect import find_space, planes_of
from nvae_codec.colour.spaces import SPACES
from nvae_codec.errors import BitstreamError, DriftError
from nvae_codec.tiling import Layout, cut, tile_sizes

SEARCH = Search(MEMORY)


def toy_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    ramp = np.add.outer(np.arange(height) * 2, np.arange(width))[..., None] + np.array([0, 20, 40])
    return (ramp % 256 + random.normal(0, 3, (height, width, 3))).clip(0, 255).astype(np.uint8)


def tiles_of(image: np.ndarray, side: int = 8) -> Tiles:
    sizes = tile_sizes(*image.shape[:2], side)
    mode = GREY if image.ndim == 2 else find_space(image)
    planes = image if mode == GREY else planes_of(image, mode)
    repeats = 3 // cut(image, side).shape[1]
    return Tiles(
        *(np.repeat(cut(each, side), repeats, axis=1) for each in (image, planes)),
        Layout(sizes, np.full(len(sizes), mode)),
    )


def toy_tiles(height: int, width: int, seed: int = 0, grey: bool = False) -> Tiles:
    image = toy_image(height, width, seed)
    return tiles_of(image[..., 0] if grey else image)


def mixed_tiles(seed: int = 0) -> Tiles:
    """Grey and colour, of all colour spaces, whole and partial tiles, in no order: 18."""
    luma, cb, cr = toy_image(7, 17, seed).reshape(-1, 3).T.astype(int) + [[60], [90], [70]]
    from_elsewhere = [tiles_of(space.rgb(luma, cb, cr).T.reshape(7, 17, 3)) for space in SPACES.values()]
    tiles = Tiles.join(
        [toy_tiles(17, 10, seed), toy_tiles(9, 11, seed + 1, grey=True), *from_elsewhere, toy_tiles(8, 16, seed + 2)]
    )
    assert set(tiles.layout.modes) == {GREY, RGB, *SPACES}
    order = np.random.default_rng(seed).permutation(tiles.layout.num_tiles)
    return tiles.part(order)


# Tile batches


def said(encoded) -> tuple[list[int], list[float]]:
    """Of batches, the groups that REC codes and the bits that they need."""
    return [each.rec_groups for each in encoded], [each.needed_bits for each in encoded]


@pytest.mark.parametrize("kind", [ToyModel, PhasedToyModel])
@pytest.mark.parametrize("words", [0, 3, 8, 9, 10, 11, 12, 13, 14, 20, 200])
def test_decoding_undoes_encoding_word_for_word(words, kind):
    """Of several stacks that hold little or much, and so have other REC groups."""
    model, amounts = kind(), [words, 0, 11, 600, 9]
    parts = [
        mixed_tiles(seed).part(slice(start, end))
        for seed, (start, end) in enumerate([(0, 1), (2, 5), (1, 2), (0, 12), (7, 8)])
    ]
    stacks = [Stack.seeded(amount) for amount in amounts]
    rec_groups, needed = said(encode(model, stacks, parts, MEMORY))
    assert rec_groups[1] == model.num_groups and rec_groups[3] == 0
    for groups, bits, amount in zip(rec_groups, needed, amounts, strict=True):
        assert groups == 0 or Stack.seeded(amount).available_bits < bits
        assert groups == model.num_groups or amount > RESERVE_WORDS
    decoded = decode(model, stacks, [part.layout for part in parts], rec_groups, [MEMORY] * 5)
    for part, samples, stack, amount in zip(parts, decoded, stacks, amounts, strict=True):
        assert np.array_equal(samples, part.samples)
        assert np.array_equal(stack.words(), generator_words(amount)[::-1])


def test_a_stack_decides_how_many_groups_take_rec():
    """The finest first, and none without need."""
    model, tile = ToyModel(), toy_tiles(8, 8)
    found = {words: encode(model, [Stack.seeded(words)], [tile], MEMORY)[0].rec_groups for words in range(40)}
    assert set(found.values()) == {0, 1, 2}
    assert found[0] == 2 and found[39] == 0
    assert sorted(found.values(), reverse=True) == list(found.values())


@pytest.mark.parametrize("kind", [ToyModel, PhasedToyModel])
def test_stacks_do_not_see_each_other(kind):
    """Words and decoded tiles are the same whatever is coded beside them, and however the others are."""
    model, amounts = kind(), [7, 0, 600]
    parts = [mixed_tiles(3).part(slice(0, 2)), mixed_tiles(4), toy_tiles(20, 20, 5, grey=True)]
    together = [Stack.seeded(amount) for amount in amounts]
    rec_groups, needed = said(encode(model, together, parts, MEMORY))
    assert rec_groups == [1, 2, 0]
    words = [stack.words() for stack in together]
    for number, (part, amount) in enumerate(zip(parts, amounts, strict=True)):
        alone = Stack.seeded(amount)
        assert said(encode(model, [alone], [part], MEMORY)) == ([rec_groups[number]], [needed[number]])
        assert np.array_equal(alone.words(), words[number])
    for chosen in ([0], [2, 0], [1, 2]):
        stacks = [Stack(words[number]) for number in chosen]
        decoded = decode(
            model,
            stacks,
            [parts[number].layout for number in chosen],
            [rec_groups[number] for number in chosen],
            [MEMORY] * len(chosen),
        )
        for number, samples, stack in zip(chosen, decoded, stacks, strict=True):
            assert np.array_equal(samples, parts[number].samples)
            assert np.array_equal(stack.words(), generator_words(amounts[number])[::-1])


def test_stacks_may_have_trellises_of_different_sizes():
    model, tile = ToyModel(), toy_tiles(8, 8)
    stacks = [Stack(), Stack()]
    for stack, memory in zip(stacks, (8, 11), strict=True):
        encode(model, [stack], [tile], memory)
    assert not np.array_equal(stacks[0].words(), stacks[1].words())
    decoded = decode(model, stacks, [tile.layout] * 2, [2, 2], [8, 11])
    assert all(np.array_equal(samples, tile.samples) for samples in decoded)
    assert [stack.height for stack in stacks] == [0, 0]


def test_tiles_that_take_rec_throughout_need_no_posterior():
    """To decode a tile of which all groups take REC takes one half of the network."""

    class Half(ToyModel):
        def features(self, draft):
            raise AssertionError("not needed")

        posterior = features

    tile, stack = mixed_tiles().part(slice(4, 7)), Stack()
    assert encode(ToyModel(), [stack], [tile], MEMORY)[0].rec_groups == 2
    assert np.array_equal(decode(Half(), [stack], [tile.layout], [2], [MEMORY])[0], tile.samples)
    assert stack.height == 0


class Watched(ToyModel):
    """Notes the offsets that every group was given."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def update(self, group, state, offsets):
        self.seen.append((group, offsets))
        return super().update(group, state, offsets)


@pytest.mark.parametrize("words", [0, 600])
def test_padding_and_inactive_channels_are_the_priors_mean(words):
    """On both sides."""
    model, tile = Watched(), toy_tiles(3, 5)
    stack = Stack.seeded(words)
    rec_groups, _ = said(encode(model, [stack], [tile], MEMORY))
    decode(model, [stack], [tile.layout], rec_groups, [MEMORY])
    encoded, decoded = model.seen[:2], model.seen[2:]
    for (group, offsets), (same_group, same) in zip(encoded, decoded, strict=True):
        assert group == same_group and np.array_equal(offsets, same)
    (_, coarse), (_, fine) = encoded
    assert not fine[:, 1].any() and np.count_nonzero(fine[:, [0, 2], :2, :3]) > 8
    # 3 x 5 pixels reach into 1 x 2 of the 2 x 2 latents, and into 2 x 3 of the 4 x 4.
    assert coarse[0, :, 0].all() and not coarse[0, :, 1].any()
    assert not fine[0, :, 2:].any() and not fine[0, :, :, 3:].any()


def test_flows_find_zeros_where_nothing_is_coded():
    class Looking(ToyModel):
        looks = 0

        def flow(self, group, state, points, coded):
            channels = np.isin(np.arange(points.shape[1]), self.active(group))
            assert points.any() and not points[~(coded[:, None] & channels[:, None, None])].any()
            self.looks += 1
            return super().flow(group, state, points, coded)

        unflow = flow

    model, parts = Looking(), [toy_tiles(3, 5, 1), toy_tiles(5, 3, 2)]
    stacks = [Stack.seeded(0), Stack.seeded(600)]
    rec_groups, _ = said(encode(model, stacks, parts, MEMORY))
    assert rec_groups == [2, 0] and model.looks == 2
    decode(model, stacks, [part.layout for part in parts], rec_groups, [MEMORY] * 2)
    assert model.looks == 4


def test_inactive_channels_have_no_say():
    class Otherwise(ToyModel):
        def prior(self, group, state):
            return self._changed(group, super().prior(group, state))

        def posterior(self, group, state, features):
            return self._changed(group, super().posterior(group, state, features))

        def _changed(self, group, normal):
            if group == 1:
                normal.mean[:, 1], normal.sigma[:, 1] = 12345, 67
            return normal

    tiles = mixed_tiles()
    ((words, tile_batches, _),) = encode_chains(ToyModel(), [tiles], 2, SEARCH)
    ((same_words, same_batches, _),) = encode_chains(Otherwise(), [tiles], 2, SEARCH)
    assert np.array_equal(words, same_words) and tile_batches == same_batches


def test_a_group_may_be_inactive_altogether():
    class Inactive(ToyModel):
        def active(self, group):
            return np.arange(2) if group else np.zeros(0, dtype=np.int64)

    tiles = mixed_tiles()
    coded = encode_chains(Inactive(), [tiles], 2, SEARCH)
    assert np.array_equal(decoded_chains(Inactive(), coded, [tiles.layout])[0], tiles.samples)


# Chains


@pytest.mark.parametrize("shape", [(1, 1), (1, 30), (30, 1), (8, 8), (9, 8), (17, 31), (64, 40)])
@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("joint_tiles", [1, 4])
def test_images_of_any_size_come_back(shape, grey, joint_tiles):
    model, tiles = ToyModel(), toy_tiles(*shape, grey=grey)
    ((words, tile_batches, _),) = coded = encode_chains(model, [tiles], joint_tiles, SEARCH)
    assert sum(each.tiles for each in tile_batches) == tiles.layout.num_tiles
    assert all(1 <= each.tiles <= joint_tiles and 0 <= each.rec_groups <= 2 for each in tile_batches)
    assert tile_batches[0] == TileBatch(1, 2)  # from an empty stack nothing can be drawn
    assert np.array_equal(decoded_chains(model, coded, [tiles.layout])[0], tiles.samples)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 26), st.integers(1, 26), st.booleans()), min_size=1, max_size=5),
    st.integers(1, 20),
    st.integers(0, 1000),
)
def test_chains_of_any_images_come_back(images, joint_tiles, seed):
    model = ToyModel()
    chains = [toy_tiles(height, width, seed + number, grey) for number, (height, width, grey) in enumerate(images)]
    coded = encode_chains(model, chains, joint_tiles, SEARCH)
    layouts = [chain.layout for chain in chains]
    for chain, samples in zip(chains, decoded_chains(model, coded, layouts), strict=True):
        assert np.array_equal(samples, chain.samples)
    # Each by itself, whatever was encoded beside it.
    for chain, one in zip(chains, coded, strict=True):
        assert np.array_equal(decoded_chains(model, [one], [chain.layout])[0], chain.samples)


def test_tile_batches_are_as_large_as_the_stack_can_feed():
    """Joint tiles are shared among the chains, until some have come to their end."""
    chains = [toy_tiles(64, 64), toy_tiles(24, 24), toy_tiles(1, 40)]
    coded = encode_chains(ToyModel(), chains, 12, SEARCH)
    large, small, narrow = ([each.tiles for each in tile_batches] for _, tile_batches, _ in coded)
    assert sum(large) == 64 and sum(small) == 9 and sum(narrow) == 5
    assert large[:3] == [1, 4, 4] and large[3] in (6, 12) and large[-2] == 12
    assert small == [1, 4, 4]
    assert len(narrow) > 2  # its tiles leave too little for all at once
    for _, tile_batches, _ in coded:
        assert [each.rec_groups for each in tile_batches] == [2] + [0] * (len(tile_batches) - 1)


def test_full_tiles_are_not_thought_to_need_as_little_as_the_partial_ones_before():
    tiles = Tiles.join([*(toy_tiles(2, 2, seed) for seed in range(6)), toy_tiles(40, 24)])
    ((_, tile_batches, _),) = encode_chains(ToyModel(), [tiles], 12, SEARCH)
    assert (
        max(each.tiles for each in tile_batches if each.rec_groups) == 1
        and max(each.tiles for each in tile_batches) > 4
    )


@pytest.mark.parametrize("joint_tiles", [1, 2])
def test_words_do_not_depend_on_chains_coded_at_the_same_time(joint_tiles):
    """With as many joint tiles for each, and as long as all of them have tiles left."""
    model, chains = ToyModel(), [toy_tiles(40, 40, 1), toy_tiles(40, 40, 2), toy_tiles(40, 40, 3, grey=True)]
    together = encode_chains(model, chains, 3 * joint_tiles, SEARCH)
    assert len({len(tile_batches) for _, tile_batches, _ in together}) == 1
    for chain, (words, tile_batches, _) in zip(chains, together, strict=True):
        ((alone, same_batches, _),) = encode_chains(model, [chain], joint_tiles, SEARCH)
        assert np.array_equal(words, alone) and tile_batches == same_batches


def test_single_tiles_have_the_same_words_beside_any_chains():
    model, chain = ToyModel(), toy_tiles(30, 30)
    ((alone, *_),) = encode_chains(model, [chain], 1, SEARCH)
    beside, _ = encode_chains(model, [chain, toy_tiles(9, 50)], 1, SEARCH)
    assert np.array_equal(alone, beside[0])


@pytest.mark.parametrize("first", [0, 1, 5, 6, 24, 25])
def test_what_was_coded_first_can_be_left_out(first):
    model, chains = ToyModel(), [toy_tiles(40, 40), toy_tiles(20, 20, 1)]
    coded = encode_chains(model, chains, 6, SEARCH)
    words, tile_batches, _ = zip(*coded, strict=True)
    calls = []
    samples, others = decode_chains(
        model,
        [Stack(each) for each in words],
        tile_batches,
        [chain.layout for chain in chains],
        [MEMORY] * 2,
        [first, 2],
        calls.append,
    )
    assert np.array_equal(samples[first:], chains[0].samples[first:])
    assert np.array_equal(others[2:], chains[1].samples[2:])
    ends = np.cumsum([each.tiles for each in tile_batches[0]])
    skipped = max([0, *ends[ends <= first]])
    assert not samples[:skipped].any() and (first < 6 or skipped)
    assert np.array_equal(samples[skipped:], chains[0].samples[skipped:])
    starts = np.append(0, np.cumsum([each.tiles for each in tile_batches[1]]))
    assert calls == sorted(calls) and calls[-1] == 25 - skipped + 9 - max(starts[starts <= 2])


def test_progress_counts_tiles():
    model, chains, calls = ToyModel(), [toy_tiles(40, 40), toy_tiles(20, 20, 1)], []
    coded = encode_chains(model, chains, 4, SEARCH, calls.append)
    assert calls == sorted(set(calls)) and calls[0] == 2 and calls[-1] == 34
    calls.clear()
    decoded_chains(model, coded, [chain.layout for chain in chains], progress=calls.append)
    assert calls == sorted(set(calls)) and calls[-1] == 34


def test_the_best_of_several_searches_is_taken():
    model, tile = ToyModel(), toy_tiles(8, 8)
    rate_factors = (0.6, 1.0, 1.4, 2.5)
    sizes = {}
    for rate_factor in rate_factors:
        stack = Stack()
        encode(model, [stack], [tile], MEMORY, rate_factor)
        sizes[rate_factor] = stack.bits
    assert len(set(sizes.values())) == 4
    ((words, tile_batches, _),) = coded = encode_chains(model, [tile], 1, Search(MEMORY, rate_factors))
    assert Stack(words).bits == min(sizes.values())
    assert np.array_equal(decoded_chains(model, coded, [tile.layout])[0], tile.samples)
    # Of every chain for itself, and where nothing takes REC any more, too.
    chains = [toy_tiles(40, 40, 1), toy_tiles(3, 30, 2), tile]
    coded = encode_chains(model, chains, 3, Search(MEMORY, rate_factors))
    assert np.array_equal(coded[2][0], words)
    for chain, samples in zip(chains, decoded_chains(model, coded, [chain.layout for chain in chains]), strict=True):
        assert np.array_equal(samples, chain.samples)


# What a chain costs


@pytest.mark.parametrize("joint_tiles", [1, 16])
def test_a_chain_of_100_tiles_costs_its_negative_elbo(joint_tiles, monkeypatch):
    bits = account(ToyModel(), toy_tiles(80, 80), joint_tiles, Search(12), monkeypatch)
    assert 1 <= bits["REC tiles"] <= 3
    # With the latents of REC groups at what their index costs, to a five hundredth; then with what that is too much.
    expected = bits["negative ELBO"] - bits["REC latents"] + bits["index"]
    assert abs(bits["words"] / expected - 1) < 0.002
    assert bits["words"] / bits["negative ELBO"] < 1.002 + 0.3 * bits["index"] / bits["negative ELBO"]
    assert 0.7 * bits["index"] < bits["REC latents"] < bits["index"] < 0.01 * bits["negative ELBO"]


# What must be noticed


class Drifting(ToyModel):
    """Posteriors that differ by 2**-14: the pixels still come out right."""

    def posterior(self, group, state, features):
        exact = super().posterior(group, state, features)
        return IntegerNormal(exact.mean + 1, exact.sigma)


def test_a_model_that_drifts_is_noticed():
    tiles = toy_tiles(24, 24)
    coded = encode_chains(ToyModel(), [tiles], 4, SEARCH)
    with pytest.raises((DriftError, BitstreamError)):
        decoded_chains(Drifting(), coded, [tiles.layout])


def test_a_chain_of_several_that_does_not_end_empty_is_noticed():
    model, chains = ToyModel(), [toy_tiles(24, 24), toy_tiles(16, 16, 1)]
    (words, tile_batches, _), second = encode_chains(model, chains, 4, SEARCH)
    layouts = [chain.layout for chain in chains]
    longer = np.concatenate([np.array([7, 7], dtype=np.uint32), words])
    with pytest.raises(DriftError, match="not in the state"):
        decoded_chains(model, [(longer, tile_batches, None), second], layouts)
    with pytest.raises(DriftError, match="not in the state"):
        decoded_chains(model, [second, (longer, tile_batches, None)], layouts[::-1])


def test_another_trellis_or_other_tile_batches_are_noticed():
    """Samples are wrong, or there is an error."""
    model, tiles = ToyModel(), toy_tiles(24, 24)
    ((words, tile_batches, _),) = encode_chains(model, [tiles], 4, SEARCH)
    exchanged = tuple(TileBatch(each.tiles, 2 - each.rec_groups) for each in tile_batches)
    merged = (TileBatch(tile_batches[0].tiles + tile_batches[1].tiles, tile_batches[0].rec_groups), *tile_batches[2:])
    for memory, other in ((9, tile_batches), (MEMORY, exchanged), (MEMORY, merged)):
        try:
            assert not np.array_equal(decoded_chains(model, [(words, other)], [tiles.layout], memory)[0], tiles.samples)
        except (DriftError, BitstreamError):
            pass


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 300),
    st.integers(0, 2**32 - 1),
    st.lists(st.tuples(st.integers(1, 4), st.integers(0, 2)), min_size=1, max_size=4),
    st.integers(8, 12),
    st.booleans(),
)
def test_random_words_end_in_samples_or_an_error(count, seed, tile_batches, memory, grey):
    """Nothing else, and not never."""
    random = np.random.default_rng(seed)
    tile_batches = [TileBatch(*each) for each in tile_batches]
    number = sum(each.tiles for each in tile_batches)
    mode = GREY if grey else random.choice([RGB, *SPACES])
    layout = Layout(random.integers(1, 9, (number, 2)), np.full(number, mode))
    words = random.integers(1, 2**32, count, dtype=np.uint32)
    try:
        (samples,) = decode_chains(ToyModel(), [Stack(words)], [tile_batches], [layout], [memory])
    except (DriftError, BitstreamError):
        return
    assert samples.shape == (number, 3, 8, 8) and samples.dtype == np.uint8


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["flip", "cut", "cut below", "more"]))
def test_damaged_words_end_in_other_samples_or_an_error(place, damage):
    model, tiles = ToyModel(), toy_tiles(16, 24)
    ((words, tile_batches, _),) = encode_chains(model, [tiles], 2, SEARCH)
    place, words = place % len(words), words.copy()
    if damage == "flip":
        words[place] ^= 1 << place % 32
    damaged = {
        "flip": words,
        "cut": words[:place],
        "cut below": words[place + 1 :],
        "more": np.append(words, np.uint32(place + 1)),
    }[damage]
    try:
        samples = decoded_chains(model, [(damaged, tile_batches)], [tiles.layout])[0]
    except (DriftError, BitstreamError):
        return
    assert not np.array_equal(samples, tiles.samples)


# Version 1 of the file format


class AllActive(ToyModel):
    """Channels could not be inactive then."""

    def active(self, group):
        return np.arange(self.group_shape(group)[0])


def grid_parameters(prior: IntegerNormal, posterior: IntegerNormal, channels: np.ndarray, step: int):
    part = slice(None), channels
    return *posterior_on_grid(prior.part(*part), posterior.part(*part), step), half_width(step)
