import numpy as np
import pytest
import torch
from tiny_models import make_model
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging

from sensedict_hf import (
    SKDStudentModel,
    Teacher,
    build_sense_dictionary,
    evaluate_classification,
    evaluate_retrieval,
    evaluate_similarity,
    evaluate_token_classification,
)
from sensedict_hf.evaluation.scores import few_shot_draws, find_entities, score_ranking, sense_agreement
from sensedict_hf.evaluation.tasks import classification_task, retrieval_task, similarity_task, token_task
from sensedict_hf.models.encoding import pool


@pytest.fixture
def data():
    """Three noisy classes in eight dimensions: 90 rows to train on, 60 to test on."""
    generator = np.random.default_rng(0)
    labels = np.arange(150) % 3
    vectors = np.eye(3, 8)[labels] + 0.6 * generator.normal(size=(150, 8)) + 0.3
    return vectors[:90], labels[:90].tolist(), vectors[90:], labels[90:].tolist()


def test_few_shot_draws_are_balanced_and_differ(data):
    draws = few_shot_draws(data[1], 8, 10)
    assert len(draws) == 10 and len({tuple(draw) for draw in draws}) == 10
    for draw in draws:
        assert np.bincount(np.asarray(data[1])[draw]).tolist() == [8, 8, 8] and len(set(draw.tolist())) == 24


def test_scores(data):
    scores = evaluate_classification(*data)
    assert 0.5 < scores["few_shot"] < 1 and 0 < scores["few_shot_std"] < 0.2 and 0.6 < scores["full"] < 1
    scaled = evaluate_classification(data[0] * np.linspace(1, 9, 90)[:, None], data[1], data[2] * 5, data[3])
    assert scaled == pytest.approx(scores)  # the lengths of vectors do not matter
    assert (
        evaluate_classification(
            data[0], ["abc"[label] for label in data[1]], data[2], ["abc"[label] for label in data[3]]
        )
        == scores
    )
    assert evaluate_classification(torch.tensor(data[0]), data[1], torch.tensor(data[2]), data[3]) == scores


def test_errors(data):
    with pytest.raises(ValueError, match="train: 90 embeddings but 89 labels"):
        evaluate_classification(data[0], data[1][1:], *data[2:])
    with pytest.raises(ValueError, match=r"labels that the training set lacks: \[7\]"):
        evaluate_classification(*data[:3], [7] * 60)


@pytest.mark.slow
def test_classification_agrees_with_mteb(data):
    """MTEB's own classification task gives the same score for the same embeddings."""
    mteb = pytest.importorskip("mteb")
    from datasets import Dataset, DatasetDict
    from mteb.abstasks.classification import AbsTaskClassification
    from mteb.models.model_meta import ModelMeta

    class Task(AbsTaskClassification):
        metadata = mteb.TaskMetadata(
            name="Planted",
            dataset={"path": "none/none", "revision": "none"},
            description="test",
            reference=None,
            type="Classification",
            category="t2c",
            modalities=["text"],
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="accuracy",
            date=None,
            domains=None,
            task_subtypes=None,
            license=None,
            annotations_creators=None,
            dialect=None,
            sample_creation=None,
            bibtex_citation="",
        )

        def load_data(self, **_):
            splits = {"train": data[:2], "test": data[2:]}
            rows = {
                name: Dataset.from_dict({"text": [f"{name} {i}" for i in range(len(labels))], "label": labels})
                for name, (_, labels) in splits.items()
            }
            self.dataset, self.data_loaded = DatasetDict(rows), True

    def normalized(x):
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    class Lookup:
        mteb_model_meta = ModelMeta.create_empty({"name": "test/lookup", "revision": "none"})

        def encode(self, inputs, **_):
            texts = [text for batch in inputs for text in batch["text"]]
            vectors = {"train": data[0], "test": data[2]}
            return normalized(np.stack([vectors[text.split()[0]][int(text.split()[1])] for text in texts]))

        def similarity(self, first, second):
            raise NotImplementedError  # MTEB asks for the method and never calls it in classification

        similarity_pairwise = similarity

    task = Task()
    task.load_data()
    scores = task.evaluate(Lookup(), split="test", encode_kwargs={}, prediction_folder=None)["default"]
    ours = evaluate_classification(*data)
    assert ours["few_shot"] == pytest.approx(scores["accuracy"])


