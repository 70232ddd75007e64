"""A folder of sentence-transformers in which a student encodes queries, and its teacher documents."""

import os
from tempfile import TemporaryDirectory
from typing import Any

from ..models.arguments import check_folder, check_kind
from ..models.files import check_source, replacing
from ..models.folder_code import write_code
from ..models.modeling_skd_student import SKDStudentModel


def save_router(student: SKDStudentModel, teacher: Any, folder: str | os.PathLike[str]) -> None:
    """Save a student and its teacher as one model of sentence-transformers.

    A student's vectors are in the space of its teacher. So an index of the teacher's documents stays as it is, and the
    student answers: `encode_query` of the saved model is the student, `encode_document` is the teacher.

    Args:
        student: The student.
        teacher: The teacher as sentence-transformers opens it: a name, a folder or a `SentenceTransformer`.
        folder: The folder to write to.

    Raises:
        ImportError: sentence-transformers 6 or later is not installed.
        ValueError: The vectors of the two have different widths.

    Example:
        >>> from sensedict_hf import save_router
        >>> save_router(student, "sentence-transformers/all-MiniLM-L6-v2", "router")  # doctest: +SKIP
        >>> from sentence_transformers import SentenceTransformer  # doctest: +SKIP
        >>> SentenceTransformer("router").encode_query(["a question"]).shape  # doctest: +SKIP
        (1, 384)
    """
    try:
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Router
    except ImportError as error:
        raise ImportError(
            "save_router needs sentence-transformers 6 or later: pip install sentence-transformers"
        ) from error
    check_kind("student", student, SKDStudentModel, "a student")
    path = check_folder("folder", folder)
    documents: Any = teacher
    if not isinstance(teacher, SentenceTransformer):
        documents = SentenceTransformer(check_source(teacher), device=str(student.device))
    with TemporaryDirectory() as saved:
        student.save_pretrained(saved)
        queries = SentenceTransformer(saved, device=str(student.device))
        # Both must fit the same index.
        widths = [len(model.encode("a")) for model in (queries, documents)]
        if widths[0] != widths[1]:
            raise ValueError(
                f"the vectors of the student are {widths[0]} wide, those of the teacher {widths[1]}: give the teacher "
                "that the student was made from"
            )
        modules: list[Any] = [list(model.children()) for model in (queries, documents)]
        router = Router.for_query_document(query_modules=modules[0], document_modules=modules[1])
        # `encode_query` puts the prompt "query" before a text, if there is one, else the default one.
        prompt = queries.prompts.get("query") or queries.prompts.get(queries.default_prompt_name or "") or ""
        whole = SentenceTransformer(
            modules=[router],
            device=str(student.device),
            prompts={**documents.prompts, "query": prompt},
            default_prompt_name=documents.default_prompt_name,
            similarity_fn_name=documents.similarity_fn_name,
            truncate_dim=documents.truncate_dim,
        )
        with replacing(path, "modules.json") as ready:
            whole.save(os.fspath(ready))
            # transformers looks for the student's code in the top folder.
            write_code(ready, student.config.model_type)
