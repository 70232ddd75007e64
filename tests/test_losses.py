"""The objective of distillation on hand-made tensors, against loops over positions in float64."""

import pytest
import torch

from sensedict_hf import SenseEmbeddingConfig, SenseEmbeddingModel
from sensedict_hf.distillation.losses import (
    SenseLabels,
    hidden_mse,
    means,
    sense_labels,
    sentence_mse,
    skd_loss,
)

OFFSETS = [0, 3, 3, 7, 8, 8]  # five tokens with 3, 0, 4, 1 and 0 senses
INPUT_IDS = [[2, 0, 3, 1, 0], [0, 2, 2, 4, 4]]
MASK = [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
OWNED = [[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]]
LABELS = [[3, 1, 0, -1, -100], [2, -100, 0, -100, -100]]  # the fifth position belongs to another row
DISTORTION = 0.7


def make_senses(similarity):
    config = SenseEmbeddingConfig(
        vocab_size=5, hidden_size=4, num_senses=8, similarity=similarity, distortion=DISTORTION, senses_dtype="float32"
    )
    senses = SenseEmbeddingModel(config)
    table = {"senses": torch.randn(8, 4), "offsets": torch.tensor(OFFSETS), "usage": torch.ones(8, dtype=torch.int64)}
    senses.load_state_dict(table)
    return senses, table["senses"].double()


def make_inputs():
    return {
        "input_ids": torch.tensor(INPUT_IDS),
        "attention_mask": torch.tensor(MASK),
        "labels": torch.tensor(LABELS),
        "owned": torch.tensor(OWNED).bool(),
    }


def positions():
    return [(row, place) for row in range(2) for place in range(5)]


def unit_length(vector):
    return vector / vector.square().sum().sqrt()


def scores(vector, own, similarity):
    if similarity == "dot":
        return own @ vector
    if similarity == "cosine":
        return 2 * torch.stack([unit_length(sense) @ unit_length(vector) for sense in own])
    return -torch.stack([(vector - sense).square().sum() for sense in own])


def own_senses(table, token):
    return table[OFFSETS[token] : OFFSETS[token + 1]]


def naive_cross_entropy(student, table, labels, similarity, temperature):
    """`labels` maps a position to the probabilities of its sense ids."""
    loss, choices = torch.zeros((), dtype=torch.float64), torch.full((2, 5), -1)
    for (row, place), wanted in labels.items():
        own = own_senses(table, INPUT_IDS[row][place])
        found = scores(student[row, place], own, similarity)
        log_probabilities = (found / (temperature * DISTORTION)).log_softmax(0)
        loss = loss - sum(probability * log_probabilities[sense] for sense, probability in wanted.items())
        choices[row, place] = found.argmax()
    return loss, choices


def hard_labels():
    return {(row, place): {LABELS[row][place]: 1.0} for row, place in positions() if LABELS[row][place] >= 0}


@pytest.mark.parametrize("similarity", ["l2", "cosine", "dot"])
@pytest.mark.parametrize("is_soft", [False, True])
def test_sense_loss_and_its_gradient(similarity, is_soft):
    senses, table = make_senses(similarity)
    student = torch.randn(2, 5, 4, requires_grad=True)
    wanted, labels = hard_labels(), sense_labels(make_inputs(), senses)
    if is_soft:  # the best sense of one position is that of the hard label, with another next to it
        wanted[0, 0], wanted[1, 0] = {3: 0.75, 1: 0.25}, {2: 0.5, 0: 0.5}
        sense_ids = torch.stack([labels.sense_ids[..., 0], torch.full((2, 5), -1)], -1)
        probabilities = torch.tensor([1.0, 0.0]).expand(2, 5, 2).clone()
        sense_ids[0, 0], probabilities[0, 0] = torch.tensor([3, 1]), torch.tensor([0.75, 0.25])
        sense_ids[1, 0], probabilities[1, 0] = torch.tensor([2, 0]), torch.tensor([0.5, 0.5])
        labels = SenseLabels(sense_ids, probabilities)
    loss, choices = senses.cross_entropy(
        make_inputs()["input_ids"], student, labels.sense_ids, 0.3, labels.probabilities
    )
    loss.backward()
    exact = student.detach().double().requires_grad_()
    expected, expected_choices = naive_cross_entropy(exact, table, wanted, similarity, 0.3)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5) and torch.equal(choices, expected_choices)
    torch.testing.assert_close(student.grad.double(), exact.grad, rtol=1e-4, atol=1e-5)


def test_labels_of_a_batch_and_of_vectors():
    """Labels are read from the batch, soft or hard, or are the senses nearest to the teacher's vectors."""
    senses, table = make_senses("l2")
    inputs, teacher = make_inputs(), torch.randn(2, 5, 4)
    inputs["labels"][0, 3] = -100  # its token has no senses
    hard = sense_labels(inputs, senses)
    assert hard.probabilities is None and hard.sense_ids.tolist() == [
        [[3], [1], [0], [-1], [-1]],
        [[2], [-1], [0], [-1], [-1]],
    ]
    soft = sense_labels(
        {**inputs, "sense_ids": torch.ones(2, 5, 2).long(), "probabilities": torch.ones(2, 5, 2).half()}, senses
    )
    assert soft.probabilities.dtype == torch.float32
    assert torch.equal(soft.sense_ids[..., 0] == 1, inputs["labels"] != -100)
    computed = sense_labels(inputs, senses, teacher, top_k=2, temperature=0.4)
    for row, place in positions():
        own = own_senses(table, INPUT_IDS[row][place])
        if inputs["labels"][row, place] == -100:
            assert computed.sense_ids[row, place].tolist() == [-1, -1]
            continue
        best = scores(teacher[row, place].double(), own, "l2").topk(min(2, len(own)))
        assert computed.sense_ids[row, place].tolist() == best.indices.tolist() + [-1] * (2 - len(own))
        probabilities = (best.values / (0.4 * DISTORTION)).softmax(0)
        found = computed.probabilities[row, place, : len(probabilities)].double()
        torch.testing.assert_close(found, probabilities, rtol=1e-4, atol=1e-5)


