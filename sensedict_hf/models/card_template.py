"""The text of model cards: their template, in the language of Jinja, and what each kind of model fills it with.

The template is no file of another kind, because the code that is saved with a model consists of Python files.
"""

from typing import NamedTuple

TEMPLATE = """\
---
{{ card_data }}
---

# {{ title }}

{{ summary }}

## How to load it
{% for heading, code in usage %}
{{ heading }}

```python
{{ code }}
```
{% endfor %}
## What it is

| | |
|---|---|
{% for name, value in facts.items() -%}
| {{ name }} | {{ value | string | replace("|", "\\\\|") | replace("\\n", " ") }} |
{% endfor %}
## Limits

{% for limit in limits -%}
- {{ limit }}
{% endfor %}
## Licence

{{ terms }}

## Citation

```bibtex
@inproceedings{wang2025multisense,
  title = "Multi-Sense Embeddings for Language Models and Knowledge Distillation",
  author = "Wang and Zaki and Kollias and Kalantzis",
  booktitle = "Findings of the Association for Computational Linguistics: ACL 2025",
  year = "2025",
  url = "https://arxiv.org/abs/2504.06036"
}
```
"""

# The ways to load a model: what holds for each, and the code, by the kind of model.
PACKAGE = "With the package (`pip install sensedict_hf`):"
CODE = "Without it. `trust_remote_code=True` runs the code that is saved with the model:"
SENTENCES = "In sentence-transformers. With the package, write `import sensedict_hf` instead of `trust_remote_code`:"

AUTO_MODEL = """\
{imported}from transformers import AutoModel

{variable} = AutoModel.from_pretrained("{name}"{trust})
{use}"""
PIPELINE = """\
{imported}from transformers import pipeline

run = pipeline("{task}", model="{name}"{trust})
run("{text}")"""
SENTENCE_TRANSFORMER = """\
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{name}", trust_remote_code=True)
vectors = model.encode(["a sentence", "another one"])"""


class Kind(NamedTuple):
    """What the cards of one kind of model share.

    Attributes:
        title: The heading.
        code: The template of the code that loads it.
        example: What fills the template.
        limits: What it cannot do.
        pipeline_tag: What the Hub lists it under.
        tags: Tags of its own.
    """

    title: str
    code: str
    example: dict[str, str]
    limits: tuple[str, ...]
    pipeline_tag: str | None = None
    tags: tuple[str, ...] = ("knowledge-distillation",)


LABELS_ALONE = ("It knows the labels in the table above, and no others.",)
# By `model_type`, or by the name of a class with a head.
KINDS = {
    "sense_embedding": Kind(
        "Sense dictionary",
        AUTO_MODEL,
        {"variable": "senses", "use": 'senses.senses_of("the")  # one row per sense'},
        (
            "It fits this teacher, this layer and this tokenizer alone.",
            "Tokens that did not occur in its texts have no senses: their vectors stay as they are.",
        ),
        tags=(),
    ),
    "skd_student": Kind(
        "Sense-distilled student",
        AUTO_MODEL,
        {"variable": "student", "use": 'vectors = student.encode(["a sentence", "another one"])'},
        (
            "Its vectors are like the teacher's on texts like those that it was distilled on. On other texts they may "
            "not be: measure them.",
        ),
        "feature-extraction",
        ("knowledge-distillation", "feature-extraction", "sentence-similarity"),
    ),
    "SKDStudentForCausalLM": Kind(
        "Distilled language model",
        PIPELINE,
        {"task": "text-generation", "text": "Once upon a time"},
        ("It writes what is likely, not what is true.",),
        "text-generation",
    ),
    "SKDStudentForSequenceClassification": Kind(
        "Sense-distilled text classifier",
        PIPELINE,
        {"task": "text-classification", "text": "a sentence"},
        LABELS_ALONE,
        "text-classification",
    ),
    "SKDStudentForTokenClassification": Kind(
        "Sense-distilled token classifier",
        PIPELINE,
        {"task": "token-classification", "text": "a sentence"},
        LABELS_ALONE,
        "token-classification",
    ),
}
BIAS = "What the teacher gets wrong, and its biases, are to be expected here too."
NO_FORM = "sentence-transformers has no form for its prompt, and refuses to open it."
CUT_ALWAYS = "`encode` cuts texts after {} tokens; `max_seq_length` in its config may be larger."
CUT = '`encode` cuts texts after {} tokens, unless it is called with `long_texts="windows"`.'
