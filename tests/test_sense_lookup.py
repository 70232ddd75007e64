import pytest
import torch
from torch.nn import functional as F

from sensedict_hf.models import sense_blocks
from sensedict_hf.models.configuration_sense_embedding import SIMILARITIES
from sensedict_hf.models.sense_lookup import RaggedSenses, assign_senses, sense_cross_entropy, sense_posterior

WIDTH = 6


@pytest.fixture(params=["cpu", "padded as on a GPU", "cuda"])
def device(request, monkeypatch):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    if request.param == "padded as on a GPU":
        monkeypatch.setattr(sense_blocks, "CPU", sense_blocks.GPU)
        return "cpu"
    return request.param


def limit_blocks(monkeypatch, elements):
    for name in ("CPU", "GPU"):
        monkeypatch.setattr(sense_blocks, name, getattr(sense_blocks, name)._replace(elements=elements))


@pytest.fixture
def batch(device):
    """Tokens 0, 6 and 7 have 3 senses and 2 positions each, and so share a block; no other tokens share one."""
    sizes = torch.tensor([3, 0, 1, 40, 0, 7, 3, 3])
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
    senses = torch.randn(int(sizes.sum()), WIDTH)
    token_ids = torch.tensor([3, 0, 1, 5, -1, 3, 2, 0, 4, 3, 5, 7, 6, 6, 7])
    hidden = torch.randn(len(token_ids), WIDTH)
    return hidden.to(device), token_ids.to(device), RaggedSenses(senses.to(device), offsets.to(device))


def brute_scores(vector, own, similarity):
    if similarity == "l2":
        return -(vector - own).square().sum(-1)
    if similarity == "cosine":
        return 2 * F.cosine_similarity(vector[None], own, dim=-1)
    return own @ vector


def own_senses(token, senses):
    table, offsets = senses.table, senses.offsets
    return table[offsets[token] : offsets[token + 1]] if token >= 0 else table[:0]


@pytest.mark.parametrize("temperature", [None, 0.7])
@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("elements", [1 << 20, 60])
def test_assignment_is_that_of_a_loop_over_positions(batch, similarity, temperature, elements, monkeypatch):
    limit_blocks(monkeypatch, elements)
    hidden, token_ids, senses = batch
    senses = senses._replace(similarity=similarity)
    vectors, sense_ids = assign_senses(hidden, token_ids, senses, temperature)
    for vector, token, found, number in zip(hidden, token_ids.tolist(), vectors, sense_ids.tolist()):
        own = own_senses(token, senses)
        if not len(own):
            assert number == -1 and torch.equal(found, vector)
            continue
        scores = brute_scores(vector, own, similarity)
        assert number == int(scores.argmax())
        expected = own[number] if temperature is None else (scores / temperature).softmax(0) @ own
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_nothing_but_a_tokens_own_senses_can_win(device):
    """All scores are negative, so an empty slot with score 0 would win."""
    offsets = torch.tensor([0, 1, 5], device=device)
    table = -torch.rand(5, WIDTH, device=device) - 0.1
    hidden = torch.ones(2, WIDTH, device=device)
    tokens = torch.tensor([0, 1], device=device)
    vectors, sense_ids = assign_senses(hidden, tokens, RaggedSenses(table, offsets, "dot"))
    assert sense_ids[0] == 0 and torch.equal(vectors[0], table[0])
    assert torch.equal(vectors[1], table[1:][sense_ids[1]])


def test_first_of_equal_senses_is_chosen(device):
    senses = RaggedSenses(torch.ones(4, WIDTH, device=device), torch.tensor([0, 4], device=device))
    _, sense_ids = assign_senses(senses.table[:1], torch.tensor([0], device=device), senses)
    assert sense_ids.tolist() == [0]


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("elements", [1 << 20, 60])
def test_cross_entropy_and_its_gradient_are_those_of_torch(batch, similarity, elements, monkeypatch):
    limit_blocks(monkeypatch, elements)
    hidden, token_ids, senses = batch
    labels = torch.tensor([2, 1, -1, 6, -1, 39, 0, 0, -1, -1, 3, 2, 0, -1, 1], device=hidden.device)
    senses = senses._replace(similarity=similarity)
    ours, theirs = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    loss, choices = sense_cross_entropy(ours, token_ids, labels, senses, temperature=0.5)
    expected = torch.zeros((), device=hidden.device)
    for position, (token, label) in enumerate(zip(token_ids.tolist(), labels.tolist())):
        if label < 0:
            assert choices[position] == -1
            continue
        scores = brute_scores(theirs[position], own_senses(token, senses), similarity)
        assert choices[position] == scores.argmax()
        expected = expected + F.cross_entropy(scores[None] / 0.5, labels[position : position + 1])
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)
    (3 * loss).backward()
    (3 * expected).backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4)


