"""Adam that changes only the rows of tables that a batch uses."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from .training_args import SKDTrainingArguments


class RowAdam(torch.optim.AdamW):
    """AdamW whose groups with `is_table` change only rows with a gradient.

    The averages of the other rows wait too, as in `torch.optim.SparseAdam`. Dense Adam goes on moving a row after its
    token was seen, for as long as its averages last. The gradient of a table can be sparse or dense.

    Args:
        params: Parameters or groups of them. A group can have its own `lr`, and `is_table`.
        kwargs: Arguments of `torch.optim.AdamW`. Tables have no weight decay.
    """

    def __init__(self, params: Any, **kwargs: Any) -> None:
        super().__init__(params, **kwargs)
        for group in self.param_groups:
            group.setdefault("is_table", False)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Change the parameters.

        Args:
            closure: Not used; schedulers and scalers of transformers pass none.
        """
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group["is_table"]]
        try:
            super().step()
        finally:
            self.param_groups = groups
        for group in groups:
            for table in group["params"] if group["is_table"] else ():
                if table.grad is not None:
                    self._step_table(table, table.grad, group)

    def _step_table(self, table: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        """Change the rows of a table. Source: "Adam: A Method for Stochastic Optimization", ICLR 2015, algorithm 1."""
        state = self.state[table]
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"] = torch.zeros_like(table)
            state["exp_avg_sq"] = torch.zeros_like(table)
        state["step"] += 1
        step = int(state["step"])
        rows, gradient = _changed_rows(gradient)
        beta, beta_square = group["betas"]
        average, square_average = state["exp_avg"][rows], state["exp_avg_sq"][rows]
        average.lerp_(gradient, 1 - beta)
        square_average.mul_(beta_square).addcmul_(gradient, gradient, value=1 - beta_square)
        state["exp_avg"][rows], state["exp_avg_sq"][rows] = average, square_average
        root = square_average.sqrt_().div_(math.sqrt(1 - beta_square**step)).add_(group["eps"])
        table.index_add_(0, rows, average.div_(root), alpha=-group["lr"] / (1 - beta**step))


def _changed_rows(gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows of a table that have a gradient, `[n]`, and their gradients, `[n, width]`."""
    if gradient.is_sparse:
        gradient = gradient.coalesce()
        return gradient.indices()[0], gradient.values()
    rows = gradient.any(1).nonzero().squeeze(1)
    return rows, gradient[rows]


def make_optimizer(model: nn.Module, args: SKDTrainingArguments) -> RowAdam:
    """Make the optimizer: the tables learn at `table_learning_rate`, everything else at `learning_rate`."""
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [parameter for parameter in trained if id(parameter) not in tables]},
        {
            "params": [parameter for parameter in trained if id(parameter) in tables],
            "lr": args.table_learning_rate,
            "is_table": True,
        },
    ]
    return RowAdam(
        [group for group in groups if group["params"]],
        lr=args.learning_rate,
        betas=(args.adam_beta1, args.adam_beta2),
        eps=args.adam_epsilon,
        weight_decay=0.0,
    )
