"""The texts of the benchmark."""

from pathlib import Path

from ..distillation.tasks import read_columns

# A passage is a paragraph of an article with at least so many characters, and is cut off after so many.
SHORTEST, LONGEST = 400, 1000


def wikipedia_passages(data: Path, count: int) -> list[str]:
    """Return passages of Wikipedia: the first of every article, then the second of every article, and so on.

    Args:
        data: The folder of all tasks.
        count: How many.
    """
    articles = read_columns(data / "wikipedia_en_sample" / "train.jsonl")["text"]
    paragraphs = [[text[:LONGEST] for text in article.split("\n") if len(text) >= SHORTEST] for article in articles]
    longest = max(map(len, paragraphs))
    passages = [texts[place] for place in range(longest) for texts in paragraphs if len(texts) > place]
    return passages[:count]