def test_cross_entropy_by_hand(device):
    """Two senses at squared distances 1 and 4: -log(e^-1 / (e^-1 + e^-4)) = log(1 + e^-3)."""
    senses = RaggedSenses(torch.tensor([[1.0], [-2.0]], device=device), torch.tensor([0, 2], device=device))
    token, label = torch.tensor([0], device=device), torch.tensor([0], device=device)
    loss, _ = sense_cross_entropy(torch.zeros(1, 1, device=device), token, label, senses)
    assert loss.item() == pytest.approx(0.0485874, abs=1e-6)


@pytest.mark.parametrize(("position", "label", "token"), [(1, 3, 0), (4, 0, -1)])
def test_a_label_that_is_no_sense_is_refused(batch, position, label, token):
    hidden, token_ids, senses = batch
    labels = torch.full_like(token_ids, -1)
    labels[position] = label
    with pytest.raises(ValueError, match=f"sense id {label} of token {token} "):
        sense_cross_entropy(hidden, token_ids, labels, senses)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_table_is_scored_in_float32(batch, dtype):
    hidden, token_ids, senses = batch
    low, high = (senses._replace(table=table) for table in (senses.table.to(dtype), senses.table.to(dtype).float()))
    assert torch.equal(
        assign_senses(hidden, token_ids, low).sense_ids, assign_senses(hidden, token_ids, high).sense_ids
    )
    vectors, _ = assign_senses(hidden.to(dtype), token_ids, low)
    assert vectors.dtype == dtype


def test_unknown_similarity(batch):
    hidden, token_ids, senses = batch
    with pytest.raises(ValueError, match="'manhattan': choose one of l2, cosine, dot"):
        assign_senses(hidden, token_ids, senses._replace(similarity="manhattan"))


@pytest.mark.parametrize("temperature", [None, 0.7])
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_quantised_table_is_the_dequantised_one(batch, similarity, temperature):
    hidden, token_ids, senses = batch
    scales = senses.table.abs().amax(1) / 127
    table = (senses.table / scales[:, None]).round().to(torch.int8)
    quantised = RaggedSenses(table, senses.offsets, similarity, scales)
    dequantised = RaggedSenses(table.float() * scales[:, None], senses.offsets, similarity)
    found = assign_senses(hidden, token_ids, quantised, temperature)
    expected = assign_senses(hidden, token_ids, dequantised, temperature)
    assert torch.equal(found.sense_ids, expected.sense_ids) and torch.equal(found.vectors, expected.vectors)
    results = []
    for dictionary in (quantised, dequantised):
        own = hidden.clone().requires_grad_()
        loss, _ = sense_cross_entropy(own, token_ids, expected.sense_ids, dictionary)
        loss.backward()
        results += [loss, own.grad]
    assert torch.equal(results[0], results[2]) and torch.equal(results[1], results[3])


def test_float32_under_autocast(batch):
    hidden, token_ids, senses = batch
    labels = assign_senses(*batch).sense_ids
    expected = [
        *assign_senses(*batch, temperature=0.7),
        *sense_cross_entropy(hidden, token_ids, labels, senses),
    ]
    with torch.autocast(hidden.device.type, torch.bfloat16):
        found = [
            *assign_senses(*batch, temperature=0.7),
            *sense_cross_entropy(hidden, token_ids, labels, senses),
        ]
    assert all(map(torch.equal, found, expected))


def test_the_same_bytes_each_time(device):
    """With many positions to a token, the order of a sum could depend on threads."""
    torch.manual_seed(0)
    offsets = torch.tensor([0, 300, 500, 503, 506], device=device)
    senses = RaggedSenses(torch.randn(506, 64, device=device), offsets)
    hidden = torch.randn(5000, 64, device=device)
    token_ids = torch.randint(-1, 4, (5000,), device=device)

    def results():
        own = hidden.clone().requires_grad_()
        soft = assign_senses(hidden, token_ids, senses, temperature=1.0)
        loss, choices = sense_cross_entropy(own, token_ids, soft.sense_ids, senses)
        loss.backward()
        return [*soft, loss, choices, own.grad]

    assert all(map(torch.equal, results(), results()))