def test_regression_is_the_formula():
    student, teacher, counted = torch.randn(2, 5, 4), torch.randn(2, 5, 4), make_inputs()["labels"] != -100
    expected = sum(
        (student[at].double() - teacher[at].double()).square().sum().item() for at in positions() if counted[at]
    )
    assert hidden_mse(student, teacher, counted).item() == pytest.approx(expected, rel=1e-6)
    one, other = student.mean(1), teacher.mean(1)
    expected = sum(
        counted[row].sum().item() * (one[row].double() - other[row].double()).square().sum().item() for row in range(2)
    )
    assert sentence_mse(one, other, counted).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("similarity", ["l2", "cosine"])
@pytest.mark.parametrize("has_prompt", [False, True])
def test_the_sum_and_the_counts(similarity, has_prompt):
    senses, table = make_senses(similarity)
    inputs, student, teacher = make_inputs(), torch.randn(2, 5, 4), torch.randn(2, 5, 4)
    weights = {"sense": 2.0, "mse": 3.0, "sentence": 5.0}
    labels = sense_labels(inputs, senses)
    loss, counts = skd_loss(
        student, inputs, senses, weights, labels=labels, temperature=0.3, teacher=teacher, has_prompt=has_prompt
    )

    def same(vector):
        return unit_length(vector) if similarity == "cosine" else vector

    exact, target = student.double(), teacher.double()
    cross_entropy, choices = naive_cross_entropy(exact, table, hard_labels(), similarity, 0.3)
    expected = 2 * cross_entropy.item()
    error, right = 0.0, 0
    for row in range(2):
        counted = [place for place in range(5) if LABELS[row][place] != -100]
        pooled = [place for place in range(5) if (OWNED if has_prompt else MASK)[row][place]]
        for place in counted:
            expected += 3 / DISTORTION * (same(exact[row, place]) - same(target[row, place])).square().sum().item()
        one, other = (same(vectors[row, pooled].mean(0)) for vectors in (exact, target))
        expected += 5 / DISTORTION * len(counted) * (one - other).square().sum().item()
        for place in counted:
            if (choice := int(choices[row, place])) >= 0:
                sense = own_senses(table, INPUT_IDS[row][place])[choice]
                error += (same(exact[row, place]) - same(sense)).square().sum().item() / DISTORTION
                right += choice == LABELS[row][place]
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert [value.item() for value in counts[1:6]] == [6, 7, 6, 5, right]
    assert counts.error.item() == pytest.approx(error, rel=1e-5)
    logged = means(torch.stack(counts) + torch.stack(counts))
    assert logged["loss"] == pytest.approx(expected / 6, rel=1e-5) and logged["coverage"] == pytest.approx(6 / 7)
    assert logged["sense_accuracy"] == pytest.approx(right / 5)
    assert logged["quantization_error"] == pytest.approx(error / 5, rel=1e-5)


def test_a_loss_alone_and_what_it_needs():
    senses, _ = make_senses("l2")
    inputs, student, teacher = make_inputs(), torch.randn(2, 5, 4), torch.randn(2, 5, 4)
    labels = sense_labels(inputs, senses)
    mse, counts = skd_loss(student, inputs, senses, {"mse": 1.0}, teacher=teacher)
    assert counts.known == counts.right == counts.error == 0
    assert means(torch.stack(counts)).keys() == {"loss", "coverage"}
    measured, counts = skd_loss(student, inputs, senses, {"mse": 1.0}, teacher=teacher, labels=labels)
    assert mse == measured and counts.known == 5  # labels without a weight are only counted
    sense, _ = skd_loss(student, inputs, senses, {"sense": 1.0}, labels=labels)
    both, _ = skd_loss(student, inputs, senses, {"sense": 1.0, "mse": 1.0}, labels=labels, teacher=teacher)
    assert both.item() == pytest.approx((sense + mse).item(), rel=1e-6)
    with pytest.raises(ValueError, match="pass the teacher's with labels="):
        skd_loss(student, inputs, senses, {"sense": 1.0})
    with pytest.raises(ValueError, match="mse and sentence compare vectors"):
        skd_loss(student, inputs, senses, {"sentence": 1.0, "mse": 1.0}, labels=labels)


def test_a_batch_without_counted_positions():
    senses, _ = make_senses("l2")
    inputs, student = make_inputs(), torch.randn(2, 5, 4, requires_grad=True)
    inputs["labels"].fill_(-100)
    inputs["owned"].fill_(False)
    weights = {"sense": 1.0, "mse": 1.0, "sentence": 1.0}
    labels = sense_labels(inputs, senses)
    loss, counts = skd_loss(student, inputs, senses, weights, labels=labels, teacher=student.detach(), has_prompt=True)
    loss.backward()
    assert loss == 0 and not student.grad.any() and means(torch.stack(counts)) == {"loss": 0, "coverage": 0}