def test_similarity_is_of_cosines_and_their_order():
    angles = np.array([0.1, 1.5, 0.4, 1.0])
    lengths = np.array([[3.0], [0.2], [1], [7]])  # do not matter
    second = lengths * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    first = np.tile([2.0, 0.0], (4, 1))
    assert evaluate_similarity(first, second, [5, 0, 4, 1])["spearman"] == pytest.approx(1)
    assert evaluate_similarity(first, second, [5, 0, 1, 4])["spearman"] == pytest.approx(0.8)
    halves = (1e-5 * second).astype(np.float16)  # their squares would be 0
    assert evaluate_similarity(first, halves, [5, 0, 4, 1])["spearman"] == pytest.approx(1)
    assert evaluate_similarity(first, second, 10 * np.cos(angles) - 3) == pytest.approx({"spearman": 1, "pearson": 1})
    with pytest.raises(ValueError, match="4 and 4 embeddings but 3 scores"):
        evaluate_similarity(first, second, [1, 2, 3])
    with pytest.raises(ValueError, match="scores are all equal"):
        evaluate_similarity(first, second, [1, 1, 1, 1])


def test_retrieval_by_hand():
    corpus = np.array([[1.0, 0.0], [0.0, 5.0], [3.0, 3.0]])
    queries = np.array([[9.0, 1.0], [1.0, 9.0]])  # rankings 0, 2, 1 and 1, 2, 0
    scores = evaluate_retrieval(queries, corpus, [[2], [1, 0]])
    second = (1 + 0.5) / (1 + 1 / np.log2(3))
    assert scores == pytest.approx(
        {"ndcg_at_10": (1 / np.log2(3) + second) / 2, "accuracy_at_1": 0.5, "recall_at_10": 1}
    )
    with pytest.raises(ValueError, match="2 query embeddings but 1 lists"):
        evaluate_retrieval(queries, corpus, [[2]])
    for wrong in ([3], [-1]):
        with pytest.raises(ValueError, match=r"query 1 has the relevant documents .*: name one or more of 0 to 2"):
            evaluate_retrieval(queries, corpus, [[0], wrong])
    with pytest.raises(ValueError, match=r"the corpus lacks: \['d9'\]"):
        retrieval_task({"id": ["d1"], "text": ["a"]}, {"text": ["b"], "relevant": [["d9"]]})
    with pytest.raises(ValueError, match="two documents with the id '1'"):
        retrieval_task({"id": [1, "1"], "text": ["a", "b"]}, {"text": ["q"], "relevant": [[1]]})


def test_retrieval_is_that_of_trec_eval():
    pytrec_eval = pytest.importorskip("pytrec_eval")
    generator = np.random.default_rng(0)
    queries, corpus = generator.normal(size=(30, 4)), generator.normal(size=(50, 4))
    relevant = [generator.choice(50, size=generator.integers(1, 15), replace=False).tolist() for _ in queries]
    cosines = queries @ corpus.T / np.linalg.norm(queries, axis=1)[:, None] / np.linalg.norm(corpus, axis=1)
    judged = {str(query): {str(row): 1 for row in rows} for query, rows in enumerate(relevant)}
    run = {
        str(query): {str(row): float(score) for row, score in enumerate(scores)}
        for query, scores in enumerate(cosines)
    }
    results = pytrec_eval.RelevanceEvaluator(judged, {"ndcg_cut.10", "recall.10", "P.1"}).evaluate(run).values()
    ours = evaluate_retrieval(queries, corpus, relevant)
    for name, theirs in {"ndcg_at_10": "ndcg_cut_10", "recall_at_10": "recall_10", "accuracy_at_1": "P_1"}.items():
        assert ours[name] == pytest.approx(np.mean([result[theirs] for result in results]))


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("O O", set()),
        ("B-a I-a O B-a", {(0, 0, 2, "a"), (0, 3, 4, "a")}),
        ("B-a B-a", {(0, 0, 1, "a"), (0, 1, 2, "a")}),  # neighbours
        ("B-a I-b I-b", {(0, 0, 1, "a"), (0, 1, 3, "b")}),  # another type begins another entity
        ("I-a I-a O I-b", {(0, 0, 2, "a"), (0, 3, 4, "b")}),  # as in conlleval, I after O begins an entity
        ("B-creative-work I-creative-work", {(0, 0, 2, "creative-work")}),
    ],
)
def test_find_entities(tags, expected):
    assert find_entities([tags.split()]) == expected


