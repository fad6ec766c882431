"""Evaluation: bounds, published and codable likelihood, statistics of batch norms."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from training_runs import RECIPE, TINY, Interrupted, checkpoint, dataset, images_of, norms, stats, trained_a_little

from nvae_codec.likelihoods import mixture
from nvae_codec.model.norm import MOMENTUM
from nvae_codec.model.nvae import NVAE, default_noise
from nvae_codec.training.checkpoint import load_network
from nvae_codec.training.data.batches import fixed_batch
from nvae_codec.training.evaluation import estimate_batch_norm, evaluate

pytestmark = pytest.mark.thorough


def test_validation_is_what_evaluation_of_the_checkpoint_gives(whole):
    """Of the average, where there is one."""
    result = evaluate(load_network(whole), fixed_batch(dataset().validation, 5), batch_size=RECIPE.batch_size)
    reported = stats(whole)[-1]["validation_bits_per_dim"]
    assert reported == pytest.approx(result.bits(result.negative_elbo), rel=1e-5)
    other = load_network(whole)
    other.load_state_dict(checkpoint(whole)["model"])
    result = evaluate(other, fixed_batch(dataset().validation, 5), batch_size=RECIPE.batch_size)
    assert reported != pytest.approx(result.bits(result.negative_elbo), rel=1e-5)


@pytest.mark.parametrize("pairs", [0, 1])
def test_one_importance_sample_is_the_weight_itself(pairs):
    model, images = trained_a_little(dataclasses.replace(TINY, num_nf=pairs)), images_of(*range(256), count=5)
    result = evaluate(model, images, batch_size=2, seed=3)
    generator, weights, negative, reconstruction, kl = torch.Generator().manual_seed(3), [], [], [], []
    with torch.no_grad():
        for batch in images.split(2):
            x = batch.float() / 255
            elbo = model(x, default_noise(x, generator))
            weights.append(elbo.log_likelihood + elbo.log_p - elbo.log_q)
            negative.append(elbo.negative)
            reconstruction.append(-elbo.log_likelihood)
            kl.append(elbo.kl)
    assert (result.images, result.samples) == (5, 1)
    assert result.importance_weighted == pytest.approx(-torch.cat(weights).mean().item(), rel=1e-5)
    assert result.negative_elbo == pytest.approx(torch.cat(negative).mean().item(), rel=1e-5)
    assert result.reconstruction == pytest.approx(torch.cat(reconstruction).mean().item(), rel=1e-5)
    assert result.kl == pytest.approx(torch.cat(kl).mean(dim=0).tolist(), rel=1e-4)
    assert result.negative_elbo == pytest.approx(result.reconstruction + sum(result.kl), rel=1e-5)
    if pairs:  # its KL is that of the draw
        assert result.importance_weighted == pytest.approx(result.negative_elbo, rel=1e-5)
    else:
        assert result.importance_weighted != pytest.approx(result.negative_elbo, rel=1e-6)
    assert result.bits(result.negative_elbo) == pytest.approx(result.negative_elbo / (math.log(2) * 192))


def test_the_bound_of_three_samples():
    """-log of the mean weight of each image; by hand."""
    model, images = trained_a_little(), images_of(*range(256), count=2)
    generator, weights = torch.Generator().manual_seed(0), []
    x = images.float() / 255
    with torch.no_grad():
        for _ in range(3):
            weights.append(model(x, default_noise(x, generator)).log_weight.double())
    largest = torch.stack(weights).amax(dim=0)
    mean = torch.stack([(weight - largest).exp() for weight in weights]).mean(dim=0)
    result = evaluate(model, images, samples=3)
    assert result.importance_weighted == pytest.approx(-(largest + mean.log()).mean().item(), rel=1e-7)


def test_the_bound_tightens_with_more_samples():
    """On the average over draws, by Jensen's inequality; and the draws' mean is above it whatever they are."""
    model, images = trained_a_little(), images_of(*range(256), count=3)
    bounds = [
        np.mean([evaluate(model, images, samples=samples, seed=seed).importance_weighted for seed in range(6)])
        for samples in (1, 4, 16)
    ]
    assert bounds[0] > bounds[1] > bounds[2]
    for seed in range(3):
        result = evaluate(model, images, samples=8, seed=seed)
        assert result.importance_weighted < result.negative_elbo  # with flows, both are of the same draws


def test_evaluation_is_repeatable_and_reports_its_progress():
    model, images, calls = trained_a_little(), images_of(*range(256), count=5), []
    first = evaluate(model, images, samples=2, batch_size=3, progress=lambda *values: calls.append(values))
    assert calls == [(3, 10), (6, 10), (8, 10), (10, 10)]
    assert evaluate(model, images, samples=2, batch_size=3) == first
    assert evaluate(model, images, samples=2, batch_size=3, seed=1).negative_elbo != first.negative_elbo
    assert not model.training and all(math.isfinite(value) for value in (first.negative_elbo, *first.kl))


def wide(model: NVAE) -> NVAE:
    """With broad components in the middle of the range: no bin is narrow, no mass is small."""
    with torch.no_grad():
        head = model.image_head[1]
        head.log_gain.fill_(-20)
        mixture.centre(head.bias)
    return model


def test_published_and_codable_likelihood():
    """They differ by the value 254 alone where no bin is narrow."""
    model = wide(trained_a_little())
    for values, differs in (((0, 1, 100, 253, 255), False), ((100, 254), True)):
        result = evaluate(model, images_of(*values), samples=2)
        for codable, published in (
            (result.negative_elbo, result.negative_elbo_published),
            (result.importance_weighted, result.importance_weighted_published),
        ):
            assert (published < codable - 1) if differs else (published == pytest.approx(codable, rel=1e-4))
    fewer = dataclasses.replace(TINY, num_x_bits=5)
    result = evaluate(wide(trained_a_little(fewer)), images_of(0, 100, 254, 255))
    assert result.negative_elbo_published == pytest.approx(result.negative_elbo, rel=1e-4)
    # Narrow bins, far away: there the published one is the density, cut off.
    model = trained_a_little()
    with torch.no_grad():
        model.image_head[1].bias[2::3] -= 9
    result = evaluate(model, images_of(0, 100, 255))
    assert result.negative_elbo_published != pytest.approx(result.negative_elbo, rel=1e-6)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_other_heads_have_one_likelihood(likelihood):
    config = dataclasses.replace(TINY, likelihood=likelihood, image_channels=1 if likelihood == "bernoulli" else 3)
    result = evaluate(
        trained_a_little(config),
        images_of(*((0, 1) if likelihood == "bernoulli" else (0, 128, 254, 255)), config=config),
    )
    assert result.negative_elbo_published == result.negative_elbo
    assert result.importance_weighted_published == result.importance_weighted
    scored = 64 if likelihood == "bernoulli" else 192
    assert result.bits(1.0) == pytest.approx(1 / (math.log(2) * scored))


def test_estimated_statistics_are_plain_means():
    model = trained_a_little()
    seen = {name: [] for name in norms(model)}
    hooks = [
        module.register_forward_pre_hook(lambda module, inputs, name=name: seen[name].append(inputs[0]))
        for name, module in norms(model).items()
    ]
    batches = [images_of(*range(256), count=count) for count in (4, 4, 4, 4, 4)]
    others = {name: tensor.clone() for name, tensor in model.state_dict().items() if "running" not in name}
    estimate_batch_norm(model, iter(batches), seed=3)
    for hook in hooks:
        hook.remove()
    for name, module in norms(model).items():
        assert len(seen[name]) == 5
        means = torch.stack([x.mean(dim=(0, 2, 3)) for x in seen[name]])
        variances = torch.stack([x.var(dim=(0, 2, 3)) for x in seen[name]])
        torch.testing.assert_close(module.running_mean, means.mean(dim=0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(module.running_var, variances.mean(dim=0), rtol=1e-4, atol=1e-5)
        assert module.momentum == MOMENTUM
    assert not model.training
    changed = [name for name, tensor in others.items() if not torch.equal(model.state_dict()[name], tensor)]
    assert all(name.endswith("num_batches_tracked") for name in changed)


def test_estimating_statistics_that_fails_leaves_the_momentum():
    model = trained_a_little()

    def failing():
        yield images_of(*range(256))
        yield images_of(*range(256))
        raise Interrupted

    with pytest.raises(Interrupted):
        estimate_batch_norm(model, failing())
    assert {module.momentum for module in norms(model).values()} == {MOMENTUM} and not model.training


def test_statistics_of_a_few_steps_are_improved(whole):
    """After twenty steps the running ones have hardly left where they began."""
    model = load_network(whole)
    images = fixed_batch(dataset().training, 10)
    before = evaluate(model, images).negative_elbo
    estimate_batch_norm(model, [images] * 3)
    assert evaluate(model, images).negative_elbo < before
