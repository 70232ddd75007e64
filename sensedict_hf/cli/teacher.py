"""The options of all commands that run a teacher."""

import argparse
import json
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from ..models.encoding import POOLINGS
from ..models.teachers import Teacher, load_teacher


@dataclass(kw_only=True)
class TeacherArguments:
    """How a teacher is loaded, as in [`load_teacher`]."""

    bidirectional: bool | None = field(
        default=None,
        metadata={"help": "whether a decoder's tokens attend to all others (true) or to those before (false)"},
    )
    adapters: list[str] | None = field(
        default=None, metadata={"help": "folders or names of PEFT adapters, merged one after the other"}
    )
    pooling: str | None = field(
        default=None,
        metadata={
            "help": "how one vector is made of a text (default: the model's own, else mean)",
            "choices": [*POOLINGS],
        },
    )
    instruction: str | None = field(default=None, metadata={"help": "read before every text, and not pooled"})
    template: str | None = field(
        default=None, metadata={"help": "read around instruction and text, for which it holds {text}"}
    )
    teacher_dtype: str | None = field(
        default=None,
        metadata={"help": "of its weights (default: as stored)", "choices": ["float32", "bfloat16", "float16"]},
    )
    device_map: str | None = field(default=None, metadata={"help": "how a large teacher is spread over devices: auto"})
    quantization_config: str | None = field(
        default=None,
        metadata={"help": """of the teacher, in JSON: '{"quant_method": "bitsandbytes", "load_in_4bit": true}'"""},
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "run code from the teacher's repository"})

    @classmethod
    def of(cls, options: argparse.Namespace) -> "TeacherArguments":
        """Those among the options of a command."""
        return cls(**{option.name: getattr(options, option.name) for option in fields(cls)})

    def loading(self) -> dict[str, Any]:
        """The arguments of :func:`load_teacher`."""
        return {
            "bidirectional": self.bidirectional,
            "adapters": self.adapters,
            "pooling": self.pooling,
            "instruction": self.instruction,
            "template": self.template and self.template.replace("\\n", "\n"),  # which a shell does not write
            "dtype": self.teacher_dtype,
            "device_map": self.device_map,
            "quantization_config": self.quantization_config and json.loads(self.quantization_config),
            "trust_remote_code": self.trust_remote_code,
        }

    def load(self, name: str, device: torch.device | str | None = None, revision: str | None = None) -> Teacher:
        """The teacher of that name or folder.

        Raises:
            ValueError: see [`load_teacher`].
        """
        return load_teacher(name, revision=revision, device=device, **self.loading())