def test_token_classification():
    """The vector of a word is the one-hot vector of its tag, so that the scores follow from the vectors given."""
    vector_of = dict(zip(["O", "B-a", "I-a", "B-b"], np.eye(4)))
    train = [["O", "B-a", "I-a"], ["B-b", "O"], ["B-a", "O"]]
    test = [["B-a", "I-a", "O"], ["O"], ["B-b", "B-a", "I-a"]]

    def features(sentences):
        return [np.stack([vector_of[tag] for tag in tags]) for tags in sentences]

    perfect = evaluate_token_classification(features(train), train, features(test), test)
    assert perfect == {"f1": 1, "precision": 1, "recall": 1}
    seen = [["B-a", "I-a", "O"], ["O"], ["B-b", "B-a", "O"]]  # an entity that is too short is wrong
    scores = evaluate_token_classification(features(train), train, features(seen), test)
    assert scores == pytest.approx({"f1": 2 / 3, "precision": 2 / 3, "recall": 2 / 3})
    nothing = evaluate_token_classification(features(train), train, features([["O"] * 3, ["O"], ["O"] * 3]), test)
    assert nothing == {"f1": 0, "precision": 0, "recall": 0}
    with pytest.raises(ValueError, match="train: embeddings of 2 sentences but tags of 3"):
        evaluate_token_classification(features(train)[:2], train, features(test), test)
    with pytest.raises(ValueError, match="test: sentence 1 has 2 embeddings but 1 tags"):
        evaluate_token_classification(features(train), train, features([test[0], ["O", "O"], test[2]]), test)
    with pytest.raises(ValueError, match="test: tag 'S-a' of sentence 1 is not BIO"):
        evaluate_token_classification(features(train), train, features(test), [test[0], ["S-a"], test[2]])
    with pytest.raises(ValueError, match="train: tag 'E-a' of sentence 1 is not BIO"):
        evaluate_token_classification(features(train), [train[0], ["E-a", "X"], train[2]], features(test), test)
    outside = [["O"] * len(tags) for tags in train]
    with pytest.raises(ValueError, match=r"train: the only tags are \['O'\]: give sentences with words that are"):
        evaluate_token_classification(features(train), outside, features(test), test)


def test_sense_agreement():
    tokens, annotated = [1] * 6 + [2] * 4 + [3] * 5, list("aaabbb" + "xxyy" + "zzzzz")
    assert sense_agreement(tokens, annotated, annotated) == {"v_measure": 1, "adjusted_rand": 1}
    worse = sense_agreement(tokens, [0, 0, 0, 1, 1, 1] + [0, 1, 0, 1] + [0] * 5, annotated)
    assert worse["v_measure"] == pytest.approx(0.6) and worse["adjusted_rand"] == pytest.approx((6 - 4 * 0.5) / 10)
    with pytest.raises(ValueError, match="none of the 1 tokens has two annotated senses"):
        sense_agreement([1, 1], [0, 1], ["a", "a"])
    with pytest.raises(ValueError, match="2 tokens, 1 found and 2 annotated senses"):
        sense_agreement([1, 1], [0], ["a", "b"])


@pytest.mark.parametrize("side", ["left", "right"])
def test_pooling_reads_no_padding(side):
    rows, width = [[1.0, 2.0, 6.0], [5.0]], 3
    hidden, mask = torch.full((2, width, 1), 99.0), torch.zeros(2, width, dtype=torch.int64)
    for row, values in enumerate(rows):
        at = slice(width - len(values), width) if side == "left" else slice(0, len(values))
        hidden[row, at, 0], mask[row, at] = torch.tensor(values), 1
    expected = {"mean": [3, 5], "cls": [1, 5], "last": [6, 5], "max": [6, 5]}
    for pooling, values in expected.items():
        assert pool(hidden, mask, pooling).squeeze(-1).tolist() == values
    with pytest.raises(ValueError, match="unknown pooling 'median'"):
        pool(hidden, mask, "median")
    with pytest.raises(ValueError, match="row 1 of the batch has no tokens"):
        pool(hidden, torch.tensor([[1, 1, 1], [0, 0, 0]]), "mean")


def test_teacher_encodes_like_sentence_transformers(texts, bert, teacher_folder):
    """Vectors equal the mean over tokens, computed one text at a time; long texts are truncated."""
    teacher = Teacher(bert.model, bert.tokenizer, name="tiny", max_seq_length=8)
    for text, vector in zip(texts, teacher.encode(texts)):
        ids = torch.tensor([bert.tokenizer(text, truncation=True, max_length=8)["input_ids"]])
        torch.testing.assert_close(vector, bert.last_hidden_state(ids)[0].mean(0), rtol=1e-4, atol=1e-5)


