"""Writing a student as an ONNX file, next to everything else that its folder holds."""

import logging
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .arguments import check_flags, check_folder, check_kind, check_number
from .encoding import LEARNED
from .files import replacing
from .modeling_skd_base import SKDStudentPreTrainedModel

# Where sentence-transformers and Optimum look for the files.
MODEL_FILE, QUANTIZED_FILE = Path("onnx", "model.onnx"), Path("onnx", "model_quantized.onnx")
INPUTS = ("input_ids", "attention_mask")
# The operators whose weights become int8. Tables of senses stay as they are: `to_dtype("int8")` has better scales.
QUANTIZED_OPERATORS = ["MatMul", "Gemm", "Gather"]
# The largest distance between the vectors of both forms, as a share of their length, and the least share of positions
# at which both choose the same sense: other arithmetic can decide a draw in another way.
TOLERANCE, QUANTIZED_TOLERANCE, LEAST_AGREEMENT = 1e-3, 0.25, 0.98


def export_onnx(
    student: SKDStudentPreTrainedModel,
    folder: str | os.PathLike[str],
    *,
    int8: bool = False,
    tolerance: float | None = None,
) -> dict[str, float]:
    """Save a student with an ONNX file, which takes batches of any size and length.

    The folder is that of `save_pretrained`, so it still loads with `AutoModel`. The file takes `input_ids` and
    `attention_mask`. It returns `last_hidden_state` and `sense_ids`; `logits` for a student with a head;
    `pooler_output`, the vectors of texts, for a student without layers. This needs the packages onnx, onnxruntime and
    onnxscript.

    Args:
        student: The student, with or without a head.
        folder: The folder to write to.
        int8: Whether to write `onnx/model_quantized.onnx`, too: matrices in int8, and activations in int8 that are
            scaled for each batch.
        tolerance: The largest distance between a vector of the file and of PyTorch, as a share of its length. Default:
            0.001, and 0.25 for int8.

    Returns:
        For each file the largest distance that was found.

    Raises:
        ImportError: A package is missing.
        ValueError: The vectors of a file differ by more than the tolerance, the model is not a student in float32 or
            generates text, or an argument is of the wrong type or out of range.

    Example:
        >>> export_onnx(student, "exported")  # doctest: +SKIP
        {'onnx/model.onnx': 3.1e-06}
    """
    check_kind("student", student, SKDStudentPreTrainedModel, "a student")
    check_folder("folder", folder)
    check_flags(int8=int8)
    if tolerance is not None:
        check_number("tolerance", tolerance, above=0)
    if student.dtype != torch.float32:
        raise ValueError(f"the student is in {student.dtype}: load it with dtype=torch.float32 to export it")
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(f"{error}: install what the export needs with pip install 'sensedict_hf[onnx]'") from error
    if student.can_generate():
        raise ValueError(
            f"a {type(student).__name__} generates text, for which the file would need a cache: export a student "
            "without a head, or one that classifies"
        )
    student.eval()
    with replacing(Path(folder)) as ready:  # so that an interruption, or an error, leaves nothing
        student.save_pretrained(ready)
        return _write_files(student, ready, int8, tolerance)


def _write_files(
    student: SKDStudentPreTrainedModel, folder: Path, int8: bool, tolerance: float | None
) -> dict[str, float]:
    """Write the ONNX files, and compare them with the student, as :func:`export_onnx`."""
    batch = _make_batch(student)
    (folder / MODEL_FILE).parent.mkdir(exist_ok=True)

    # PyTorch's exporter warns of its own calls and of libraries that it does not find.
    exporting = logging.getLogger("torch.onnx")
    level = exporting.level
    exporting.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            expected = _Outputs(student)(**batch)
            torch.onnx.export(
                _Outputs(student),
                (),
                str(folder / MODEL_FILE),
                kwargs=batch,
                input_names=list(INPUTS),
                output_names=list(expected),
                dynamic_shapes=dict.fromkeys(INPUTS, {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}),
                external_data=False,
                dynamo=True,  # the default from torch 2.9 on
                verbose=False,
            )
    finally:
        exporting.setLevel(level)
    limits = {MODEL_FILE: TOLERANCE if tolerance is None else tolerance}
    if int8:
        _quantize(folder / MODEL_FILE, folder / QUANTIZED_FILE)
        limits[QUANTIZED_FILE] = QUANTIZED_TOLERANCE if tolerance is None else tolerance
    return {file.as_posix(): _compare(folder / file, batch, expected, limit) for file, limit in limits.items()}


