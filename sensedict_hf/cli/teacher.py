"""The options for loading a model, which several subcommands share, and the check of `--device`."""

import argparse
import json
from dataclasses import dataclass, fields
from typing import Any

import torch

from ..models.teachers import Teacher, load_teacher


@dataclass(kw_only=True)
class TeacherArguments:
    """How a teacher is loaded. `sensedict_cli` declares the options; :func:`load_teacher` explains them.

    Attributes:
        bidirectional: Whether every token of a decoder attends to all tokens.
        adapters: Names or folders of PEFT adapters, merged in this order.
        pooling: How the hidden states of a text become one vector.
        instruction: Text put before every input.
        template: Text around instruction and input, with `{text}` in their place and `\\n` for a new line.
        teacher_dtype: Dtype of the weights.
        device_map: How the model is spread over devices.
        quantization_config: Settings of quantization, as JSON.
        trust_remote_code: Whether Python code from the model's repository may run.
    """

    bidirectional: bool | None = None
    adapters: list[str] | None = None
    pooling: str | None = None
    instruction: str | None = None
    template: str | None = None
    teacher_dtype: str | None = None
    device_map: str | None = None
    quantization_config: str | None = None
    trust_remote_code: bool = False

    @classmethod
    def of(cls, options: argparse.Namespace) -> "TeacherArguments":
        """Take the fields of this class from the parsed options of a subcommand."""
        return cls(**{option.name: getattr(options, option.name) for option in fields(cls)})

    @property
    def are_defaults(self) -> bool:
        """Whether a model is loaded as it was trained; `trust_remote_code` does not count."""
        return self == TeacherArguments(trust_remote_code=self.trust_remote_code)

    def loading(self) -> dict[str, Any]:
        """Return the arguments of :func:`load_teacher`.

        Raises:
            ValueError: The quantization settings are not JSON.
        """
        return {
            "bidirectional": self.bidirectional,
            "adapters": self.adapters,
            "pooling": self.pooling,
            "instruction": self.instruction,
            "template": self.template and self.template.replace("\\n", "\n"),  # a new line is hard to type in a shell
            "dtype": self.teacher_dtype,
            "device_map": self.device_map,
            "quantization_config": self._read_quantization(),
            "trust_remote_code": self.trust_remote_code,
        }

    def _read_quantization(self) -> Any:
        """Read the JSON of `--quantization-config`; None if it is not given."""
        if not self.quantization_config:
            return None
        try:
            return json.loads(self.quantization_config)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"quantization_config={self.quantization_config!r} is not JSON ({error}): write it as in "
                """'{"quant_method": "bitsandbytes", "load_in_4bit": true}'"""
            ) from error

    def load(self, name: str, device: torch.device | str | None = None, revision: str | None = None) -> Teacher:
        """Load a teacher with these options.

        Args:
            name: A name on the Hub or a folder.
            device: Default: a GPU if there is one.
            revision: Branch, tag or commit on the Hub.

        Raises:
            ValueError: The quantization settings are not JSON, the device is not there, or :func:`load_teacher`
                refuses the model.
        """
        return load_teacher(name, revision=revision, device=device, **self.loading())
