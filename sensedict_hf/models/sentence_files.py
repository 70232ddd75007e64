"""The files in a student's folder with which sentence-transformers encodes texts to the same vectors as `encode`."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from .arguments import check_integer, check_string
from .checkpoints import read_pooling, read_step
from .configuration_skd_student import SKDStudentConfig
from .encoding import LEARNED
from .files import find_file, read_json_file
from .prompts import Prompt
from .sentence_head import make_sentence_head
from .tokenization import tokenize

logger = logging.get_logger(__name__)

# Names of the poolings in the settings of sentence-transformers, which all its versions read.
POOLINGS = {
    "mean": "mean_tokens",
    "weighted_mean": "weightedmean_tokens",
    "cls": "cls_token",
    "last": "lasttoken",
    "max": "max_tokens",
}
DEFAULT_PROMPT = "default"
GENERAL, TRANSFORMER = "config_sentence_transformers.json", "sentence_bert_config.json"
# A module that does not exist: sentence-transformers raises an error instead of pooling otherwise than `encode`.
REFUSAL = "sensedict_hf.this_student_has_a_prompt_for_which_only_its_own_encode_pools_right"


def write_student_files(
    folder: str | os.PathLike[str],
    config: SKDStudentConfig,
    head: nn.Sequential | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> None:
    """Write the files of sentence-transformers into the folder of a saved student.

    For students without layers it must be version 5.4 or later: older ones raise an error. For others any will do. For
    a student with a prompt that sentence-transformers would pool otherwise, its every version raises an error.

    Args:
        folder: The folder.
        config: Config of the student.
        head: The modules after the pooling. None: there are none.
        tokenizer: The student's tokenizer. It counts if there are prompts that are not pooled.
    """
    # What the teacher does with a pooled vector.
    settings: dict[str, Any] = {"similarity_fn_name": config.similarity_fn_name}
    modules: list[tuple[str, str]] = []
    for number, (step, module) in enumerate(zip(config.sentence_head or (), head or ()), 2):
        path = f"{number}_{step['kind'].capitalize()}"
        if step["kind"] == "truncate":
            settings["truncate_dim"] = step["dim"]
        elif step["kind"] == "dense":
            _write_dense(Path(folder, path), step, module)
            modules.append(("Dense", path))
        else:
            modules.append(("Normalize", path))

    prompts, settings["default_prompt_name"], pools_prompts, has_form = _prompts(config)
    if not pools_prompts and any(prompts.values()):
        # What these poolings are without a prompt differs between its versions; and it counts the prompt's tokens.
        # Without layers the model pools by itself, with the prompt.
        has_form &= config.pooling not in ("cls", "weighted_mean", LEARNED)
        has_form &= tokenizer is None or all(_ends_with_a_token(prompt, tokenizer) for prompt in prompts.values())
    if not has_form:
        modules.append((REFUSAL, ""))
    settings = {name: value for name, value in settings.items() if value is not None} | {"prompts": prompts}
    sizes = config.hidden_size, config.pooling, config.max_seq_length
    write_sentence_transformers(folder, *sizes, modules, settings, include_prompt=pools_prompts)


def read_student_head(
    source: str, options: dict[str, Any], config: SKDStudentConfig, head: nn.Sequential | None
) -> nn.Sequential | None:
    """Return what the pooled vector of a text goes through, as the files of sentence-transformers say.

    That library may have trained the dense layers, which transformers leaves as they are, or added one. The config
    takes over another length limit and another similarity. A warning tells of another pooling or other prompts.

    Args:
        source: The folder or repository of the student.
        options: Arguments of `from_pretrained` that say where files are.
        config: Config of the student. Its steps and its length limit are replaced if the files have others.
        head: The modules that were saved with the student, which get the weights in the files.
    """
    places = {name: value for name, value in options.items() if name != "trust_remote_code"}

    def find(name: str) -> Path | None:
        return find_file(source, name, **places)

    def read(name: str) -> Any:
        path = find(name)
        return read_json_file(path) if path else None

    # The modules after the pooling.
    pooling: str | None = None
    steps: list[dict[str, Any]] = []
    files: list[Path | None] = []
    modules = read("modules.json")
    if not modules:
        return head
    for module in modules:
        kind, path = module["type"].rpartition(".")[2], module["path"]
        if kind == "Pooling":
            pooling = read_pooling(read(f"{path}/config.json") or {})
        if kind in ("Transformer", "Pooling") or module["type"] == REFUSAL:
            continue
        step = read_step(kind, read(f"{path}/config.json") or {})
        if step is None:
            logger.warning(
                f"sentence-transformers makes other vectors from {source} than `encode`, by {module['type']}"
            )
            continue
        steps.append(step)
        files.append(find(f"{path}/model.safetensors") if kind == "Dense" else None)
    if truncated := (read(GENERAL) or {}).get("truncate_dim"):
        steps.append({"kind": "truncate", "dim": truncated})
    _take_over_settings(source, config, pooling, read)

    # Take over steps and weights.
    if steps != (config.sentence_head or []):
        config.sentence_head, head = steps, make_sentence_head(steps)
    for layer, file in zip(head or (), files):
        if file is not None:
            layer.load_state_dict({name.removeprefix("linear."): x for name, x in load_file(file).items()})
    return head


def _take_over_settings(
    source: str, config: SKDStudentConfig, pooling: str | None, read: Callable[[str], Any]
) -> None:
    """Take over length limit and similarity from the files of sentence-transformers; warn of other prompts or pooling.

    Args:
        source: The folder or repository of the student.
        config: Its config, which the caller may have changed. That counts more.
        pooling: The pooling in the files; None if there is none.
        read: Returns the content of a file, or None.
    """
    general, transformer = (read(name) or {} for name in (GENERAL, TRANSFORMER))
    saved = SKDStudentConfig.from_dict(read("config.json") or {})
    longest = transformer.get("max_seq_length")
    if transformer and longest is None:  # since version 6 it is in the tokenizer's file
        longest = (read("tokenizer_config.json") or {}).get("model_max_length")
    if longest is not None and longest != saved.max_seq_length == config.max_seq_length:
        config.max_seq_length = check_integer("the max_seq_length of sentence-transformers", longest, 1)

    similarity = general.get("similarity_fn_name")
    if similarity is not None and similarity != saved.similarity_fn_name == config.similarity_fn_name:
        check_string("the similarity_fn_name of sentence-transformers", similarity)
        config.similarity_fn_name = similarity

    prompts, default, _, has_form = _prompts(saved)
    written, found = (
        {name: prompt for name, prompt in each.items() if prompt} for each in (prompts, general.get("prompts") or {})
    )
    changed = ["another pooling"] * (pooling is not None and pooling != saved.pooling)
    changed += ["other prompts"] * (has_form and (written, default) != (found, general.get("default_prompt_name")))
    if changed:
        logger.warning(
            f"sentence-transformers makes other vectors from {source} than `encode`, as its files have "
            f"{' and '.join(changed)}: set them on the student and save it again"
        )


def is_saved_by_library(folder: str | os.PathLike[str], options: Mapping[str, Any]) -> bool:
    """Return whether sentence-transformers is saving a model, and has just written its own settings into the folder.

    It leaves its version there, and passes an argument that transformers does not have any more.

    Args:
        folder: The folder.
        options: Arguments of `save_pretrained`.
    """
    path = Path(folder, GENERAL)
    return "safe_serialization" in options and path.is_file() and "__version__" in (read_json_file(path) or {})


def opens_in_sentence_transformers(folder: str | os.PathLike[str]) -> bool:
    """Return whether sentence-transformers opens a saved student, and does not fail for its prompt."""
    modules = Path(folder, "modules.json")
    return modules.is_file() and REFUSAL not in modules.read_text(encoding="utf-8")


def write_sentence_transformers(
    folder: str | os.PathLike[str],
    hidden_size: int,
    pooling: str,
    max_seq_length: int,
    modules: Sequence[tuple[str, str]] = (),
    settings: Mapping[str, Any] | None = None,
    *,
    include_prompt: bool = True,
) -> None:
    """Write the files of sentence-transformers for a model that is saved in a folder.

    Args:
        folder: The folder.
        hidden_size: Width of the pooled vectors.
        pooling: `mean`, `weighted_mean`, `cls`, `last` or `max`; `learned` if the model computes the vectors itself.
        max_seq_length: Longer texts are truncated to this number of tokens.
        modules: The modules after the pooling: kind and folder.
        settings: The content of `config_sentence_transformers.json`, such as `prompts`.
        include_prompt: Whether the tokens of a prompt are pooled with the text.
    """
    transformer: dict[str, Any] = {"max_seq_length": max_seq_length, "do_lower_case": False}
    files: dict[str, Any] = {TRANSFORMER: transformer}
    files[GENERAL] = settings or {"prompts": {}}
    before = [("Transformer", "")]
    if pooling == LEARNED:
        # The vector of a text is an output of the model, so there is no module that pools.
        transformer["modality_config"] = {"text": {"method": "forward", "method_output_name": "pooler_output"}}
        transformer["module_output_name"] = "sentence_embedding"
    else:
        modes: dict[str, Any] = {f"pooling_mode_{name}": mode == pooling for mode, name in POOLINGS.items()}
        if not include_prompt:
            modes["include_prompt"] = False
        files["1_Pooling/config.json"] = {"word_embedding_dimension": hidden_size, **modes}
        before.append(("Pooling", "1_Pooling"))
    files["modules.json"] = [
        {
            "idx": number,
            "name": str(number),
            "path": path,
            "type": kind if "." in kind else f"sentence_transformers.models.{kind}",
        }
        for number, (kind, path) in enumerate([*before, *modules])
    ]
    for name, content in files.items():
        Path(folder, name).parent.mkdir(exist_ok=True)
        Path(folder, name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _prompts(config: SKDStudentConfig) -> tuple[dict[str, str], str | None, bool, bool]:
    """Return the prompts of a student as strings before a text, which are pooled all or none.

    Returns:
        The prompts by name, the name of the default one, whether they are pooled, and whether they have this form.
    """
    prompts, (default, pools_default) = dict(config.prompts or {}), _default_prompt(config)
    pools_prompts = config.include_prompt if prompts else pools_default
    has_form = default is not None and (not default or pools_default == pools_prompts)
    if not default or not has_form:
        return prompts, None, pools_prompts, has_form
    names = [name for name, prompt in prompts.items() if prompt == default]
    name = names[0] if names else DEFAULT_PROMPT
    prompts[name] = default
    for method in ("query", "document"):  # encode_query and encode_document read these
        prompts.setdefault(method, default)
    return prompts, name, pools_prompts, has_form


def _default_prompt(config: SKDStudentConfig) -> tuple[str | None, bool]:
    """Return the student's own prompt as a string before the text, and whether it is pooled.

    The string is empty if there is no prompt, and None if it is not of this form.
    """
    if config.prompt is None:
        return "", True
    prompt = Prompt(**config.prompt)
    before, pools = prompt.parts("")[0], prompt.pooled == "all"
    if prompt.tail or prompt.max_text_length is not None or prompt.pooled == "text_and_tail":
        return None, True
    # Without a text before the text, the special token there is left out of the pooling all the same.
    return (before, pools) if before or pools else (None, True)


def _ends_with_a_token(prompt: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether no token covers the end of a prompt and the beginning of the text after it."""
    ids = tokenize(tokenizer, prompt)["input_ids"]
    length = len(ids) - (ids[-1:] != [] and ids[-1] in tokenizer.all_special_ids)  # as sentence-transformers counts
    return not prompt or length == Prompt(prompt + "{text}").tokenize(tokenizer, ["a"], None)[0].begin


def _write_dense(folder: Path, step: dict[str, Any], module: nn.Module) -> None:
    """Write a dense layer as sentence-transformers does."""
    folder.mkdir(exist_ok=True)
    names = {"in_features", "out_features", "bias"}
    settings = {name: value for name, value in step.items() if name in names}
    # A path that versions of sentence-transformers trust.
    settings["activation_function"] = f"torch.nn.modules.{_module_of(step['activation'])}.{step['activation']}"
    (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    tensors = {f"linear.{name}": tensor.contiguous().cpu() for name, tensor in module.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _module_of(activation: str) -> str:
    """Return the module of `torch.nn.modules` that defines an activation."""
    return str(getattr(nn, activation).__module__).rpartition(".")[2]