class _Outputs(nn.Module):
    """A student that returns the outputs of the file alone."""

    def __init__(self, student: SKDStudentPreTrainedModel) -> None:
        super().__init__()
        self.student = student
        config = student.config
        self.names = ["last_hidden_state", "sense_ids"]
        if student.base_model is not student:
            self.names = ["logits"]
        elif config.pooling == LEARNED:
            self.names = ["pooler_output"]
        elif config.default_assignment == "none":
            self.names = ["last_hidden_state"]

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        output = self.student(input_ids=input_ids, attention_mask=attention_mask, return_dict=True)
        return {name: output[name] for name in self.names}


def _make_batch(student: SKDStudentPreTrainedModel) -> dict[str, Tensor]:
    """Return random token ids in rows of different lengths, `[4, 32]`."""
    generator = torch.Generator().manual_seed(0)
    config: Any = student.config
    lengths = torch.tensor([32, 20, 7, 3])
    mask = (torch.arange(32) < lengths[:, None]).long()
    vocab_size = min(config.text_config.vocab_size, config.sense_config.vocab_size)
    input_ids = torch.randint(0, vocab_size, mask.shape, generator=generator) * mask
    return {"input_ids": input_ids.to(student.device), "attention_mask": mask.to(student.device)}


def _quantize(source: Path, target: Path) -> None:
    """Write a file whose weights are int8, but not its senses."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    nodes = onnx.load(source).graph.node
    kept = [node.name for node in nodes if any(".senses." in name for name in node.input)]
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it would advise to optimize the graph first, which onnxruntime does when it loads
    try:
        quantize_dynamic(
            source,
            target,
            weight_type=QuantType.QInt8,
            per_channel=True,
            op_types_to_quantize=QUANTIZED_OPERATORS,
            nodes_to_exclude=kept,
        )
    finally:
        root.setLevel(level)


def _compare(file: Path, batch: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> float:
    """Return the largest distance between a vector of a file and of PyTorch, as a share of its length.

    Raises:
        ValueError: It exceeds the tolerance, or other senses are chosen.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = list(expected)
    found = dict(zip(names, session.run(names, {name: tensor.cpu().numpy() for name, tensor in batch.items()})))
    wanted = {name: tensor.cpu().numpy() for name, tensor in expected.items()}
    counted = np.ones(wanted[names[0]].shape[:-1], dtype=bool)
    if counted.ndim == 2:  # a vector for each position
        counted = batch["attention_mask"].cpu().numpy() > 0
    agreement = 1.0
    if "sense_ids" in wanted:
        is_same = found["sense_ids"] == wanted["sense_ids"]
        agreement = float(is_same[counted].mean())
        counted &= is_same
    ours, theirs = wanted[names[0]][counted], found[names[0]][counted]
    lengths = np.linalg.norm(ours, axis=-1).clip(1e-6)
    largest = float((np.linalg.norm(ours - theirs, axis=-1) / lengths).max())
    if not largest <= tolerance or (tolerance <= TOLERANCE and agreement < LEAST_AGREEMENT):
        del session
        file.unlink()
        raise ValueError(
            f"{file} is not the student: its vectors differ by up to {largest:.2g} of their length (at most "
            f"{tolerance:g} is allowed), and it chooses the same sense at {agreement:.1%} of the positions: raise the "
            "tolerance if that is good enough"
        )
    return largest
