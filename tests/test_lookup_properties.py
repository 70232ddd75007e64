"""The look-up against a reference in float64, with sizes, ties and extremes that hypothesis chooses."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from sensedict_hf.models import sense_blocks
from sensedict_hf.models.configuration_sense_embedding import SIMILARITIES
from sensedict_hf.models.sense_lookup import RaggedSenses, assign_senses, sense_cross_entropy, sense_posterior

SLOW_IS_FINE = dict(deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=True)


@st.composite
def batches(draw):
    """Draw vectors `[n, width]`, token ids `[n]` and a dictionary.

    Half of the tables are of small integers, so that many senses are equal or equally near.
    """
    sizes = draw(st.lists(st.sampled_from([0, 0, 1, 2, 3, 5, 17, 64, 500]), min_size=1, max_size=6))
    width, count = draw(st.integers(1, 9)), draw(st.integers(0, 12))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    is_exact = draw(st.booleans())
    scale = 1.0 if is_exact else draw(st.sampled_from([1e-4, 1.0, 300.0, 1e4]))

    def numbers(rows):
        if is_exact:
            return torch.randint(-2, 3, (rows, width), generator=generator).float()
        return torch.randn(rows, width, generator=generator) * scale

    offsets = torch.tensor([0, *sizes]).cumsum(0)
    token_ids = torch.randint(-1, len(sizes), (count,), generator=generator)
    senses = RaggedSenses(numbers(int(offsets[-1])), offsets, draw(st.sampled_from(SIMILARITIES)))
    return numbers(count), token_ids, senses, is_exact


def reference(vector, token, senses):
    """Return the senses of a token and their scores for a vector, in float64."""
    begin, end = senses.offsets[token : token + 2].tolist() if token >= 0 else (0, 0)
    vector, own = vector.double(), senses.table[begin:end].double()
    if senses.similarity == "l2":
        return own, 2 * own @ vector - own.square().sum(-1)
    if senses.similarity == "cosine":
        return own, 2 * F.normalize(own, dim=-1) @ F.normalize(vector, dim=-1)
    return own, own @ vector


def rounding(scores):
    """How far a score in float32 may be off."""
    return 1e-5 * max(1.0, float(scores.abs().max())) if len(scores) else 0.0


@pytest.mark.parametrize("blocking", ["CPU", "GPU"])
@settings(max_examples=120, **SLOW_IS_FINE)
@given(batches())
def test_the_best_sense(blocking, batch):
    hidden, token_ids, senses, is_exact = batch
    before = sense_blocks.CPU
    sense_blocks.CPU = getattr(sense_blocks, blocking)
    try:
        vectors, sense_ids = assign_senses(hidden, token_ids, senses)
    finally:
        sense_blocks.CPU = before
    for vector, token, found, number in zip(hidden, token_ids.tolist(), vectors, sense_ids.tolist()):
        own, scores = reference(vector, token, senses)
        if not len(own):
            assert number == -1 and torch.equal(found, vector)
            continue
        assert scores[number] >= scores.max() - rounding(scores)
        if is_exact:  # of equal senses the first
            assert number == int((own == own[number]).all(1).nonzero()[0])
        assert torch.equal(found.double(), own[number])


@settings(max_examples=120, **SLOW_IS_FINE)
@given(batches(), st.sampled_from([0.05, 1.0, 40.0]), st.integers(1, 20))
def test_probabilities_and_their_mean(batch, temperature, top_k):
    hidden, token_ids, senses, _ = batch
    scale = max(1.0, float(senses.table.abs().max()) ** 2 if len(senses.table) else 1.0)
    temperature *= scale  # in units of the scores, as a dictionary's temperature is
    means, _ = assign_senses(hidden, token_ids, senses, temperature)
    ids, shares = sense_posterior(hidden, token_ids, senses, temperature, top_k)
    for vector, token, mean, picked, share in zip(hidden, token_ids.tolist(), means, ids, shares):
        own, scores = reference(vector, token, senses)
        if not len(own):
            assert torch.equal(mean, vector) and (picked == -1).all() and not share.any()
            continue
        expected = (scores / temperature).softmax(0)
        torch.testing.assert_close(mean.double(), expected @ own, rtol=1e-3, atol=1e-4 * scale**0.5)
        kept = min(top_k, len(own))
        assert (picked[:kept] >= 0).all() and (picked[kept:] == -1).all() and not share[kept:].any()
        assert len(set(picked[:kept].tolist())) == kept
        best = expected[picked[:kept]]
        torch.testing.assert_close(share[:kept].double(), best / best.sum(), rtol=1e-3, atol=1e-4)
        assert best.min() >= expected.topk(kept).values.min() * (1 - 1e-3) - 1e-9


@settings(max_examples=60, **SLOW_IS_FINE)
@given(batches(), st.integers(0, 2**31))
def test_the_loss_and_its_gradient(batch, seed):
    """The gradient is that of autograd through the reference, and of small steps."""
    hidden, token_ids, senses, _ = batch
    scale = max(1.0, float(senses.table.abs().max()) ** 2 if len(senses.table) else 1.0)
    _, sizes = senses.spans(token_ids)
    chosen = torch.rand(len(token_ids), generator=torch.Generator().manual_seed(seed))
    labels = torch.where(sizes > 0, (chosen * sizes).long(), -1)
    if senses.similarity == "cosine":
        hidden = hidden + 0.1 * (hidden.norm(dim=-1, keepdim=True) == 0)  # a zero vector has no direction
    hidden = hidden.clone().requires_grad_()

    def expected_loss(states):
        losses = [states.sum() * 0]
        for vector, token, label in zip(states, token_ids.tolist(), labels.tolist()):
            if label >= 0:
                losses.append(
                    F.cross_entropy(reference(vector, token, senses)[1][None] / scale, torch.tensor([label]))
                )
        return sum(losses)

    loss, choices = sense_cross_entropy(hidden, token_ids, labels, senses, temperature=scale)
    exact = hidden.detach().double().requires_grad_()
    expected = expected_loss(exact)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-3, atol=1e-3)
    assert torch.equal(choices >= 0, labels >= 0)
    if loss.requires_grad and len(token_ids):
        loss.backward()
        expected.backward()
        tolerance = 1e-3 * max(1e-3, float(exact.grad.abs().max()))
        torch.testing.assert_close(hidden.grad.double(), exact.grad, rtol=1e-2, atol=tolerance)
        # A small step along the gradient changes the loss as the gradient says.
        step = 1e-5 * exact.grad / exact.grad.norm().clamp_min(1e-12) * exact.detach().abs().max().clamp_min(1e-6)
        with torch.no_grad():
            change = expected_loss(exact + step) - expected_loss(exact - step)
        predicted = 2 * (hidden.grad.double() * step).sum()
        torch.testing.assert_close(predicted, change, rtol=2e-2, atol=1e-9)
