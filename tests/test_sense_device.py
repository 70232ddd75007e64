"""Tables that stay in host memory. On a machine without a GPU, models are moved to the meta device instead."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_models import build_once
from transformers import AutoModel, AutoModelForSequenceClassification

from sensedict_hf import (
    SenseEmbeddingConfig,
    SenseEmbeddingModel,
    SKDStudentConfig,
    SKDStudentModel,
)
from sensedict_hf.models import placement, sense_lookup
from sensedict_hf.models.configuration_sense_embedding import SIMILARITIES
from sensedict_hf.models.placement import place_model
from sensedict_hf.models.sense_blocks import fetch_senses
from sensedict_hf.models.sense_lookup import (
    RaggedSenses,
    assign_senses,
    look_up,
    sense_cross_entropy,
    sense_posterior,
    store_senses,
)

ELSEWHERE = ["meta", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


@pytest.fixture(params=["float16", "int8"])
def senses(bert, texts, request):
    return build_once(bert, texts, budget=90, senses_dtype=request.param)


@pytest.fixture
def folder(senses, tmp_path):
    senses.config.sense_device = "cpu"
    senses.save_pretrained(tmp_path / "senses")
    return tmp_path / "senses"


def devices(senses):
    return {name: tensor.device.type for name, tensor in senses.state_dict().items()}


def apart(senses, device):
    """The device of each tensor if only the offsets have moved with the model."""
    return {name: "cpu" if name != "offsets" else device for name in senses.state_dict()}


@pytest.mark.parametrize("device", ELSEWHERE)
def test_senses_stay_where_they_are(senses, device):
    senses.config.sense_device = "cpu"
    table = senses.table
    assert devices(senses.to(device)) == apart(senses, device)
    assert senses.device.type == device and senses.table is table
    assert senses.to(device, torch.bfloat16).table is table and senses.half().table is table
    senses.config.sense_device = None
    assert set(devices(senses.to(device)).values()) == {device}


@pytest.mark.parametrize("device", ELSEWHERE)
def test_senses_of_a_student_stay_where_they_are(bert, senses, texts, tmp_path, device):
    student = SKDStudentModel.from_teacher(bert, senses, sense_device="cpu")
    assert student.config.sense_config.sense_device == "cpu" and senses.config.sense_device is None
    expected = student.encode(texts)
    student.save_pretrained(tmp_path)
    for auto in (AutoModel, AutoModelForSequenceClassification):
        model = auto.from_pretrained(tmp_path)
        inside = next(module for module in model.modules() if isinstance(module, SenseEmbeddingModel))
        assert devices(inside) == apart(senses, "cpu")
        model.to(device)
        assert devices(inside) == apart(senses, device) and model.device.type == device
        model = auto.from_pretrained(tmp_path, device_map=device)
        inside = next(module for module in model.modules() if isinstance(module, SenseEmbeddingModel))
        assert devices(inside) == apart(senses, device) and model.device.type == device
    again = AutoModel.from_pretrained(tmp_path)
    assert torch.equal(again.encode(texts), expected)
    if device != "meta":
        torch.testing.assert_close(again.to(device).encode(texts), expected, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(again.cpu().encode(texts), expected)


@pytest.mark.parametrize("device", ELSEWHERE)
def test_where_it_is_loaded(folder, device):
    """The saved setting holds, unless another one is given when the model is loaded."""
    assert json.loads((folder / "config.json").read_text())["sense_device"] == "cpu"
    loaded = AutoModel.from_pretrained(folder, device_map=device)
    assert loaded.config.sense_device == "cpu" and devices(loaded) == apart(loaded, device)
    # The first versions of transformers 5 cannot load a buffer with device_map="meta".
    device_map = None if device == "meta" else device
    loaded = AutoModel.from_pretrained(folder, sense_device=None, device_map=device_map).to(device)
    assert set(devices(loaded).values()) == {device}
    AutoModel.from_pretrained(folder, sense_device=None).save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text()).get("sense_device") is None
    assert devices(AutoModel.from_pretrained(folder, sense_device="cpu").to(device)) == apart(loaded, device)


@pytest.mark.parametrize("plan", ["auto", "sequential", {"": "cpu", "backbone.encoder.layer.1": "disk"}])
def test_a_plan_for_several_devices(bert, senses, texts, tmp_path, plan):
    """The modules are distributed; the tables are neither counted nor moved."""
    student = SKDStudentModel.from_teacher(bert, senses, sense_device="cpu")
    student.save_pretrained(tmp_path / "student")
    model = AutoModel.from_pretrained(tmp_path / "student", device_map=plan, offload_folder=tmp_path / "offload")
    places = {name: tensor.device.type for name, tensor in model.state_dict().items()}
    assert places.pop("backbone.encoder.layer.1.output.dense.weight") == ("cpu" if isinstance(plan, str) else "meta")
    assert devices(model.senses) == apart(senses, "cpu") and len(model.senses.table) == len(senses.table)
    torch.testing.assert_close(model.encode(texts), student.encode(texts))


def test_a_plan_does_not_count_the_tables(senses):
    """The table, which may be larger than the memory of a device, is empty while the plan is made."""
    senses.config.sense_device = "cpu"
    (module,) = {module for module, _ in senses._all_host_tensors()}
    sizes = []
    plan = placement.infer_device_map
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(placement, "infer_device_map", lambda *given: sizes.append(len(module.table)) or plan(*given))
        place_model(senses, "auto", senses._all_host_tensors())
    assert sizes == [0] and len(senses.table) == senses.config.num_senses


def test_from_a_student_and_back(bert, senses, texts, tmp_path):
    SKDStudentModel.from_teacher(bert, senses).save_pretrained(tmp_path)
    student = AutoModel.from_pretrained(tmp_path, sense_device="cpu")
    assert student.config.sense_device == "cpu" and devices(student.to("meta").senses) == apart(senses, "meta")
    student = AutoModel.from_pretrained(tmp_path)
    assert student.config.sense_device is None and set(devices(student.to("meta").senses).values()) == {"meta"}


@pytest.mark.parametrize("device", ELSEWHERE)
def test_made_on_a_device(senses, device):
    """A model that is built on the meta device takes no host memory either."""
    senses.config.sense_device = "cpu"
    with torch.device(device):
        model = SenseEmbeddingModel(senses.config)
    assert devices(model) == ({name: "meta" for name in devices(model)} if device == "meta" else apart(model, device))
    assert devices(SenseEmbeddingModel(senses.config).to_dtype("float32").to(device))["senses"] == "cpu"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="looks at the memory of a Linux process")
@pytest.mark.slow
def test_the_table_stays_mapped(tmp_path):
    """Neither loading a model onto another device nor moving it there reads a table of 200 MB into memory."""
    config = SenseEmbeddingConfig(
        vocab_size=10, hidden_size=1000, num_senses=100_000, senses_dtype="float16", sense_device="cpu"
    )
    model = SenseEmbeddingModel(config)
    model.offsets[1:] = 100_000
    model.save_pretrained(tmp_path)
    code = """if True:
        import sys, sensedict_hf
        from pathlib import Path
        from transformers import AutoModel
        def anonymous():
            return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) / 1000
        before = anonymous()
        models = [AutoModel.from_pretrained(sys.argv[1], device_map=place) for place in (None, "meta")]
        models = [model.half().to("meta") for model in models]
        print(anonymous() - before, *(model.table.device for model in models))"""
    output = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    ).stdout
    assert float(output.split()[0]) < 50 and output.split()[1:] == ["cpu", "cpu"]


def test_what_is_refused(folder):
    with pytest.raises(ValueError, match="unknown sense_device 'disk': choose 'cpu' to keep .* or None"):
        SenseEmbeddingConfig(sense_device="disk")
    with pytest.raises(ValueError, match="unknown sense_device 'cuda'"):
        AutoModel.from_pretrained(folder, sense_device="cuda")
    with torch.device("meta"), pytest.raises(ValueError, match="unknown sense_device 'gpu'"):
        SKDStudentModel(SKDStudentConfig(sense_device="gpu"))
    with pytest.raises(ValueError, match="learn_senses=True with sense_device='cpu': .* choose sense_device=None"):
        AutoModel.from_pretrained(folder, learn_senses=True)


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("device", ["cpu", ELSEWHERE[1]])
def test_senses_that_are_fetched(similarity, dtype, device, monkeypatch):
    """The results are the same as with a table on the device of the vectors. On a CPU the copy is forced."""
    sizes = torch.tensor([3, 0, 1, 40, 0, 7, 3, 3])
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
    table, scales = store_senses(torch.randn(int(sizes.sum()), 6), dtype)
    token_ids = torch.tensor([3, 0, 1, 5, -1, 3, 2, 0, 4, 3, 5, 7, 6, 6, 7], device=device)
    hidden = torch.randn(len(token_ids), 6, device=device)
    labels = torch.tensor([2, 1, -1, 6, -1, 39, 0, 0, -1, -1, 3, 2, 0, -1, 1], device=device)

    def results(senses):
        own = hidden.clone().requires_grad_()
        loss, choices = sense_cross_entropy(own, token_ids, labels, senses, 0.5)
        loss.backward()
        found = [assign_senses(hidden, token_ids, senses, temperature) for temperature in (None, 0.7)]
        vectors = look_up(token_ids[:2], labels[:2], senses)
        posterior = sense_posterior(hidden, token_ids, senses, 0.7, top_k=2)
        return [loss, choices, own.grad, vectors, *posterior, *found[0], *found[1]]

    senses = RaggedSenses(table, offsets, similarity, scales)
    scales_there = None if scales is None else scales.to(device)
    expected = results(RaggedSenses(table.to(device), offsets.to(device), similarity, scales_there))
    monkeypatch.setattr(sense_lookup, "to_one_device", fetch_senses)
    assert all(map(torch.equal, results(senses), expected))
    assert all(map(torch.equal, results(senses._replace(offsets=offsets.to(device))), expected))
    assert len(fetch_senses(token_ids, senses)[1].table) == int(sizes.sum())
    assert len(fetch_senses(token_ids[:2], senses)[1].table) == 43


def test_a_loop_through_the_model(senses, bert, texts, monkeypatch):
    """forward, posterior and cross-entropy work with the senses of the batch's tokens alone."""
    batch = bert.tokenizer(texts[:8], padding=True, return_tensors="pt")
    ids, mask = batch["input_ids"], batch["attention_mask"]
    hidden = bert.last_hidden_state(ids, mask)

    def results():
        chosen = [senses(ids, hidden, mask, assignment) for assignment in ("hard", "soft")]
        labels = chosen[0].sense_ids
        return [*chosen[0].to_tuple(), *chosen[1].to_tuple(), *senses.posterior(ids, hidden, mask, top_k=2)] + [
            *senses.cross_entropy(ids, hidden, labels)
        ]

    expected = results()
    monkeypatch.setattr(sense_lookup, "to_one_device", fetch_senses)
    assert all(map(torch.equal, results(), expected))