def test_nothing_to_look_up(device):
    senses = RaggedSenses(torch.randn(3, WIDTH, device=device), torch.tensor([0, 3, 3], device=device))
    empty, tokens = torch.zeros(0, WIDTH, device=device), torch.zeros(0, dtype=torch.int64, device=device)
    assert assign_senses(empty, tokens, senses).vectors.shape == (0, WIDTH)
    hidden = torch.randn(2, WIDTH, device=device, requires_grad=True)
    tokens, labels = torch.tensor([1, 0], device=device), torch.tensor([-1, -1], device=device)
    loss, choices = sense_cross_entropy(hidden, tokens, labels, senses)
    loss.backward()
    assert loss == 0 and choices.tolist() == [-1, -1] and not hidden.grad.any()


def test_memory_of_a_product_is_bounded(device, monkeypatch):
    """Only a single vector, or the senses of a single token, may exceed the bound."""
    limit_blocks(monkeypatch, 600)
    sizes = torch.tensor([1] * 30 + [3] * 30 + [200])
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)]).to(device)
    token_ids = torch.cat([torch.arange(61), torch.full((500,), 60)]).to(device)
    seen = []
    senses = RaggedSenses(torch.randn(int(sizes.sum()), WIDTH, device=device), offsets)
    for positions, own, _, _ in sense_blocks.iterate_blocks(token_ids, senses):
        assert positions.numel() * WIDTH <= 600 and positions.numel() * own.shape[1] <= 600
        assert own.numel() <= 600 or len(own) == 1
        seen += positions.flatten().tolist()
    assert sorted(place for place in seen if place < 561) == list(range(561))


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("base", [2, 8])
@pytest.mark.parametrize("elements", [1 << 24, 60])
def test_padding_changes_nothing(similarity, base, elements, monkeypatch):
    """The same senses, probabilities, loss and gradients. Some tokens have fewer senses than `top_k`."""
    sizes = torch.randint(0, 20, (30,))
    senses = RaggedSenses(torch.randn(int(sizes.sum()), WIDTH), F.pad(sizes.cumsum(0), (1, 0)), similarity)
    hidden, token_ids = torch.randn(100, WIDTH), torch.randint(-1, 30, (100,)) // torch.randint(1, 5, (100,))

    def results():
        own, table = hidden.clone().requires_grad_(), senses.table.clone().requires_grad_()
        vectors, choices = assign_senses(hidden, token_ids, senses._replace(table=table), temperature=0.7)
        (vectors.mul_(2) * torch.arange(WIDTH)).sum().backward()
        likely = sense_posterior(hidden, token_ids, senses, 0.5, top_k=3)
        loss, guesses = sense_cross_entropy(own, token_ids, likely[0], senses, 0.5, probabilities=likely[1])
        loss.backward()
        return [
            choices,
            *assign_senses(hidden, token_ids, senses),
            table.grad,
            *likely,
            loss,
            guesses,
            own.grad,
        ]

    expected = results()
    monkeypatch.setattr(sense_blocks, "CPU", sense_blocks.Blocking(elements, base))
    for found, wanted in zip(results(), expected):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_padding_makes_few_products(monkeypatch):
    """Tokens have uneven numbers of senses and of positions, as in any text."""
    ranks = torch.arange(1, 1001)
    sizes = (400 // ranks).clamp_min(1)
    offsets, token_ids = F.pad(sizes.cumsum(0), (1, 0)), (ranks - 1).repeat_interleave((200 // ranks).clamp_min(1))
    senses = RaggedSenses(torch.zeros(int(sizes.sum()), WIDTH), offsets)
    products = {}
    for blocking in (sense_blocks.CPU, sense_blocks.GPU):
        monkeypatch.setattr(sense_blocks, "CPU", blocking)
        products[blocking.base] = sum(1 for _ in sense_blocks.iterate_blocks(token_ids, senses))
    assert products[sense_blocks.GPU.base] < 10 and products[1] > 5 * products[sense_blocks.GPU.base]