def test_words_are_means_of_their_tokens(teacher):
    """The vector of a word equals the mean over its tokens, computed one sentence at a time."""
    teacher.max_seq_length = 8
    sentences = [["w1", "w2 w3", "", "w4"], ["w5"], ["w9"] * 10, []]
    tokens = [
        [[1], [2, 3], [], [4]],
        [[5]],
        [[9]] * 6 + [[]] * 4,
        [],
    ]  # of 8 positions, 2 are special tokens
    found = teacher.encode_words(sentences, batch_size=2)
    assert [tuple(vectors.shape) for vectors in found] == [(4, 16), (1, 16), (10, 16), (0, 16)]
    for vectors, words in zip(found, tokens):
        ids = torch.tensor([[2, *(4 + token for word in words for token in word), 3]])
        hidden, place = teacher.last_hidden_state(ids)[0], 1
        for vector, word in zip(vectors, words):
            expected = hidden[place : place + len(word)].mean(0) if word else torch.zeros(16)
            torch.testing.assert_close(vector, expected, rtol=1e-4, atol=1e-5)
            place += len(word)
    assert teacher.encode_words([]) == []
    with pytest.raises(ValueError, match="pass each sentence as a list of words"):
        teacher.encode_words(["w1 w2"])


def test_words_of_a_student_are_its_senses(bert, texts):
    student = SKDStudentModel.from_teacher(
        bert, build_sense_dictionary(bert, texts, senses_per_token=2), num_hidden_layers=1
    )
    hard, none = (student.encode_words([["w20", "w25"]], assignment=assignment)[0] for assignment in ("hard", "none"))
    for word, vector in zip(["w20", "w25"], hard):
        assert torch.cdist(vector[None], student.senses.senses_of(word).float()).min() < 1e-3
    assert not torch.allclose(hard, none, atol=1e-2)


