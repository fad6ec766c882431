"""Networks that compute on a GPU: the same integers where there is one, and no operand left behind where there is none.

Without a GPU, PyTorch's fake tensors show on which device every operation would take place; they have no values.
"""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from helpers import smooth_tiles
from terminal import failure, invoke
from torch._subclasses.fake_tensor import FakeTensorMode

from nvae_codec.codec import Codec
from nvae_codec.integer import kernels, layers, model_file
from nvae_codec.integer.convert import convert
from nvae_codec.integer.kernels import Kernels
from nvae_codec.integer.latent_model import IntegerModel
from nvae_codec.integer.network import IntegerNetwork
from nvae_codec.model.config import NVAEConfig
from nvae_codec.model.nvae import NVAE
from nvae_codec.model.presets import PRESETS

GPU = torch.device("cuda", 0)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")


def pretends_to_have_a_gpu() -> bool:
    """Whether fake tensors can be on a GPU that is not there: before PyTorch 2.9 some operations ask its driver."""
    try:
        with FakeTensorMode():
            return torch.empty(2, 3, device=GPU).t().contiguous().device == GPU
    except RuntimeError:
        return False


needs_fake_gpu = pytest.mark.skipif(not pretends_to_have_a_gpu(), reason="needs fake tensors as of PyTorch 2.9")
PHASES = dataclasses.replace(
    PRESETS["toy"],
    architecture="res_bnswish",
    num_preprocess_blocks=2,
    num_postprocess_blocks=2,
    pixel_head="phases",
    num_phase_channels=8,
    num_phase_noise_filters=6,
    num_phase_interpolations=3,
)
CONFIGS = {
    "toy": PRESETS["toy"],
    "flows": dataclasses.replace(PRESETS["toy"], num_nf=1),
    "phases": PHASES,
    "separable": dataclasses.replace(PRESETS["toy"], architecture="mbconv_sep11"),
}


def network_of(config: NVAEConfig, bits: int) -> IntegerNetwork:
    torch.manual_seed(0)
    return convert(NVAE(config).eval(), smooth_tiles(4, config.image_size), activation_bits=bits)


def run_on_fake_gpu(network: IntegerNetwork) -> list[torch.Tensor]:
    """Everything that the network computes for two tiles."""
    config, network = network.config, copy.deepcopy(network)
    matrix = layers.interpolation_matrix.__wrapped__  # whose cache would keep tensors without values
    with pytest.MonkeyPatch.context() as patch, FakeTensorMode(allow_non_fake_inputs=True) as mode:
        patch.setattr(layers, "interpolation_matrix", matrix)
        network.arithmetic.kernels = Kernels(GPU, float32=True)
        for op in network.ops():
            for name, value in vars(op).items():
                if name.startswith("_") and isinstance(value, torch.Tensor):
                    setattr(op, name, mode.from_tensor(value))
            op.move_operands()
        x = torch.empty(2, config.image_channels, config.image_size, config.image_size, dtype=torch.uint8, device=GPU)
        draft = network.draft(2, lambda lattice: lattice.of(x))
        found = network.features(draft)
        features, state = list(found), network.start(2)
        for group in range(config.num_groups):
            found += [*network.prior(group, state), *network.posterior(group, state, features)]
            z = torch.empty(found[-1].shape, dtype=torch.float64, device=GPU)
            for cell in network.flows[group]:
                found.append(cell(z))
            state = network.update(group, state, z)
        return [*found, *network.pixel_phases(state, draft)]


@needs_fake_gpu
@pytest.mark.parametrize("bits", [16, 12], ids=["16 bits", "12 bits"])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_every_operand_is_on_the_device(config, bits):
    """An operation with operands on two devices raises; all results are on the GPU."""
    results = run_on_fake_gpu(network_of(config, bits))
    assert len(results) > 4 and all(result.device == GPU for result in results)


@needs_fake_gpu
def test_an_operand_left_behind_would_be_noticed(monkeypatch):
    monkeypatch.setattr(layers.Activate, "move_operands", lambda op: None)
    with pytest.raises(RuntimeError, match="device|CPU tensor"):
        run_on_fake_gpu(network_of(PHASES, 12))


def test_a_network_moves_back():
    """To prepare it once more on another device is all that it takes; on this one nothing changes."""
    network = network_of(PHASES, 12)
    before = IntegerModel(network).digest()
    network.prepare()
    assert network.device == kernels.CPU and IntegerModel(network).digest() == before


@pytest.mark.parametrize("command", ["compress one.png", "decompress two.nvb", "eval bench one.png"])
@pytest.mark.parametrize(
    "device, why",
    [
        ("tpu", "there is no device 'tpu'; known are auto, cpu, cuda and cuda:N"),
        pytest.param(
            "cuda",
            "there is no usable GPU here",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one"),
        ),
    ],
)
def test_devices_that_are_not_there_get_a_sentence(tmp_path, monkeypatch, command, device, why):
    import PIL.Image

    monkeypatch.chdir(tmp_path)
    PIL.Image.fromarray(np.zeros((4, 4, 3), dtype=np.uint8)).save("one.png")
    (tmp_path / "two.nvb").write_bytes(b"any")
    assert why in failure(invoke(*command.split(), "--device", device))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.png", "two.nvb"]


@needs_gpu
@pytest.mark.parametrize("bits", [16, 12], ids=["16 bits", "12 bits"])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_gpu_computes_the_same_integers(config, bits):
    network = network_of(config, bits)
    expected = IntegerModel(network).digest()
    for how in kernels.candidates(GPU).values():
        if kernels.is_exact(how):
            network.prepare(how)
            assert IntegerModel(network).digest() == expected


@needs_gpu
def test_files_are_the_same_from_a_gpu_and_from_a_processor(toy_model_path):
    image = smooth_tiles(1, 64)[0, :, :50, :37].permute(1, 2, 0).numpy()
    here, there = Codec.load(toy_model_path), Codec.load(toy_model_path, GPU)
    data = here.compress(image)
    assert there.compress(image) == data
    assert np.array_equal(there.decompress(data).samples, image)
    assert np.array_equal(here.decompress(there.compress(image)).samples, image)


@needs_gpu
def test_bundled_models_pass_their_self_test_on_a_gpu():
    for path in model_file.BUNDLED.glob("*.safetensors"):
        model_file.load(path, device=GPU)
