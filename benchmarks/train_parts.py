"""Training steps on random data, and the bare products inside them, for `train_floor`."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from videoar.kernels.bitwise_cross_entropy import bitwise_cross_entropy
from videoar.runtime.config import ModelConfig
from videoar.runtime.transformer import Transformer, teacher_forced_logits
from videoar.runtime.video_tokenizer import VideoTokenizer
from videoar.training.learner import Learner, OptimConfig
from videoar.training.run import autocast
from videoar.training.tokenizer_loss import ERRORS, reconstruct

CPU = torch.device("cpu")
TEXT = 8  # tokens of a caption of the digits


@dataclass(frozen=True, slots=True)
class Call:
    """One linear layer or convolution of a step: shapes, and what is differentiated.

    Attributes:
        x: shape of the input; rows and channels for a linear layer.
        weight: shape of the weight.
        options: stride and padding of a convolution, else ().
        input_gradient: whether the input has a gradient; the weight always has.
    """

    x: tuple[int, ...]
    weight: tuple[int, ...]
    options: tuple[int, ...]
    input_gradient: bool

    @property
    def flops(self) -> int:
        """Of the products forwards and backwards; a multiplication and an addition are two."""
        outputs = self.x[0] * self.weight[0]
        if self.options:
            stride, padding = self.options
            for size, kernel in zip(self.x[2:], self.weight[2:], strict=True):
                outputs *= (size + 2 * padding - kernel) // stride + 1
        product = 2 * outputs * torch.Size(self.weight[1:]).numel()
        return product * (3 if self.input_gradient else 2)


class Recorder(TorchFunctionMode):
    """Inside the block, notes the linear layers and convolutions in `calls`."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.linear:
            x, weight = args[:2]
            rows = x.numel() // x.shape[-1], x.shape[-1]
            self.calls.append(Call(rows, tuple(weight.shape), (), x.requires_grad))
        elif func is F.conv2d:
            x, weight, _, *options = args
            self.calls.append(
                Call(tuple(x.shape), tuple(weight.shape), tuple(options), x.requires_grad)
            )
        return func(*args, **kwargs)


class TrainingStep(ABC):
    """One training step of a model on one random batch.

    Args:
        model: float32, in training mode, on `device`.
    """

    def __init__(self, model: nn.Module, device: torch.device = CPU) -> None:
        self.model, self.device = model, device
        self.learner = Learner(model, OptimConfig(steps=10**6, learning_rate=1e-4, warmup=0))
        with Recorder() as recorder:
            self.loss()
        self.calls = recorder.calls
        self.flops = sum(call.flops for call in self.calls)

    @abstractmethod
    def loss(self) -> Tensor:
        """Forward pass and loss."""

    @abstractmethod
    def floors(self) -> dict[str, Callable[[], object]]:
        """The bare products, in the forms that might be the fastest."""

    def backward(self) -> None:
        """Forward and backward; gradients are dropped."""
        self.loss().backward()
        self.learner.optimizer.zero_grad(set_to_none=True)

    def step(self) -> None:
        """All that a step does but making the batch."""
        self.loss().backward()
        self.learner.step(0)


def step_dtype(device: torch.device = CPU) -> torch.dtype:
    """What a training step multiplies in on this processor."""
    kind = device.type
    with autocast(device):
        return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float


class TransformerStep(TrainingStep):
    """Teacher forcing over `batch` clips of the preset's length."""

    def __init__(self, config: ModelConfig, batch: int, device: torch.device = CPU) -> None:
        sizes, frames = config.transformer.sizes, config.transformer.max_frames
        shape = batch, frames, sum(h * w for h, w in sizes), config.transformer.latent_dim
        self.tokens = torch.zeros(batch, TEXT, dtype=torch.int64)
        self.lengths = torch.full((batch,), TEXT)
        if config.transformer.condition == "class":
            self.tokens, self.lengths = self.tokens[:, :1], torch.ones_like(self.lengths)
        self.tokens, self.lengths = self.tokens.to(device), self.lengths.to(device)
        self.inputs, self.bits = torch.randn(shape).to(device), (torch.rand(shape) < 0.5).to(device)
        super().__init__(Transformer(config.transformer).train().to(device), device)

    def loss(self) -> Tensor:
        with autocast(self.device):
            logits = teacher_forced_logits(self.model, self.tokens, self.lengths, self.inputs)
        return bitwise_cross_entropy(logits, self.bits)

    def floors(self) -> dict[str, Callable[[], object]]:
        return {"products": BareProducts(self.calls, step_dtype(self.device), self.device).run}


class TokenizerStep(TrainingStep):
    """Reconstruction of `batch` clips of the preset's length, quantised, without a GAN."""

    def __init__(self, config: ModelConfig, batch: int, device: torch.device = CPU) -> None:
        frames = 1 + config.tokenizer.temporal_compression * (config.transformer.max_frames - 1)
        video = 2 * torch.rand(batch, 3, frames, config.height, config.width) - 1
        self.video, self.sizes = video.to(device), config.transformer.sizes
        super().__init__(VideoTokenizer(config.tokenizer).train().to(device), device)

    def loss(self) -> Tensor:
        output, terms = reconstruct(self.model, self.video, self.sizes)
        return 10 * ERRORS["l2"](output, self.video) + 0.02 * terms["commitment"]

    def floors(self) -> dict[str, Callable[[], object]]:
        forms = {"first": torch.contiguous_format, "last": torch.channels_last}
        kind = step_dtype(self.device)
        return {
            f"channels {name}": BareConvs(self.calls, kind, form, self.device).run
            for name, form in forms.items()
        }


class BareProducts:
    """y = x W^T, W's and, where it is wanted, x's gradient, in the order of a step."""

    def __init__(self, calls: list[Call], dtype: torch.dtype, device: torch.device = CPU) -> None:
        self.tensors = []
        for call in calls:
            rows, width = call.x
            shapes = (rows, width), call.weight, (rows, call.weight[0])
            x, weight, grad = (torch.randn(shape).to(device, dtype) for shape in shapes)
            self.tensors.append((x, weight, grad, call.input_gradient))

    def run(self) -> None:
        """Once forwards and once backwards."""
        for x, weight, _, _ in self.tensors:
            F.linear(x, weight)
        for x, weight, grad, input_gradient in reversed(self.tensors):
            if input_gradient:
                grad @ weight
            grad.t() @ x


class BareConvs:
    """A step's convolutions, and their gradients, in its order."""

    def __init__(
        self,
        calls: list[Call],
        dtype: torch.dtype,
        layout: torch.memory_format,
        device: torch.device = CPU,
    ) -> None:
        self.runs = []
        for call in calls:
            shapes = call.x, call.weight
            x, weight = (torch.randn(shape).to(device, dtype) for shape in shapes)
            x, weight = x.to(memory_format=layout), weight.to(memory_format=layout)
            stride, padding = call.options
            options = [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1
            grad = torch.randn_like(torch.ops.aten.convolution(x, weight, None, *options))
            self.runs.append((x, weight, grad, options, call.input_gradient))

    def run(self) -> None:
        """Once forwards and once backwards."""
        for x, weight, _, options, _ in self.runs:
            torch.ops.aten.convolution(x, weight, None, *options)
        for x, weight, grad, options, input_gradient in reversed(self.runs):
            mask = [input_gradient, True, False]
            torch.ops.aten.convolution_backward(grad, x, weight, [0], *options, mask)