def test_words_of_byte_level_tokenizers_keep_the_space_before_them(texts):
    """Words are tokenized as in a text, where every word but the first has a space in front."""
    model = Tokenizer(BPE())
    model.pre_tokenizer, model.decoder = ByteLevel(add_prefix_space=False), ByteLevelDecoder()
    model.train_from_iterator(texts, BpeTrainer(vocab_size=31, initial_alphabet=[], special_tokens=["[PAD]"]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=model, pad_token="[PAD]", model_max_length=64)
    teacher = Teacher(make_model("bert"), tokenizer, name="tiny")
    words = ["w1", "w25", "w3"]
    encoding = tokenizer(" ".join(words), return_offsets_mapping=True)
    states = teacher.last_hidden_state(torch.tensor([encoding["input_ids"]]))[0]
    word_of = torch.tensor(
        [[2, 6, 9].index(min(end for end in (2, 6, 9) if end >= stop)) for _, stop in encoding["offset_mapping"]]
    )
    (found,) = teacher.encode_words([words])
    for number, vector in enumerate(found):
        torch.testing.assert_close(vector, states[word_of == number].mean(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "weighted_mean"])
def test_pooling_does_not_overflow_in_half_precision(pooling):
    states = torch.full((1, 600, 2), 200.0)
    pooled = pool(states.half(), torch.ones(1, 600), pooling)
    assert pooled.dtype == torch.float16 and torch.equal(pooled.float(), torch.full((1, 2), 200.0))


def test_what_is_no_list_of_texts_is_refused(bert):
    class Frame(list):
        columns = ["text"]

    for take in (bert.encode, lambda texts: build_sense_dictionary(bert, texts)):
        with pytest.raises(ValueError, match="texts is a Frame"):
            take(Frame(["text"]))
    with pytest.raises(ValueError, match="None is neither a string nor"):
        bert.encode(["w1", None])
    with pytest.raises(ValueError, match="test: tag '3' of sentence 0 is not BIO"):
        token_task({"tokens": [["a", "b"]], "tags": [["O", "B-x"]]}, {"tokens": [["a"]], "tags": [[3]]})


def test_documents_without_a_title():
    task = retrieval_task({"id": [1, 2], "text": ["a", "b"], "title": ["T", None]}, {"text": ["q"], "relevant": [[1]]})
    assert task.inputs[1] == ["T a", "b"]


@pytest.mark.parametrize("relevant", ["12", 12, None, [], {"12": 1}, [0.5], [True], [["12"]]])
def test_each_query_needs_a_list_of_relevant_documents(relevant):
    corpus = {"id": list(range(20)), "text": ["a"] * 20}
    with pytest.raises(ValueError, match=r"query 1 has the relevant documents .*: give a list"):
        retrieval_task(corpus, {"text": ["q", "r"], "relevant": [[12], relevant]})
    with pytest.raises(ValueError, match=r"query 1 has the relevant documents .*: give a list"):
        score_ranking([[0, 1], [1, 0]], [[0], relevant])


def test_relevant_documents_may_be_a_set():
    vectors = np.eye(3)
    assert evaluate_retrieval(vectors, vectors, [{0}, {1}, (2,)])["ndcg_at_10"] == 1
    with pytest.raises(ValueError, match="name one or more of 0 to 2"):
        evaluate_retrieval(vectors, vectors, [["0"], [1], [2]])
    with pytest.raises(ValueError, match="corpus_embeddings has no rows"):
        evaluate_retrieval(vectors, vectors[:0], [[0], [1], [2]])
    with pytest.raises(ValueError, match="there are no queries"):
        evaluate_retrieval(vectors[:0], vectors, [])


@pytest.mark.parametrize(
    ("make", "columns", "message"),
    [
        (classification_task, [["a", "b"], [1, 2], ["c"], [3]], r"labels that the training set lacks: \[3\]"),
        (classification_task, [["a", "b"], [1, 2], ["c"], ["1"]], r"labels that the training set lacks: \['1'\]"),
        (classification_task, [["a", "b"], [0.5, 1], ["c"], [1]], "label 0.5 is no class"),
        (classification_task, [["a", "b"], [1, 1], ["c"], [1]], r"only the label \[1\]"),
        (classification_task, [["a", "b"], [1, 2], [None], [1]], "text 0 is NoneType"),
        (similarity_task, [["a", "b"], ["a", None], [1, 2]], "text 1 is NoneType"),
        (similarity_task, [["a", "b"], ["a", "b"], ["x", "y"]], "scores must be numbers"),
        (similarity_task, [["a", "b"], ["a", "b"], [2, 2]], "scores are all equal"),
        (token_task, [[["a", "b"]], [["O"]], [["a"]], [["O"]]], "train: sentence 0 has 2 words but 1 tags"),
        (token_task, [[["a", "b"]], [["O", "B-x"]], [["a"]], [["S-x"]]], "S-x"),
        (token_task, [[["a", "b"]], [["O", "O"]], [["a"]], [["O"]]], "train: the only tags are"),
        (token_task, [[["a", "b"]], [["O", "B-x"]], [], []], "test: the only tags are"),
        (classification_task, [["a", "b"], [0, 1], [], []], "the test set is empty"),
    ],
)
def test_what_cannot_be_scored_is_found_before_the_work(make, columns, message):
    names = {
        classification_task: ("text", "label"),
        similarity_task: ("sentence1", "sentence2", "score"),
        token_task: ("tokens", "tags"),
    }[make]
    sets = [dict(zip(names, columns[first:])) for first in range(0, len(columns), len(names))]
    with pytest.raises(ValueError, match=message):
        make(*sets)


def test_words_that_are_cut_off_are_told(bert, caplog, monkeypatch):
    monkeypatch.setattr(logging.get_logger("sensedict_hf"), "propagate", True)
    words = [f"w{number % 28}" for number in range(80)]
    short, long = bert.encode_words([words[:5], words])
    assert (short.abs().sum(1) > 0).all() and (long[-10:] == 0).all()
    cut = int((long == 0).all(1).sum())
    assert f"{cut} words come after the 64 tokens that the model reads" in caplog.text


def test_what_is_missing_is_found_before_the_work():
    with pytest.raises(ValueError, match="text 1 is NoneType"):
        retrieval_task({"id": [1, 2], "text": ["a", None]}, {"text": ["q"], "relevant": [[1]]})
    with pytest.raises(ValueError, match="label of the test set has no value for text 1"):
        classification_task({"text": ["a", "b"], "label": ["x", "y"]}, {"text": ["a", "b"], "label": ["x", None]})
    same = np.ones((3, 2))
    with pytest.raises(ValueError, match="all 3 pairs have the cosine 1"):
        evaluate_similarity(same, same, [1, 2, 3])


def test_tensors_of_words_may_be_in_bfloat16_and_have_a_gradient():
    tags = [["B-city", "O"], ["O", "B-city"]]
    words = [torch.tensor([[0.1, 1.0], [1.0, 0.1]]), torch.tensor([[1.0, 0.2], [0.2, 1.0]])]
    for given in ([each.bfloat16() for each in words], [each.clone().requires_grad_() for each in words]):
        assert evaluate_token_classification(given, tags, given, tags)["f1"] == 1


def test_vectors_of_two_widths_are_refused():
    with pytest.raises(ValueError, match="the embeddings are 8 and 7 wide"):
        evaluate_retrieval(np.ones((2, 8)), np.ones((3, 7)), [[0], [1]])
